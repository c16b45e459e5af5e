"""Pruner, prune_, convert and GSLinear, held against torch's own layers and plain formulas."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import (  # noqa: E402
    GSLinear,
    Pruner,
    convert,
    cubic,
    matrices,
    prune_,
)

PATTERNS = [
    "irregular",
    "gs(16,16)",
    "gs(8,2)",
    "gs(16,1)+scatter",
    "gs(cpu)",
    "block(1,16)",
    "block(16,1)",
    "bank_balanced(8)",
]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Networks this small only lose by more, all the more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mlp(seed: int = 0, inputs: int = 48, hidden: int = 64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 5)
    )  # fmt: skip


def train(model, optimizer, pruner, steps, first=0):
    """Steps first, first + 1, ... of a training that is the same every time."""
    for i in range(first, first + steps):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(16, 48, generator=generator)
        loss = (model(x) - x[:, :5].sin()).square().mean() + pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()


def same(first, second):
    """Whether two nested structures hold the same bits."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def through_file(thing, **options):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


# ------------------------------------------------------------------- training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_survive_training(pattern, optimizer):
    model = mlp()
    keys = list(model.state_dict())
    opt = OPTIMIZERS[optimizer](model.parameters())
    pruner = Pruner(model, pattern, 0.75, optimizer=opt)
    masks = pruner.masks
    assert list(masks) == ["0.weight", "2.weight"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, opt, pruner, 100)
    assert same(masks, pruner.masks)
    for name, parameter in model.named_parameters():
        if name not in masks:
            continue
        mask = masks[name]
        assert mask.dtype == torch.bool
        assert mask.shape == parameter.shape
        assert torch.count_nonzero(parameter[~mask]) == 0
        assert not torch.equal(parameter[mask], before[name][mask])
        states = [v for v in opt.state[parameter].values() if v.shape == parameter.shape]
        assert states
        assert all(torch.count_nonzero(value[~mask]) == 0 for value in states)
        assert all(torch.count_nonzero(value[mask]) > 0 for value in states)
        module = model[int(name[0])]
        carried = module.gs_pruned["weight"]
        assert np.array_equal(carried.mask, mask.numpy())
        assert gs.check(carried.mask, carried.pattern, row_order=carried.row_order)
    assert list(model.state_dict()) == keys
    assert pruner.finalize() is model
    assert list(model.state_dict()) == keys


def test_one_layer_keeps_the_largest():
    model = mlp()
    weight = model[2].weight.detach().clone()
    prune_(model, "irregular", 0.9, include=["2"])
    keep = round(0.1 * weight.numel())
    largest = weight.abs().flatten().topk(keep).indices
    expected = torch.zeros(weight.numel())
    expected[largest] = weight.flatten()[largest]
    assert torch.equal(model[2].weight.detach().flatten(), expected)


def test_global_scope_keeps_the_largest_of_all():
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(3)
    weights = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    keep = round(0.2 * weights.numel())
    pruner = Pruner(model, "irregular", 0.8, scope="global")
    expected = torch.zeros(weights.numel(), dtype=torch.bool)
    expected[weights.abs().topk(keep).indices] = True
    assert torch.equal(torch.cat([m.flatten() for m in pruner.masks.values()]), expected)


def test_global_scope_with_bundles():
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(3)
    pruner = Pruner(model, "gs(8,2)", 0.8, scope="global")
    kept = [int(mask.sum()) for mask in pruner.masks.values()]
    total = sum(mask.numel() for mask in pruner.masks.values())
    assert round(0.2 * total) - 8 < sum(kept) <= round(0.2 * total)
    assert kept[1] / pruner.masks["2.weight"].numel() > kept[0] / pruner.masks["0.weight"].numel()


def test_global_scope_follows_a_schedule():
    model = mlp()
    opt = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(
        model, "gs(8,2)", 0.9, opt, "global", cubic(0, 20, every=5), min_per_group=1
    )  # fmt: skip
    train(model, opt, pruner, 25)
    kept = sum(int(mask.sum()) for mask in pruner.masks.values())
    keep = round(0.1 * (64 * 48 + 64 * 64))
    assert keep - 8 < kept <= keep
    for name, mask in pruner.masks.items():
        assert gs.check(mask.numpy(), "gs(8,2)")
        assert (mask.reshape(16, -1).sum(dim=1) >= 8).all()
        assert torch.count_nonzero(model.get_parameter(name)[~mask]) == 0


def test_criterion():
    model = mlp()
    seen = []

    def last_columns(name, weight, context):
        seen.append((name, tuple(weight.shape), context.module.weight is weight, context.step))
        return torch.arange(weight.shape[1], dtype=torch.float32).expand_as(weight)

    pruner = Pruner(model, "irregular", 0.5, criterion=last_columns)
    assert seen == [("0.weight", (64, 48), False, 0), ("2.weight", (64, 64), False, 0)]
    mask = pruner.masks["0.weight"]
    assert mask[:, 24:].all()
    assert not mask[:, :24].any()
    with pytest.raises(ValueError, match=r"shape, \(64, 48\) for 0.weight, got \(64,\)"):
        Pruner(mlp(), "irregular", 0.5, criterion=lambda name, w, _: w[:, 0].abs())
    with pytest.raises(ValueError, match="criterion must be"):
        Pruner(mlp(), "irregular", 0.5, criterion="magnitudes")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    model = mlp().to(dtype)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, "gs(8,8)", 0.75, optimizer=opt)
    for _ in range(5):
        model(torch.ones(2, 48, dtype=dtype)).square().sum().backward()
        opt.step()
        pruner.step()
    weight = model[0].weight.detach()
    assert weight.dtype == dtype
    assert torch.equal(weight != 0, (weight != 0) & pruner.masks["0.weight"])
    row = pruner.report().rows[0]
    values = row.dense_nbytes // 4
    assert row.dense_nbytes == weight.numel() * dtype.itemsize
    assert values < row.nbytes < 2 * values


def test_parameters_may_be_replaced():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, "gs(8,8)", 0.75, optimizer=opt)
    model.load_state_dict(
        {k: torch.ones_like(v) for k, v in model.state_dict().items()}, assign=True
    )
    pruner.step()
    assert torch.equal(model[0].weight.detach(), pruner.masks["0.weight"].float())


def test_compiled_model_keeps_its_masks():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(compiled, "gs(8,8)", 0.75, optimizer=opt)
    train(compiled, opt, pruner, 3)
    assert list(pruner.masks) == ["0.weight", "2.weight"]  # the names of the model itself
    for name, mask in pruner.masks.items():
        assert torch.count_nonzero(model.get_parameter(name)[~mask]) == 0


# ------------------------------------------------------------------- schedule


def test_gradual_pruning_follows_the_schedule():
    model = mlp()
    opt = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(model, "gs(16,16)", 0.9, optimizer=opt, schedule=cubic(5, 25, every=10))
    for step in range(1, 31):
        before = pruner.masks
        train(model, opt, pruner, 1, first=step)
        changed = not same(before, pruner.masks)
        assert changed == (step in (15, 25))  # at step 5 the sparsity is 0
        reached = 0 if step < 15 else (0.9 - 0.9 / 8 if step < 25 else 0.9)
        for name, mask in pruner.masks.items():
            keep = round((1 - reached) * mask.numel())
            assert keep - 16 < int(mask.sum()) <= keep
            assert torch.count_nonzero(model.get_parameter(name)[~mask]) == 0


def test_a_masked_weight_comes_back_with_its_value():
    model = nn.Linear(16, 16)
    before = model.weight.detach().clone()
    order = torch.rand(16, 16)
    pruner = Pruner(
        model, "irregular", 0.5, schedule=cubic(0, 2, every=1, initial=0.4), criterion=lambda *_: order
    )  # fmt: skip
    held = pruner.masks["weight"]
    assert int(held.sum()) == round(0.6 * 256)
    assert torch.equal(model.weight.detach(), before * held)
    order = 1 - order  # what was worst is best now
    dropped = ~held
    with torch.no_grad():
        model.weight[~held] = 7.0  # as an optimiser would: it must not matter
    pruner.step()
    back = pruner.masks["weight"] & dropped
    assert back.any()
    weights = model.weight.detach()
    assert not (weights == 7.0).any()
    assert torch.count_nonzero(weights[~pruner.masks["weight"]]) == 0
    assert torch.equal(weights[back], before[back])
    pruner.step()
    order = 1 - order
    with torch.no_grad():
        model.weight[~pruner.masks["weight"]] = float("nan")  # not even this may stay
    final = pruner.masks["weight"]
    pruner.step()
    assert torch.equal(final, pruner.masks["weight"])
    assert torch.count_nonzero(model.weight[~final]) == 0


def test_uneven_banks_wait_until_the_sparsity_is_possible():
    # 17 columns in 16 banks: a row keeps at most 16, so 32 of 544 must go; at most 15 fewer may be kept.
    model = nn.Linear(17, 32)
    pruner = Pruner(model, "gs(16,16)", 0.5, schedule=cubic(0, 400, every=1))
    waited = 0
    for _ in range(400):
        pruner.step()
        mask = pruner.masks["weight"]
        waited += bool(mask.all())
        assert mask.all() or gs.check(mask.numpy(), "gs(16,16)")
    assert waited == sum(
        544 - 512 - 16 >= 544 - round(544 * (1 - cubic(0, 400, every=1)(t, 0.5)))
        for t in range(1, 401)
    )
    assert 272 - 16 < int(mask.sum()) <= 272


def test_resume_is_bit_for_bit():
    def start(seed):
        model = mlp(seed)
        opt = OPTIMIZERS["adam"](model.parameters())
        schedule = cubic(2, 22, every=4)
        return model, opt, Pruner(model, "gs(16,1)+scatter", 0.9, opt, schedule=schedule)

    model, opt, pruner = start(1)
    train(model, opt, pruner, 30)

    first, first_opt, first_pruner = start(1)
    train(first, first_opt, first_pruner, 13)
    saved = through_file(
        {"model": first.state_dict(), "opt": first_opt.state_dict(), "pruner": first_pruner.state_dict()},
        weights_only=True,
    )  # fmt: skip
    again, again_opt, again_pruner = start(2)
    again.load_state_dict(saved["model"])
    again_opt.load_state_dict(saved["opt"])
    again_pruner.load_state_dict(saved["pruner"])
    assert same(again_pruner.masks, first_pruner.masks)
    train(again, again_opt, again_pruner, 17, first=13)

    assert same(model.state_dict(), again.state_dict())
    assert same(opt.state_dict()["state"], again_opt.state_dict()["state"])
    assert same(pruner.state_dict(), again_pruner.state_dict())
    assert same(pruner.rewind().state_dict(), again_pruner.rewind().state_dict())


@pytest.mark.parametrize("schedule", [None, cubic(0, 20, every=5, initial=0.5), cubic(3, 20)])
@pytest.mark.parametrize("order", ["model first", "between", "last"])
def test_a_checkpoint_loads_in_any_order(schedule, order):
    torch.manual_seed(0)
    model = mlp(1)
    opt = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(model, "gs(16,1)+scatter", 0.9, optimizer=opt, schedule=schedule)
    train(model, opt, pruner, 7)
    model_state, pruner_state = copy.deepcopy((model.state_dict(), pruner.state_dict()))
    again = mlp(2)
    if order == "model first":
        again.load_state_dict(model_state)
    other = Pruner(again, "gs(16,1)+scatter", 0.9, schedule=schedule)
    if order == "between":
        again.load_state_dict(model_state)
    other.load_state_dict(pruner_state)
    if order == "last":
        again.load_state_dict(model_state)
    other.apply()
    assert same(again.state_dict(), model_state)
    assert same(other.masks, pruner.masks)


def test_a_checkpoint_of_before_takes_back_what_was_pruned_since():
    model = mlp(1)
    opt = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(model, "gs(16,16)", 0.9, optimizer=opt, schedule=cubic(10, 60, every=10))
    states = [copy.deepcopy((model.state_dict(), pruner.state_dict()))]
    for _ in range(2):
        train(model, opt, pruner, 25)
        states.append(copy.deepcopy((model.state_dict(), pruner.state_dict())))
    for model_state, pruner_state in reversed(states):
        model.load_state_dict(model_state)
        pruner.load_state_dict(pruner_state)
        assert same(model.state_dict(), model_state)
        for name, mask in pruner.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
    assert all(mask.all() for mask in pruner.masks.values())
    assert pruner.report().sparsity == 0
    assert not any(hasattr(module, "gs_pruned") for module in model.modules())
    with pytest.raises(ValueError, match="no state of a Pruner"):
        pruner.load_state_dict({})


def test_resume_in_any_order_loses_no_weight():
    model = mlp(1)
    pruner = Pruner(model, "gs(16,1)+scatter", 0.9)
    with torch.no_grad():  # as after training: other magnitudes, so other masks would be chosen
        for name, mask in pruner.masks.items():
            model.get_parameter(name).copy_(torch.randn(mask.shape) * mask)
    for model_first in (True, False):
        again = mlp(2)
        if model_first:
            again.load_state_dict(model.state_dict())
        other = Pruner(again, "gs(16,1)+scatter", 0.9)
        other.load_state_dict(pruner.state_dict())
        if not model_first:
            again.load_state_dict(model.state_dict())
        other.step()
        assert same(again.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="other weights or patterns"):
        Pruner(mlp(), "gs(8,8)", 0.9).load_state_dict(pruner.state_dict())


def test_rewind():
    model = mlp()
    initial = copy.deepcopy(model.state_dict())
    opt = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(model, "gs(16,16)", 0.9, optimizer=opt)
    train(model, opt, pruner, 10)
    masks = pruner.masks
    assert pruner.rewind() is model
    assert same(masks, pruner.masks)
    assert not opt.state
    for name, value in model.state_dict().items():
        assert torch.equal(value, initial[name] * masks[name] if name in masks else initial[name])
    with pytest.raises(RuntimeError, match="rewindable=False"):
        Pruner(mlp(), "gs(16,16)", 0.9, rewindable=False).rewind()


def test_finalize(caplog):
    model = mlp()
    pruner = Pruner(model, "gs(16,16)", 0.9, schedule=cubic(0, 10, every=2))
    for _ in range(4):
        pruner.step()
    masks = pruner.masks
    with caplog.at_level(logging.WARNING, "gspattern"):
        assert pruner.finalize() is model
    assert "before the schedule's end at step 10" in caplog.text
    assert same(masks, pruner.masks)
    with pytest.raises(RuntimeError, match="finalized"):
        pruner.step()
    with pytest.raises(RuntimeError, match="finalized"):
        pruner.rewind()


# -------------------------------------------------------------- which weights


def pruned_names(model, **options):
    return list(Pruner(model, "irregular", 0.5, **options).masks)


def test_include_and_exclude(caplog):
    names = ["0.weight", "2.weight", "4.weight"]
    with caplog.at_level(logging.INFO, "gspattern"):
        assert pruned_names(mlp()) == names[:2]
    assert "4.weight stays dense: the last Linear" in caplog.text
    assert pruned_names(mlp(), include=["*"]) == names
    assert pruned_names(mlp(), include=["*"], exclude=["2"]) == [names[0], names[2]]
    assert pruned_names(mlp(), include=["[24].weight"]) == names[1:]
    assert pruned_names(mlp(), exclude=["0.weight"]) == [names[1]]
    assert pruned_names(nn.Linear(8, 8)) == ["weight"]
    for options, message in [
        ({"include": ["fc1"]}, "include names 'fc1'.* there are: 0.weight, 2.weight, 4.weight"),
        ({"exclude": ["1"]}, "exclude names '1'"),
        ({"include": "*"}, r"did you mean \[\"\*\"\]"),
        ({"exclude": ["*"]}, "nothing to prune"),
    ]:
        with pytest.raises(ValueError, match=message):
            pruned_names(mlp(), **options)
    with pytest.raises(ValueError, match=r"nothing to prune.*include="):
        pruned_names(nn.Sequential(nn.Linear(8, 8)))


def test_weights_shared_with_an_embedding_stay_dense():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(32, 16)
            self.project = nn.Linear(16, 32)
            self.project.weight = self.embed.weight
            self.one = nn.Linear(16, 16)
            self.two = nn.Linear(16, 16)
            self.two.weight = self.one.weight
            self.last = nn.Linear(16, 4)

    model = Tied()
    assert pruned_names(model) == ["one.weight"]
    assert model.one.gs_pruned["weight"] is model.two.gs_pruned["weight"]
    assert not hasattr(model.project, "gs_pruned")


def test_pattern_for_each_layer():
    model = mlp()
    pruner = Pruner(model, {"0": "block(1,16)", "*": "gs(16,16)"}, 0.75, include=["*"])
    assert [row.pattern for row in pruner.report()] == ["block(1,16)", "gs(16,16)", "gs(16,16)"]
    pruner = Pruner(mlp(), {"2.weight": "2:4"})
    assert list(pruner.masks) == ["2.weight"]
    windows = pruner.masks["2.weight"].reshape(64, 16, 4).sum(dim=2)
    assert (windows == 2).all()
    with pytest.raises(ValueError, match="none of the weights has a pattern"):
        Pruner(mlp(), {"4": "gs(16,16)"}, 0.5)
    with pytest.raises(ValueError, match="sparsity is needed"):
        Pruner(mlp(), {"0": "2:4", "2": "gs(16,16)"})


def test_auto():
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 16), nn.Linear(16, 4))
    report = Pruner(model, "auto", 0.9, include=["*"]).report()
    assert [row.name for row in report] == ["0.weight"]  # the others are tiny
    assert report.rows[0].pattern in ("gs(16,16)", "gs(16,1)+scatter")
    reasons = {row.name: row.reason for row in report.dense}
    for name in ("1.weight", "2.weight"):  # 16 x 128 and 4 x 16
        assert reasons[name] == "auto leaves weights of less than 4,096 elements dense"
    # Rows of one size, but all in the same bank: only the vertical pattern can keep them.
    model = nn.Linear(64, 64)
    with torch.no_grad():
        model.weight.fill_(1e-3)
        model.weight[torch.arange(64), torch.arange(64) % 16] = 1
        model.weight[torch.arange(64), torch.arange(64) % 16 + 16] = 1
    assert Pruner(model, "auto", 0.96).report().rows[0].pattern == "gs(16,1)+scatter"
    # All of the weight in 4 of 64 rows: the horizontal pattern keeps just these, while the vertical one must keep as
    # much of 16 rows, in whatever order.
    model = nn.Linear(64, 64)
    with torch.no_grad():
        model.weight.fill_(1e-3)
        model.weight[::16] = 1
    row = Pruner(model, "auto", 1 - 4 / 64).report().rows[0]
    assert (row.pattern, row.kept) == ("gs(16,16)", 1)


def test_auto_at_its_limits():
    # 4,096 weights are enough and 4,095 are not; 16 inputs are enough and 15 are not.
    model = nn.Sequential(nn.Linear(16, 256), nn.Linear(63, 65), nn.Linear(15, 280))
    report = Pruner(model, "auto", 0.5, include=["*"]).report()
    assert [row.name for row in report] == ["0.weight"]
    reasons = {row.name: row.reason for row in report.dense}
    assert reasons["1.weight"] == "auto leaves weights of less than 4,096 elements dense"
    assert reasons["2.weight"] == "auto needs 16 inputs, one for each bank, and there are 15"
    with pytest.raises(ValueError, match="none of the weights has a pattern"):
        Pruner(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "auto", 0.5, include=["*"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gs(128,128)", 0.9), gs.PatternError, "0.weight: .*128"),
        (("gs(16,16)", 90), ValueError, "did you mean 0.9"),
        (("gs(16,16)", 0.9, None, "layers"), ValueError, "scope must be"),
        (({}, 0.9), ValueError, "empty dict"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        Pruner(model, *arguments)
    assert same(before, model.state_dict())


def test_what_cannot_be_reached_is_found_at_once():
    with pytest.raises(gs.PatternError, match="weight"):
        Pruner(nn.Linear(17, 32), "gs(16,16)", 0.01, schedule=cubic(0, 1000))


# ----------------------------------------------------------- what modules carry


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: through_file(model, weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("converted", [False, True])
def test_copies_carry_everything(duplicate, converted):
    model = prune_(mlp(), "gs(16,1)+scatter", 0.75)
    if converted:
        model = convert(model, keep_dense=False)
    twin = duplicate(model)
    x = torch.randn(3, 48)
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
    if converted:
        assert twin[0].matrix.pattern == model[0].matrix.pattern
        assert np.array_equal(twin[0].matrix.to_dense(), model[0].matrix.to_dense())
        return
    mine, its = model[0].gs_pruned["weight"], twin[0].gs_pruned["weight"]
    assert its.pattern == mine.pattern == gs.parse_pattern("gs(16,1)+scatter")
    assert np.array_equal(its.mask, mine.mask)
    assert np.array_equal(its.row_order, mine.row_order)
    prune_(twin, "block(1,16)", 0.9)  # the copy goes its own way
    assert str(model[0].gs_pruned["weight"].pattern) == "gs(16,1)+scatter"
    assert not hasattr(model[4], "gs_pruned")


def test_report():
    model = mlp()
    weight = model[2].weight.detach().abs().numpy()
    pruner = Pruner(model, "gs(16,16)", 0.9)
    report = pruner.report()
    assert len(report) == 2
    row = report.rows[1]
    mask = pruner.masks["2.weight"].numpy()
    count = mask.sum()
    assert (row.name, row.shape, row.pattern, row.asked) == ("2.weight", (64, 64), "gs(16,16)", 0.9)
    assert row.sparsity == pytest.approx(1 - count / 4096)
    best = np.sort(weight.ravel().astype(np.float64))[-count:].sum()
    assert row.kept == pytest.approx(weight[mask].astype(np.float64).sum() / best)
    assert row.empty_rows == (mask.sum(axis=1) == 0).sum()
    # values, one byte of index for each, and where the rows start
    assert row.nbytes == 5 * count + 4 * 65
    assert row.dense_nbytes == 4 * 4096
    assert report.nbytes == sum(r.nbytes for r in report)
    text = str(report)
    assert "2.weight" in text
    assert f"{row.nbytes:,}" in text
    assert any(line.startswith("all") for line in text.splitlines())
    assert "dense: 4.weight, 5 x 64, 1,280 bytes: the last Linear" in text
    assert "dense: 3 vectors: bias" in text
    assert {row.name: row.reason for row in report.dense if "bias" not in row.name} == {
        "4.weight": "the last Linear; include it by name to prune it"
    }
    listed = [row.name for row in report] + [row.name for row in report.dense]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    read = json.loads(report.to_json())
    assert read["pruned"][1]["nbytes"] == row.nbytes
    assert read["dense"][-1] == {"name": "4.bias", "shape": [5], "nbytes": 20, "reason": "bias"}
    assert read["total"]["dense_nbytes"] == 4 * (64 * 48 + 64 * 64)


# -------------------------------------------------------------------- convert


def bound(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """How far two float32 products of the same numbers may be apart, elementwise."""
    eps = torch.finfo(torch.float32).eps
    sizes = x.double().abs() @ layer.weight.detach().double().abs().T
    if layer.bias is not None:
        sizes = sizes + layer.bias.detach().double().abs()
    return 4 * eps * layer.in_features * sizes


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 3, 48), (0, 48)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pattern", [*PATTERNS, "2:4"])
def test_linear(pattern, bias, shape):
    torch.manual_seed(3)
    layer = nn.Linear(48, 37 if pattern != "bank_balanced(8)" else 40, bias=bias)
    prune_(layer, pattern, None if pattern == "2:4" else 0.7)
    compact = GSLinear.from_linear(layer)
    assert compact.matrix.pattern == layer.gs_pruned["weight"].pattern
    assert np.array_equal(compact.matrix.to_dense(), layer.weight.detach().numpy())
    x = torch.randn(shape)
    with torch.no_grad():
        expected = layer.double()(x.double())
        actual = compact(x)
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert ((actual - expected).abs() <= bound(layer, x)).all()


def test_linear_inputs_of_all_kinds():
    layer = prune_(nn.Linear(48, 32), "gs(16,16)", 0.75)
    compact = GSLinear.from_linear(layer)
    x = torch.randn(48, 6)
    with torch.no_grad():
        expected = layer(x.T)
        for given in (
            x.T,
            x.T.contiguous(),
            torch.randn(6, 96).copy_(torch.cat([x.T, x.T], 1))[:, :48],
        ):
            assert ((compact(given) - expected).abs() <= bound(layer, x.T)).all()
        assert compact(x.T.double()).dtype == torch.float64
        half = compact(x.T.bfloat16())
        assert half.dtype == torch.bfloat16
        assert torch.allclose(half.float(), layer(x.T.bfloat16().float()), rtol=0.01, atol=0.01)
        with pytest.raises(ValueError, match="must have 48 elements, got 47"):
            compact(torch.randn(3, 47))
        with pytest.raises(RuntimeError, match="on the CPU"):
            compact(torch.randn(3, 48, device="meta"))


def test_linear_uses_the_threads_of_torch():
    layer = GSLinear.from_linear(prune_(nn.Linear(64, 64), "gs(16,16)", 0.75))
    before = torch.get_num_threads()
    x = torch.randn(5, 64)
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(layer(x))
            assert gs.get_num_threads() == threads
        assert torch.equal(*results)
    finally:
        torch.set_num_threads(before)
        layer(x)


def test_state_of_a_linear():
    layer = GSLinear.from_linear(prune_(nn.Linear(48, 32), "gs(16,1)+scatter", 0.75))
    other = GSLinear.from_linear(prune_(nn.Linear(48, 32), "block(1,16)", 0.5))
    state = through_file(layer.state_dict(), weights_only=True)
    other.load_state_dict(state)
    x = torch.randn(2, 48)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(ValueError, match=r"this layer is \(32, 16\)"):
        GSLinear.from_linear(prune_(nn.Linear(16, 32), "gs(16,16)", 0.5)).load_state_dict(state)


def test_to_dense_is_the_way_back():
    layer = prune_(nn.Linear(48, 32), "gs(16,1)+scatter", 0.75)
    with torch.no_grad():
        layer.weight[torch.from_numpy(layer.gs_pruned["weight"].mask).nonzero()[0].unbind()] = 0
    back = GSLinear.from_linear(layer).to_dense()
    assert same(layer.state_dict(), back.state_dict())
    assert np.array_equal(back.gs_pruned["weight"].mask, layer.gs_pruned["weight"].mask)
    assert back.weight.requires_grad
    again = GSLinear.from_linear(back)
    assert np.array_equal(again.matrix.to_dense(), layer.weight.detach().numpy())


def test_convert():
    model = mlp()
    opt = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(model, "gs(16,16)", 0.75, optimizer=opt)
    train(model, opt, pruner, 5)
    before = copy.deepcopy(model.state_dict())
    fast = convert(model, keep_dense=False)
    assert same(before, model.state_dict())
    assert [type(module) for module in fast] == [GSLinear, nn.ReLU, GSLinear, nn.ReLU, nn.Linear]
    x = torch.randn(9, 48)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
    assert "pattern=gs(16,16)" in repr(fast)
    assert type(convert(model, keep_dense=True)[0]) is nn.Linear
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(ValueError, match=r"0: .* weights outside the mask"):
        convert(model, keep_dense=False)
    assert type(convert(model, pruner, keep_dense=False)[0]) is GSLinear
    with pytest.raises(ValueError, match="another model"):
        convert(mlp(), pruner)
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(mlp())
    with pytest.raises(ValueError, match="keep_dense"):
        convert(model, keep_dense="no")


def test_layers_that_others_look_into_stay_dense(caplog):
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    model = prune_(attention, "gs(16,16)", 0.75, include=["out_proj"])
    x = torch.randn(2, 3, 32)
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(model)
    both = prune_(nn.Sequential(nn.Linear(32, 32), attention), "gs(16,16)", 0.75, include=["*"])
    with caplog.at_level(logging.INFO, "gspattern"):
        fast = convert(both, keep_dense=False)
    assert "1.out_proj stays dense: NonDynamicallyQuantizableLinear" in caplog.text
    assert type(fast[0]) is GSLinear
    with torch.no_grad():
        assert torch.equal(fast[1](x, x, x)[0], both[1](x, x, x)[0])


def test_converted_models_compile():
    fast = convert(prune_(mlp(), "gs(16,16)", 0.75), keep_dense=False)
    compiled = torch.compile(fast, backend="eager")
    x = torch.randn(3, 48)
    with torch.no_grad():
        assert torch.equal(compiled(x), fast(x))


def test_convert_what_was_pruned_elsewhere():
    model = mlp()
    with torch.no_grad():
        for i in (0, 2):
            model[i].weight[torch.rand(model[i].weight.shape) < 0.7] = 0
    fast = convert(model, pattern="irregular", keep_dense=False)
    assert [type(module) for module in fast][::2] == [GSLinear, GSLinear, nn.Linear]
    assert np.array_equal(fast[0].matrix.to_dense(), model[0].weight.detach().numpy())
    named = convert(model, pattern={"4": "irregular"}, keep_dense=False)
    assert [type(module) for module in named][::2] == [nn.Linear, nn.Linear, GSLinear]


def test_convert_a_model_that_is_one_layer_and_one_that_is_shared():
    assert type(convert(prune_(nn.Linear(32, 32), "gs(16,16)", 0.75), keep_dense=False)) is GSLinear
    shared = nn.Linear(32, 32)
    model = prune_(nn.Sequential(shared, shared, nn.Linear(32, 4)), "gs(16,16)", 0.75)
    fast = convert(model, keep_dense=False)
    assert fast[0] is fast[1]
    assert type(fast[1]) is GSLinear
    # What is shared is there once.
    assert sorted(matrices(fast)) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_convert_keeps_dense_what_is_faster_dense(caplog):
    torch.manual_seed(0)
    # 2 % sparse in float64, which only scalar kernels multiply: dense wins; 99 % and large: it loses.
    slow = prune_(nn.Linear(256, 256).double(), "irregular", 0.02)
    with caplog.at_level(logging.INFO, "gspattern"):
        kept = convert(slow, example_inputs=torch.randn(256, 256, dtype=torch.float64))
    assert type(kept) is nn.Linear
    assert "stays dense" in caplog.text
    quick = prune_(nn.Linear(2048, 2048), "gs(16,16)", 0.99)
    assert type(convert(quick)) is GSLinear


def test_convert_measures_with_the_example(caplog):
    model = prune_(mlp().train(), "gs(16,16)", 0.75)
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "gspattern"):
        convert(model, example_inputs=(torch.randn(11, 48, generator=torch.Generator()),))
    assert "for an input of (11, 48)" in caplog.text
    assert "for an input of (11, 64)" in caplog.text
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16", "int8"])
def test_convert_to_other_dtypes(dtype):
    model = prune_(mlp(), "gs(16,16)", 0.75)
    fast = convert(model, dtype=dtype, keep_dense=False)
    assert str(fast[0].matrix.dtype) == dtype
    weight = model[0].weight.detach()
    error = torch.from_numpy(fast[0].matrix.astype("float64").to_dense()) - weight
    step = {"float64": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.51 / 127}[dtype]
    size = weight.abs().amax(dim=1, keepdim=True) if dtype == "int8" else weight.abs()
    assert (error.abs() <= step * size).all()
    x = torch.randn(4, 48)
    with torch.no_grad():
        assert (fast(x) - model(x)).abs().max() <= 20 * max(step, 1e-6)


def test_matrices_go_to_a_file(tmp_path):
    model = prune_(mlp(), "gs(16,1)+scatter", 0.75)
    model.register_buffer("running", torch.arange(3).to(torch.bfloat16))
    fast = convert(model, keep_dense=False)
    tensors = matrices(fast)
    assert sorted(tensors) == sorted(model.state_dict())
    gs.save_file(tensors, tmp_path / "net.safetensors")
    loaded = gs.load_file(tmp_path / "net.safetensors")
    assert loaded["running"].dtype == ml_dtypes.bfloat16
    for name, value in model.state_dict().items():
        array = loaded[name] if isinstance(loaded[name], np.ndarray) else loaded[name].to_dense()
        assert np.array_equal(array.astype(np.float32), value.float().numpy())
    assert str(loaded["0.weight"].pattern) == "gs(16,1)+scatter"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("mask", [False, True])
def test_transformer_layers_run_after_they_were_converted(mask):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    prune_(model, "gs(16,16)", 0.8, include=["*linear1", "*linear2"])
    fast = convert(model, keep_dense=False)
    x = torch.randn(3, 9, 64)
    padding = torch.arange(9) >= torch.tensor([[9], [5], [7]]) if mask else None
    with torch.no_grad():
        y, expected = (m(x, src_key_padding_mask=padding) for m in (fast, model))
    used = slice(None) if padding is None else ~padding
    torch.testing.assert_close(y[used], expected[used], rtol=1e-4, atol=1e-5)


def test_a_global_budget_can_spare_every_layer(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
    with caplog.at_level(logging.WARNING, "gspattern"):
        Pruner(copy.deepcopy(model), "gs(16,16)", 0.8, include=["*"], scope="global")
    assert "1.weight keeps nothing" in caplog.text
    assert "max_sparsity" in caplog.text
    pruner = Pruner(model, "gs(16,16)", 0.8, include=["*"], scope="global", max_sparsity=0.9)
    assert {n: 1 - m.double().mean().item() for n, m in pruner.masks.items()} == {
        "0.weight": pytest.approx(0.7, abs=0.01),
        "1.weight": pytest.approx(0.9, abs=0.01),
    }
    with pytest.raises(ValueError, match="max_sparsity"):
        Pruner(model, "gs(16,16)", 0.8, include=["*"], max_sparsity=0.9)


def test_arguments_of_the_wrong_kind():
    model = mlp()
    with pytest.raises(TypeError, match="made already"):
        Pruner(model, "gs(16,16)", 0.8, optimizer=torch.optim.Adam)
    with pytest.raises(TypeError, match=r"cubic\(start, end\)"):
        Pruner(model, "gs(16,16)", 0.8, schedule=(0, 10))
    with pytest.raises(ValueError, match="trains none"):
        Pruner(model, "gs(16,16)", 0.8, optimizer=torch.optim.SGD(mlp().parameters(), 0.1))
    pruner = Pruner(model, "gs(16,16)", 0.8, schedule=cubic(5, 10))
    assert "step 0 of 10" in repr(pruner)
    with pytest.raises(ValueError, match="has not begun to prune"):
        convert(model, pruner)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(ValueError, match=r"was made under torch.inference_mode\(\)"):
        Pruner(model, "gs(16,16)", sparsity=0.5)
    outside = mlp()
    outside.load_state_dict(model.state_dict())
    Pruner(outside, "gs(16,16)", sparsity=0.5)
