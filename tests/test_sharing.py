"""Training in several processes: masks agree, survive restarts, and are those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

if not torch.distributed.is_available():  # pragma: no cover
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from gspattern.torch import Pruner, cubic  # noqa: E402
from gspattern.torch.sharing import Ranks, is_sharded, local, placed_like, unwrapped, whole  # noqa: E402

SCRIPT = Path(__file__).parent / "torchrun" / "train_sharded.py"


CASES = ["ddp-magnitude", "ddp-taylor", "ddp-wanda", "fsdp-magnitude", "fsdp-taylor"]


def torchrun(folder, *arguments, restarts=0):
    """Run the script in two processes; what they wrote."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"--max-restarts={restarts}", str(SCRIPT), arguments[0], str(folder), *arguments[1:],
    ]  # fmt: skip
    root = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            # Else processes that are started again may find the addresses of the dead in the store.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {file.stem: torch.load(file) for file in folder.glob("*-[01].pt")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agree")
    return folder, torchrun(folder, "agree", *CASES)


def one_process():
    """The same training in this process: gradients of the two batches are averaged."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import train_sharded as script
    finally:
        sys.path.pop(0)
    model = script.make()
    opt = torch.optim.AdamW(model.parameters(), 1e-2)
    pruner = Pruner(model, script.PATTERN, 0.75, opt, schedule=cubic(1, 7, every=2, initial=0.25))
    for step in range(script.STEPS):
        opt.zero_grad()
        for rank in (0, 1):
            x, y = script.batch(step, rank)
            ((model(x) - y).square().mean() / 2).backward()
        opt.step()
        pruner.step()
    return model, pruner


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )


@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree(written, case):
    first, second = (written[1][f"{case}-{rank}"] for rank in (0, 1))
    assert same(first["model"], second["model"])
    assert same(first["masks"], second["masks"])
    for name, mask in first["masks"].items():
        assert 0.74 < 1 - mask.double().mean() < 0.8
        assert torch.count_nonzero(first["model"][name][~mask]) == 0


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(written, kind):
    two = written[1][f"{kind}-magnitude-0"]
    model, pruner = one_process()
    assert two["model"].keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        # Sums of gradients are rounded in another order, which Adam makes the most of in small gradients.
        torch.testing.assert_close(two["model"][name], value, rtol=2e-2, atol=2e-3)
    for name, mask in pruner.masks.items():
        assert (mask == two["masks"][name]).double().mean() > 0.99


def test_a_killed_process_is_restarted_and_goes_on(written, tmp_path):
    """torchrun starts both again, and they end where those end that were never stopped."""
    results = torchrun(tmp_path, "crash", restarts=1)
    for rank in (0, 1):
        result = results[f"crash-{rank}"]
        assert result["first"] == 6  # it did start from the checkpoint
        assert same(result["model"], written[1]["ddp-magnitude-0"]["model"])
        assert same(result["masks"], written[1]["ddp-magnitude-0"]["masks"])


def test_pruners_that_differ_are_refused_everywhere(written):
    for rank in (0, 1):
        assert "the weights to prune of process 0 and of process 1 are not the same" in (
            written[0] / f"differ-{rank}.txt"
        ).read_text("utf-8")


def test_processes_whose_scores_differ_choose_the_same_masks(written):
    masks = [torch.load(written[0] / f"own-scores-{rank}.pt") for rank in (0, 1)]
    assert masks[0]
    assert same(*masks)


def test_a_single_process_shares_nothing():
    ranks = Ranks()
    tensor = torch.randn(3)
    assert ranks.count == 1
    assert ranks.mean(tensor) is tensor
    assert ranks.from_first(lambda: 5) == 5
    ranks.check("anything", [b"x"])
    assert not is_sharded(tensor)
    assert local(tensor) is tensor
    assert whole(tensor) is tensor
    assert torch.equal(placed_like(tensor, tensor), tensor)
    layer = torch.nn.Linear(2, 2)
    assert unwrapped(torch.optim.swa_utils.AveragedModel(layer)).weight.shape == (2, 2)
    assert unwrapped(torch.compile(torch.nn.DataParallel(layer), backend="eager")) is layer
