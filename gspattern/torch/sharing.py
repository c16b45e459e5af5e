"""What changes when several processes train one model: DistributedDataParallel and FSDP2.

Under DistributedDataParallel every process holds all weights, under FSDP2 (`fully_shard`) a shard of each as a
DTensor. Scores are made of whole matrices, since row groups cross shards; process 0 chooses for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")

if distributed.is_available():
    from torch.distributed.tensor import DTensor, distribute_tensor
else:  # pragma: no cover - builds of torch without torch.distributed
    DTensor = None  # type: ignore[assignment, misc]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without DistributedDataParallel, torch.compile or an average of weights around it."""
    while True:
        if isinstance(
            model,
            nn.parallel.DistributedDataParallel
            | nn.DataParallel
            | torch.optim.swa_utils.AveragedModel,
        ):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, as a view."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; of a shard all processes must ask at the same time."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def placed_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another, cut into shards as that one is."""
    if not is_sharded(like):
        return value.to(like.device)
    value = value.to(local(like).device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


class Ranks:
    """The processes that share a model; a single one without torch.distributed."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        started = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size(group) if started else 1

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it, or the error that it raises."""
        if self.count == 1:
            return make()
        message: list[Any] = [None, None]
        first = distributed.get_rank(self._group) == 0
        if first:
            try:
                message[0] = make()
            except (ValueError, RuntimeError) as error:
                message[1] = error
        distributed.broadcast_object_list(message, group_src=0, group=self._group)
        if message[1] is not None:
            raise message[1]
        return message[0]  # type: ignore[no-any-return]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        if self.count > 1:
            tensor = tensor.contiguous()
            distributed.all_reduce(tensor, group=self._group)
            tensor = tensor / self.count
        return tensor

    def check(self, what: str, parts: list[bytes]) -> None:
        """Raise an error in all processes unless they hold the same bytes.

        Raises
        ------
        RuntimeError
            Naming the processes that differ from the first.
        """
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        digests: list[Any] = [None] * self.count
        distributed.all_gather_object(digests, digest.digest(), group=self._group)
        differ = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        if differ:
            raise RuntimeError(
                f"{what} of process 0 and of process {', '.join(differ)} are not the same: make the Pruner of "
                "every process from the same model, with the same arguments, and call it at the same steps"
            )
