"""Schedules: their formulas, steps and epochs, rounds with rewinding, and ADMM against a loop beside it."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import Pruner, admm, cubic, iterative, linear, one_shot  # noqa: E402


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))  # fmt: skip


def train(model, optimizer, pruner, steps, first=0):
    """Steps first, first + 1, ... of a training that is the same every time."""
    for i in range(first, first + steps):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(i))
        loss = (model(x) - x[:, :4].sin()).square().mean() + pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()


def sparsities(pruner):
    return {name: 1 - mask.double().mean().item() for name, mask in pruner.masks.items()}


@pytest.mark.parametrize(("make", "power"), [(cubic, 3), (linear, 1)])
def test_curves_are_their_formulas(make, power):
    schedule = make(10, 50, every=8, initial=0.2)
    for step in range(70):
        expected = None
        if step in (10, 18, 26, 34, 42, 50):
            expected = 0.9 + (0.2 - 0.9) * (1 - (step - 10) / 40) ** power
        assert schedule(step, 0.9) == (None if expected is None else pytest.approx(expected))
    assert schedule(50, 0.9) == 0.9
    assert schedule.end == 50
    assert make(0, 7, every=5)(7, 0.5) == 0.5
    epochs = make(1, 5, every=0.5, initial=0.2, steps_per_epoch=10)
    assert epochs == make(10, 50, every=5, initial=0.2)
    assert make(1, 2, steps_per_epoch=7) == make(7, 14, every=7)


def test_masks_regrow_until_they_are_frozen():
    schedule = cubic(10, 50, every=8, regrow_until=61)
    assert schedule.end == 61
    chosen = {step: schedule(step, 0.9) for step in range(80) if schedule(step, 0.9) is not None}
    assert list(chosen) == [10, 18, 26, 34, 42, 50, 58, 61]
    assert chosen[50] == chosen[58] == chosen[61] == 0.9

    order = torch.rand(32, 32)
    model = mlp()
    before = model[0].weight.detach().clone()
    pruner = Pruner(
        model, "irregular", 0.5, schedule=cubic(0, 2, every=1, regrow_until=3), include=["0"],
        criterion=lambda *_: order,
    )  # fmt: skip
    pruner.step()
    pruner.step()
    dropped = ~pruner.masks["0.weight"]
    order = 1 - order
    pruner.step()
    back = pruner.masks["0.weight"] & dropped
    assert torch.equal(model[0].weight.detach()[back], before[back])
    assert back.any()
    frozen = pruner.masks["0.weight"]
    order = 1 - order
    pruner.step()
    assert torch.equal(frozen, pruner.masks["0.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cubic(5, 5), "0 <= start < end"),
        (lambda: cubic(-1, 5), "start=-1"),
        (lambda: linear(0, 5, 0), "every must be at least 1"),
        (lambda: cubic(0, 5, 1, 1.0), "initial must be"),
        (lambda: cubic(0, 5, regrow_until=4), "regrow_until=4"),
        (lambda: cubic(0, 5.5), "for epochs give steps_per_epoch"),
        (lambda: cubic(0, 5, steps_per_epoch=0), "steps_per_epoch must be at least 1"),
        (lambda: one_shot(-1), "must not be negative"),
        (lambda: iterative(0, 10), "rounds >= 1"),
        (lambda: iterative(2, 10, rewind_to=11), "rewind_to must be a step from 0 to start=10"),
        (lambda: admm(3, 3), "0 <= start < end"),
        (lambda: admm(0, 3, rho=0), "rho must be positive"),
    ],
)
def test_schedules_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_shot_after_some_steps():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt, schedule=one_shot(2, steps_per_epoch=3))
    for step in range(1, 10):
        train(model, opt, pruner, 1, first=step)
        assert all(s == (0.75 if step >= 6 else 0) for s in sparsities(pruner).values())


def test_rounds_drop_the_same_share_each_time():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, "irregular", 0.875, opt, schedule=iterative(3, every=4))
    seen = []
    for step in range(14):
        train(model, opt, pruner, 1, first=step)
        seen.append(sparsities(pruner)["0.weight"])
    assert seen == [0, 0, 0, *[0.5] * 4, *[0.75] * 4, *[0.875] * 3]


@pytest.mark.parametrize("rewind_to", [0, 2])
def test_rounds_rewind(rewind_to):
    """The lottery ticket: after each round the weights are those of the early step, under the new mask."""
    model = mlp()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = Pruner(
        model, "irregular", 0.75, opt, schedule=iterative(2, every=4, rewind_to=rewind_to), rewindable=False
    )  # fmt: skip
    early = copy.deepcopy(model.state_dict()) if rewind_to == 0 else None
    for step in range(1, 9):
        train(model, opt, pruner, 1, first=step)
        if step == rewind_to:
            early = copy.deepcopy(model.state_dict())
        if step in (4, 8):
            masks = pruner.masks
            assert set(sparsities(pruner).values()) == {0.5 if step == 4 else 0.75}
            for name, value in model.state_dict().items():
                assert torch.equal(value, early[name] * masks.get(name, 1)), name
            assert not opt.state
    # The masks come from the trained weights, not from those rewound to.
    largest = early["0.weight"].abs().flatten().topk(256).indices
    assert not masks["0.weight"].flatten()[largest].all()


def test_admm_is_its_formula():
    """W, Z and U against a loop in which torch differentiates the penalty written out."""
    rho, pattern = 0.5, "gs(8,8)"
    model = mlp()
    twin = copy.deepcopy(model)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, pattern, 0.75, opt, schedule=admm(2, 8, every=3, rho=rho), include=["0"])
    assert pruner.penalty() == 0.0
    weight = twin[0].weight
    z, u = None, torch.zeros(32, 32)
    plain = torch.optim.SGD(twin.parameters(), 0.1)
    for step in range(1, 13):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        penalty = 0.0 if z is None else rho / 2 * (weight - z + u).square().sum()
        loss = (twin(x) - x[:, :4].sin()).square().mean() + penalty
        plain.zero_grad()
        loss.backward()
        plain.step()
        train(model, opt, pruner, 1, first=step)
        with torch.no_grad():
            if step in (2, 5):
                total = weight + u
                chosen = gs.choose_mask(total.abs().numpy(), pattern, 0.75)
                z = total * torch.from_numpy(chosen.mask)
                u = total - z
            if step == 8:
                final = torch.from_numpy(gs.choose_mask(weight.abs().numpy(), pattern, 0.75).mask)
                z = None
            if step >= 8:
                weight *= final
        torch.testing.assert_close(model[0].weight, weight, rtol=1e-5, atol=1e-6)
        assert (sparsities(pruner)["0.weight"] > 0) == (step >= 8)
    assert torch.equal(pruner.masks["0.weight"], final)
    assert pruner.penalty() == 0.0


def test_admm_brings_weights_to_the_pattern():
    def outside(rho):
        model = mlp()
        opt = torch.optim.SGD(model.parameters(), 0.05)
        pruner = Pruner(model, "gs(8,8)", 0.75, opt, schedule=admm(10, 400, every=30, rho=rho))
        train(model, opt, pruner, 399)
        weight = model[0].weight.detach().abs()
        mask = torch.from_numpy(gs.choose_mask(weight.numpy(), "gs(8,8)", 0.75).mask)
        return float(weight[~mask].square().sum() / weight.square().sum())

    assert outside(0.3) < 0.2 * outside(1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        admm(2, 20, every=4, rho=0.1),
        iterative(3, 6, rewind_to=3),
        linear(2, 20, 3, regrow_until=25),
    ],
    ids=["admm", "iterative", "linear"],
)
def test_schedules_resume_bit_for_bit(schedule):
    def start(seed):
        model = mlp(seed)
        opt = torch.optim.Adam(model.parameters(), 1e-2)
        return model, opt, Pruner(model, "gs(8,8)", 0.75, opt, schedule=schedule)

    unbroken = start(0)
    train(*unbroken, 30)
    first = start(0)
    train(*first, 11)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    second = start(1)
    for part, state in zip(second, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, 19, first=11)
    for key, value in unbroken[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[key]), key
    assert all(torch.equal(m, second[2].masks[n]) for n, m in unbroken[2].masks.items())


def test_each_layer_its_own_sparsity():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(
        model, "gs(8,8)", {"0": 0.5, "*": 0.75}, opt, schedule=linear(0, 4, every=2), include=["*"]
    )
    train(model, opt, pruner, 2)
    half = sparsities(pruner)
    assert half["0.weight"] == pytest.approx(0.25, abs=0.01)
    assert half["2.weight"] == pytest.approx(0.375, abs=0.01)
    train(model, opt, pruner, 2)
    assert list(sparsities(pruner).values()) == [0.5, 0.75, 0.75]
    assert [row.asked for row in pruner.report()] == [0.5, 0.75, 0.75]
    with pytest.raises(ValueError, match=r"sparsity has no value for 2\.weight"):
        Pruner(mlp(), "gs(8,8)", {"0": 0.5})
    with pytest.raises(ValueError, match="sparsity names 'fc', which is no weight that is pruned"):
        Pruner(mlp(), "gs(8,8)", {"fc": 0.5, "*": 0.75})


def test_limits_and_normalised_scores_under_one_budget():
    def budget(**options):
        model = mlp()
        with torch.no_grad():
            model[2].weight.mul_(10)
        return sparsities(Pruner(model, "irregular", 0.75, scope="global", **options))

    assert budget()["0.weight"] > 0.95
    assert budget(max_sparsity={"0": 0.8})["0.weight"] == pytest.approx(0.8, abs=1e-3)
    assert budget(min_sparsity={"2*": 0.6})["2.weight"] == pytest.approx(0.6, abs=1e-3)
    normalized = budget(normalize=True)
    assert normalized["0.weight"] == pytest.approx(0.75, abs=0.03)
    # Divided by their root mean squares, both matrices have one threshold.
    model = mlp()
    weights = np.stack([model[i].weight.detach().numpy() for i in (0, 2)])
    sizes = np.sqrt((weights.astype(np.float64) ** 2).mean(axis=(1, 2), keepdims=True))
    scores = np.abs(weights) / sizes
    kept = scores >= np.sort(scores.ravel())[-512]
    assert normalized["0.weight"] == pytest.approx(1 - kept[0].mean(), abs=2e-3)
    with pytest.raises(ValueError, match="under scope"):
        Pruner(mlp(), "irregular", 0.75, normalize=True)
    with pytest.raises(ValueError, match="max_sparsity names 'fc'"):
        budget(max_sparsity={"fc": 0.8})
    with pytest.raises(ValueError, match=r"min_sparsity must be in \[0, 1\], got 60"):
        budget(min_sparsity={"0": 60})


def test_a_layer_that_cannot_be_so_full_waits_alone():
    # 17 columns in 16 banks: a row keeps at most 16 of 17; the other layer need not wait for it.
    model = nn.Sequential(nn.Linear(17, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    pruner = Pruner(model, "gs(16,16)", 0.5, schedule=linear(0, 100, every=1))
    pruner.step()
    pruner.step()
    assert [row.sparsity > 0 for row in pruner.report()] == [False, True]
    for _ in range(98):
        pruner.step()
    assert all(s == pytest.approx(0.5, abs=0.02) for s in sparsities(pruner).values())
