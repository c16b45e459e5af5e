"""What tests/test_sharing.py runs under torchrun: training with DistributedDataParallel or FSDP2, and checks.

torchrun --nproc-per-node 2 train_sharded.py agree FOLDER ddp-magnitude fsdp-taylor ...
torchrun --nproc-per-node 2 --max-restarts 1 train_sharded.py crash FOLDER
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gspattern as gs
from gspattern.torch import Pruner, cubic
from gspattern.torch.sharing import whole

STEPS, CRASH = 9, 5
PATTERN = {
    "1": "gs(8,2)",
    "*": "gs(16,1)+scatter",
}  # groups of 4 and of 16 rows: they cross shards of 20


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))


def batch(step, rank):
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(1000 * rank + step))
    return x, x[:, :4].sin()


def prepare(kind, criterion):
    model = make()
    if kind == "fsdp":
        for layer in (model[0], model[1], model[3], model):
            fully_shard(layer)
    else:
        model = DistributedDataParallel(model)
    opt = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = cubic(1, 7, every=2, initial=0.25)
    return model, opt, Pruner(model, PATTERN, 0.75, opt, schedule=schedule, criterion=criterion)


def zeros(model, pruner):
    bare = getattr(model, "module", model)
    for name, mask in pruner.masks.items():
        assert torch.count_nonzero(whole(bare.get_parameter(name).detach())[~mask]) == 0, name


def train(model, opt, pruner, first, last, saved=None):
    rank = distributed.get_rank()
    for step in range(first, last):
        x, y = batch(step, rank)
        opt.zero_grad()
        ((model(x) - y).square().mean() + pruner.penalty()).backward()
        opt.step()
        zeros(model, pruner)
        pruner.step()
        zeros(model, pruner)
        if saved is not None:
            state = [part.state_dict() for part in (model, opt, pruner)]
            if rank == 0:
                torch.save(state, saved.with_suffix(".new"))
                saved.with_suffix(".new").rename(saved)
            distributed.barrier()
            if step == CRASH and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), 9)


def whole_state(model):
    return {key.removeprefix("module."): whole(v).clone() for key, v in model.state_dict().items()}


def differ(folder, rank):
    """Pruners that do not fit one another are refused in every process."""
    try:
        Pruner(make(), "gs(8,8)" if rank else "gs(16,16)", 0.75)
    except RuntimeError as error:
        (folder / f"differ-{rank}.txt").write_text(str(error))


def disagree(folder, rank):
    """Scores of each process are its own; the masks are still those of one."""

    def scores(name, weight, context):
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(rank))

    pruner = Pruner(make(), "gs(8,8)", 0.75, criterion=scores)
    torch.save(pruner.masks, folder / f"own-scores-{rank}.pt")


def agree(kind, criterion):
    """Train; then save half way and go on in new objects, which gives the same bits; then rewind."""
    model, opt, pruner = prepare(kind, criterion)
    train(model, opt, pruner, 0, STEPS)
    for row, entry in zip(pruner.report(), pruner._entries, strict=True):
        mask = pruner.masks[row.name].numpy()
        assert gs.check(mask, row.pattern, row_order=entry.pruned.row_order)
    result = {"model": whole_state(model), "masks": pruner.masks}
    model, opt, pruner = prepare(kind, criterion)
    train(model, opt, pruner, 0, 4)
    again = prepare(kind, criterion)
    again[0].load_state_dict(model.state_dict())
    again[1].load_state_dict(copy.deepcopy(opt.state_dict()))  # which it would share
    again[2].load_state_dict(pruner.state_dict())
    train(*again, 4, STEPS)
    for key, value in whole_state(again[0]).items():
        assert torch.equal(value, result["model"][key]), key
    train(model, opt, pruner, 4, STEPS)
    pruner.rewind()
    first = make().state_dict()
    for key, value in whole_state(model).items():
        assert torch.equal(value, first[key] * pruner.masks.get(key, 1)), key
    pruner.finalize()
    return result


def crash(folder):
    """Train, with a process that dies once behind a checkpoint."""
    model, opt, pruner = prepare("ddp", "magnitude")
    saved, first = folder / "state.pt", 0
    if saved.exists():
        for part, state in zip((model, opt, pruner), torch.load(saved), strict=True):
            part.load_state_dict(state)
        first = pruner.steps
    train(model, opt, pruner, first, STEPS, saved)
    return {"model": whole_state(model), "masks": pruner.masks, "first": first}


def main():
    folder = Path(sys.argv[2])
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    if sys.argv[1] == "crash":
        torch.save(crash(folder), folder / f"crash-{rank}.pt")
    else:
        differ(folder, rank)
        disagree(folder, rank)
        for case in sys.argv[3:]:
            torch.save(agree(*case.split("-")), folder / f"{case}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
    # Threads of torch that are still there at the end may abort the process.
    os._exit(0)
