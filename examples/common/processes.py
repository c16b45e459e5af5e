"""The processes of torchrun that train one model together, and the device of each; a single one without torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from examples.common.options import Options


class Processes:
    """This process among all; `with` it, they are connected."""

    def __init__(self, options: Options) -> None:
        self.ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.together = "WORLD_SIZE" in os.environ
        self.sharded = self.together and options.parallel == "fsdp"
        cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")

    def __enter__(self) -> Processes:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.together:
            # What is on the CPU does not wait for the GPU.
            cuda = self.device.type == "cuda"
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.together:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, model: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
        """The model on this device, wrapped for training by all processes."""
        model = model.to(self.device)
        if self.sharded:
            for block in blocks:
                fully_shard(block)
            return fully_shard(model)
        if self.together:
            return DistributedDataParallel(model)
        return model

    def place(self, batch: Any) -> Any:
        """A batch on this device."""
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {key: self.place(value) for key, value in batch.items()}
        if isinstance(batch, tuple | list):
            return type(batch)(self.place(value) for value in batch)
        return batch

    def most(self, number: int) -> int:
        """The largest number that any process gives."""
        return int(self._reduced(torch.tensor(number), distributed.ReduceOp.MAX))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def _reduced(self, values: torch.Tensor, how: Any) -> torch.Tensor:
        values = values.cpu()
        if self.ranks > 1:
            distributed.all_reduce(values, how)
        return values

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Take the first process's running statistics, which are those that a checkpoint holds."""
        if self.ranks > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


def prepare_worker(_: int) -> None:
    """For a DataLoader's `worker_init_fn`: Ctrl-C is for the process that trains, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
