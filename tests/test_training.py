"""Masks that cannot be lost: whatever steps, copies, casts, saves and resumes, pruned weights are zero."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import clip_grad_norm_  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import Pruner, cubic, one_shot, prune_  # noqa: E402


class Net(nn.Module):
    """A layer of every type that is pruned, on sequences [batch, time, 16]."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv1d(16, 16, 3, padding=1)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.cell = nn.GRUCell(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        y = self.norm(self.conv(self.stem(x.transpose(1, 2)))).transpose(1, 2)
        y = self.gru(self.lstm(y)[0])[0]
        y = self.attention(y, y, y, need_weights=False)[0]
        return self.head(torch.tanh(self.linear(self.cell(y[:, -1], y[:, 0]))))


PRUNED = 10  # weights of it
ENDS = ["stem", "head"]
PATTERN = {"conv": "gs(8,2)", "linear": "gs(16,1)+scatter", "*": "gs(8,8)"}


class Lion(torch.optim.Optimizer):
    """An optimiser of the user's own, which writes through `.data` (arXiv 2302.06675)."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("momentum", torch.zeros_like(p))
                p.data.add_((0.9 * m + 0.1 * p.grad).sign(), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd-foreach": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, weight_decay=1e-2),
    "adam-foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "own": Lion,
}


def data(i):
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(4, 6, 16, generator=generator)
    return x, x.mean(dim=1)[:, :4]


def loss_of(model, i):
    x, y = data(i)
    return (model(x) - y).square().mean()


def all_zero(model, masks):
    return all(torch.count_nonzero(model.get_parameter(n)[~m]) == 0 for n, m in masks.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_are_zero_after_every_optimizer_step(optimizer):
    """After opt.step() itself, before pruner.step(); and the state, so that momentum brings nothing back."""
    model = Net()
    keys = {key: value.shape for key, value in model.state_dict().items()}
    opt = OPTIMIZERS[optimizer](model.parameters())
    schedule = cubic(2, 14, every=3, initial=0.25)
    pruner = Pruner(model, PATTERN, 0.75, opt, schedule=schedule, include=["*"], exclude=ENDS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for i in range(20):
        for part in (0, 100):  # gradients of two batches are summed up
            (loss_of(model, i + part) / 2).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        masks = pruner.masks
        assert len(masks) == PRUNED
        assert all_zero(model, masks)
        opt.zero_grad()
        pruner.step()
        scheduler.step()
        masks = pruner.masks
        assert all_zero(model, masks)
        for name, mask in masks.items():
            for value in opt.state[model.get_parameter(name)].values():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    assert torch.count_nonzero(value[~mask]) == 0
    for name, mask in masks.items():
        assert 0.74 < 1 - mask.double().mean() < 0.8
        moved = model.get_parameter(name).detach() != start[name]
        assert moved[mask].double().mean() > 0.9
    assert {key: value.shape for key, value in model.state_dict().items()} == keys
    # What recurrent layers hand to their kernels are the parameters themselves still.
    flat = {w.data_ptr() for w in [*model.lstm._flat_weights, *model.gru._flat_weights]}
    own = {p.data_ptr() for layer in (model.lstm, model.gru) for p in layer.parameters()}
    assert flat == own


def test_without_the_hook_masks_would_be_lost():
    """What the test above relies on: an optimiser that the Pruner does not know does bring weights back."""
    model = Net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = Pruner(model, "gs(8,8)", 0.75)
    loss_of(model, 0).backward()
    opt.step()
    assert not all_zero(model, pruner.masks)
    pruner.step()
    assert all_zero(model, pruner.masks)


def test_a_closure_and_lbfgs():
    model = Net()
    opt = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt)

    def closure():
        opt.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
        assert all_zero(model, pruner.masks)
        pruner.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_gradient_scaler(dtype):
    model = Net()
    opt = torch.optim.AdamW(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt, schedule=cubic(0, 6, every=2))
    for i in range(10):
        opt.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, i)
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        assert all_zero(model, pruner.masks)
        scaler.update()
        pruner.step()
        assert all_zero(model, pruner.masks)
    assert all(0.74 < 1 - m.double().mean() < 0.8 for m in pruner.masks.values())


def test_a_step_that_the_scaler_skips_changes_no_mask():
    model = Net()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt)
    masks, before = pruner.masks, copy.deepcopy(model.state_dict())
    (scaler.scale(loss_of(model, 0)) * float("inf")).backward()
    scaler.step(opt)
    pruner.step()
    assert all_zero(model, masks)
    assert all(torch.equal(m, pruner.masks[n]) for n, m in masks.items())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float64])
def test_models_may_be_cast(to):
    model = Net()
    pruner = Pruner(model, PATTERN, 0.75, schedule=one_shot(1), include=["*"], exclude=ENDS)
    pruner.step()
    masks = pruner.masks
    model.to(to)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    pruner.optimizer = opt
    x, y = data(0)
    (model(x.to(to)) - y.to(to)).square().mean().backward()
    opt.step()
    pruner.step()
    assert all(p.dtype == to for p in model.parameters())
    assert all_zero(model, masks)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "save"])
def test_copies_train_on_under_a_pruner_of_their_own(copied):
    model = Net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt)
    masks = pruner.masks
    if copied == "deepcopy":
        twin = copy.deepcopy(model)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    twin_opt = torch.optim.Adam(twin.parameters(), 1e-2)
    twin_pruner = Pruner.from_zeros(twin, "gs(8,8)", twin_opt)
    assert all(torch.equal(m, twin_pruner.masks[n]) for n, m in masks.items())
    for i in range(3):
        twin_opt.zero_grad()
        loss_of(twin, i).backward()
        twin_opt.step()
        assert all_zero(twin, masks)
        twin_pruner.step()
    assert not torch.equal(twin.linear.weight, model.linear.weight)
    assert copy.deepcopy(opt).state_dict()["param_groups"] == opt.state_dict()["param_groups"]


def test_moving_averages_are_masked_on_demand():
    model = Net()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    pruner = Pruner(model, "gs(8,8)", 0.75, opt, schedule=cubic(0, 6, every=2))
    for i in range(6):
        opt.zero_grad()
        loss_of(model, i).backward()
        opt.step()
        pruner.step()
        average.update_parameters(model)
    masks = pruner.masks
    assert not all_zero(average.module, masks)  # it remembers weights that were pruned later
    kept = {n: average.module.get_parameter(n)[m].clone() for n, m in masks.items()}
    pruner.apply(average)
    assert all_zero(average.module, masks)
    assert all(torch.equal(average.module.get_parameter(n)[masks[n]], v) for n, v in kept.items())
    assert all_zero(model, masks)


def test_a_bare_checkpoint_with_zeros():
    model = Net()
    prune_(model, PATTERN, 0.75, include=["*"], exclude=ENDS)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = Net(seed=1)
    fresh.load_state_dict(torch.load(buffer))
    opt = torch.optim.Adam(fresh.parameters(), 1e-2)
    pruner = Pruner.from_zeros(fresh, "irregular", opt)
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert set(pruner.masks) == matrices - {"stem.weight", "head.weight"}
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, model.get_parameter(name) != 0)
    reasons = {row.name: row.reason for row in pruner.report().dense}
    assert "stem.weight" in reasons
    for i in range(3):
        opt.zero_grad()
        loss_of(fresh, i).backward()
        opt.step()
        assert all_zero(fresh, pruner.masks)
        pruner.step()
    # Zeros that are no valid mask: the fewest of them become trainable.
    model = nn.Linear(32, 32)
    with torch.no_grad():
        model.weight.zero_()[3, 5] = 1.0
    pruner = Pruner.from_zeros(model, "gs(8,8)")
    mask = pruner.masks["weight"]
    assert mask[3, 5]
    assert int(mask.sum()) == 8
    assert gs.check(mask.numpy(), "gs(8,8)")
    assert pruner.report().rows[0].asked is None
    with pytest.raises(ValueError, match="no weight of this model is at least half zeros"):
        Pruner.from_zeros(Net(), "gs(8,8)")


def test_tied_weights_are_masked_once_for_all():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.last(self.two(torch.tanh(self.one(x.mean(dim=1)))))

    model = Tied()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = Pruner(model, "gs(8,8)", 0.75, opt)
    for i in range(3):
        opt.zero_grad()
        loss_of(model, i).backward()
        opt.step()
        pruner.step()
    assert list(pruner.masks) == ["one.weight"]
    assert model.two.weight is model.one.weight
    assert all_zero(model, pruner.masks)


@pytest.mark.filterwarnings("ignore")  # those of torch's own compiler
def test_compiled_models_and_optimizer_steps_keep_masks():
    """With the back end that needs no C++ compiler."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 4))
    opt = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    compiled = torch.compile(model, backend="aot_eager")
    pruner = Pruner(compiled, "gs(8,8)", 0.75, opt, schedule=cubic(0, 4, every=2))
    step = torch.compile(opt.step, backend="aot_eager")
    for i in range(6):
        x, y = data(i)
        opt.zero_grad()
        (compiled(x.mean(dim=1)) - y).square().mean().backward()
        step()
        assert all_zero(model, pruner.masks)
        pruner.step()
        assert all_zero(model, pruner.masks)
    assert list(pruner.masks) == ["0.weight", "2.weight"]
    x = torch.randn(3, 16)
    torch.testing.assert_close(compiled(x), model(x))


def test_one_pruner_for_a_weight():
    model = Net()
    first = Pruner(model, "gs(8,8)", 0.75, include=["linear", "lstm"])
    with pytest.raises(
        ValueError, match=r"lstm.weight_ih_l0 is pruned by another Pruner: finalize\(\)"
    ):
        Pruner(model, "gs(8,8)", 0.75)
    Pruner(model, "gs(8,8)", 0.75, include=["gru"])
    first.finalize()
    Pruner(model, "gs(8,8)", 0.75, include=["linear"])
    # A Pruner that nobody holds any more is in nobody's way.
    Pruner(model, "gs(8,8)", 0.75, include=["conv"])
    gc.collect()
    Pruner(model, "gs(8,8)", 0.75, include=["conv"])


def test_finalize_leaves_nothing_behind():
    model = Net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    pruner = Pruner(model, "gs(8,8)", 0.75, opt, criterion="wanda", schedule=one_shot(1))
    loss_of(model, 0).backward()
    opt.step()
    pruner.step()
    assert opt._optimizer_step_post_hooks
    pruner.finalize()
    assert not opt._optimizer_step_post_hooks
    assert not opt._optimizer_step_pre_hooks
    for name, module in model.named_modules():
        assert not module._forward_hooks
        assert set(vars(module)) - attributes[name] <= {"gs_pruned"}


def test_a_forgotten_pruner_lets_the_optimizer_go_on():
    model = Net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    Pruner(model, "gs(8,8)", 0.75, opt)
    gc.collect()
    loss_of(model, 0).backward()
    opt.step()
