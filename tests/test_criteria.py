"""Scores of weights, held against sums written out by hand, torch's own layers and finite differences."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from gspattern.torch import (  # noqa: E402
    Context,
    Magnitude,
    Movement,
    Pruner,
    Snip,
    Taylor,
    Wanda,
    cubic,
    one_shot,
)
from gspattern.torch.criteria import criterion_of  # noqa: E402


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))  # fmt: skip


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 16, generator=generator) for _ in range(count)]


def loss_of(model, x):
    return (model(x) - x[:, :4].cos()).square().mean()


def mask_of(scores, sparsity):
    """The irregular mask that keeps the largest."""
    keep = round((1 - sparsity) * scores.numel())
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().topk(keep).indices] = True
    return mask.reshape(scores.shape)


def context(module, gradient=None):
    return Context(module, "weight", gradient, 0)


def test_criteria_by_name():
    weight = torch.tensor([[-2.0, 1.0]])
    assert torch.equal(criterion_of("magnitude")("w", weight, context(None)), weight.abs())
    assert isinstance(criterion_of("wanda"), Wanda)
    assert criterion_of(weight.new_tensor) == weight.new_tensor
    for wrong in ("magnitudes", Magnitude, 3):
        with pytest.raises(ValueError, match="criterion must be one of 'magnitude', 'taylor'"):
            criterion_of(wrong)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Taylor(decay=1)


def test_taylor_is_the_change_of_the_loss():
    """|w g| against what the loss changes by when a weight shrinks a little."""
    model = mlp().double()
    x = torch.cat(batches(4)).double()
    loss_of(model, x).backward()
    weight = model[2].weight
    scores = Taylor()
    scores.observe("w", weight.detach(), context(model[2], weight.grad))
    scored = scores("w", weight.detach(), context(model[2]))
    with torch.no_grad():
        before = loss_of(model, x)
        for row, col in [(0, 0), (5, 9), (31, 31)]:
            old = weight[row, col].item()
            weight[row, col] = old * (1 - 1e-6)
            change = (loss_of(model, x) - before).abs() * 1e6
            weight[row, col] = old
            torch.testing.assert_close(scored[row, col], change, rtol=1e-4, atol=1e-12)


def test_means_and_sums_of_gradients():
    weight = torch.tensor([[2.0, -3.0]])
    gradients = [
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[-1.0, 3.0]]),
        torch.tensor([[0.5, 0.0]]),
    ]
    made = {"taylor": Taylor(decay=0.5), "snip": Snip(), "movement": Movement()}
    for criterion in made.values():
        for gradient in gradients:
            criterion.observe("w", weight, context(None, gradient))
        criterion.observe("w", weight, context(None, None))
    # means: (1, 1) -> (0, 2) -> (.25, 1); sums: (.5, 4)
    assert made["taylor"]("w", weight, context(None)).tolist() == [[0.5, 3.0]]
    assert made["snip"]("w", weight, context(None)).tolist() == [[1.0, 12.0]]
    # -w g: (-1, 12), of which the least is taken from both
    assert made["movement"]("w", weight, context(None)).tolist() == [[0.0, 13.0]]
    for criterion in made.values():
        twin = type(criterion)()
        twin.load_state_dict(criterion.state_dict())
        assert torch.equal(twin("w", weight, context(None)), criterion("w", weight, context(None))) or (
            isinstance(criterion, Taylor)
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="has seen no gradient of other"):
            criterion("other", weight, context(None))


@pytest.mark.parametrize("name", ["taylor", "snip", "movement"])
def test_pruning_at_once_takes_the_gradients_that_are_there(name):
    model = mlp()
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) on some batches"):
        Pruner(copy.deepcopy(model), "irregular", 0.8, criterion=name)
    for x in batches(3):
        loss_of(model, x).backward()
    weight, gradient = model[2].weight.detach().clone(), model[2].weight.grad.clone()
    pruner = Pruner(model, "irregular", 0.8, criterion=name)
    product = -weight * gradient
    scores = product - product.min() if name == "movement" else product.abs()
    assert torch.equal(pruner.masks["2.weight"], mask_of(scores, 0.8))


def test_movement_follows_the_optimizer():
    """The sums of -w g over the steps, with the values that masks have dropped, by a loop beside it."""
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(
        model, "irregular", 0.8, opt, schedule=cubic(4, 12, every=4), criterion="movement"
    )
    total = torch.zeros(32, 32)
    dropped = torch.zeros(32, 32)
    for step, x in enumerate(batches(12), 1):
        loss_of(model, x).backward()
        total -= (model[2].weight.detach() + dropped) * model[2].weight.grad
        before = model[2].weight.detach().clone()
        opt.step()
        opt.zero_grad()
        trained = model[2].weight.detach().clone()
        pruner.step()
        if step in (8, 12):
            mask = pruner.masks["2.weight"]
            sparsity = 0.8 * (1 - (1 - (step - 4) / 8) ** 3)
            assert torch.equal(mask, mask_of(total - total.min(), sparsity))
            dropped = torch.where(mask, 0.0, trained + dropped)
        assert before.shape == trained.shape
    with pytest.raises(
        ValueError, match=r"criterion Taylor learns before every step.*give optimizer="
    ):
        Pruner(mlp(), "irregular", 0.8, schedule=cubic(1, 2), criterion="taylor")


def test_a_criterion_that_learns_is_resumed():
    def start():
        model = mlp()
        opt = torch.optim.Adam(model.parameters(), 1e-2)
        schedule = cubic(5, 20, every=5)
        return (
            model,
            opt,
            Pruner(model, "gs(8,8)", 0.75, opt, schedule=schedule, criterion="taylor"),
        )

    def run(model, opt, pruner, data):
        for x in data:
            loss_of(model, x).backward()
            opt.step()
            opt.zero_grad()
            pruner.step()

    data = batches(24)
    model, opt, pruner = start()
    run(model, opt, pruner, data)
    first = start()
    run(*first, data[:12])
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    second = start()
    for part, state in zip(second, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*second, data[12:])
    for key, value in model.state_dict().items():
        assert torch.equal(value, second[0].state_dict()[key]), key


# ---------------------------------------------------------------------- Wanda


def wanda_squares(model, names, data):
    criterion = Wanda(data)
    pruner = Pruner(model, "irregular", 0.5, include=names, criterion=criterion)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    return criterion.state_dict(), pruner


def test_wanda_of_linear_layers():
    model = mlp()
    data = batches(3)
    weight = model[2].weight.detach().clone()
    inputs = torch.cat([model[:2](x) for x in data]).detach()
    squares, pruner = wanda_squares(model, ["0", "2"], data)
    norms = inputs.square().sum(dim=0)
    torch.testing.assert_close(squares["2.weight"], norms)
    assert torch.equal(pruner.masks["2.weight"], mask_of(weight.abs() * squares["2.weight"].sqrt(), 0.5))  # fmt: skip
    with pytest.raises(RuntimeError, match=r"seen no input of 0.weight: give it data, Wanda\(\["):
        Pruner(mlp(), "irregular", 0.5, criterion="wanda")


@pytest.mark.parametrize("seed", range(20))
def test_wanda_of_convolutions(seed):
    """Against windows cut out by unfold."""
    generator = torch.Generator().manual_seed(seed)
    pick = lambda *values: values[torch.randint(len(values), (), generator=generator)]  # noqa: E731
    layer = nn.Conv2d(
        3, 5, (pick(1, 2, 3), pick(1, 3, 4)), stride=(pick(1, 2), pick(1, 3)),
        padding=(pick(0, 1, 2), pick(0, 2)), dilation=(pick(1, 2), pick(1, 2)),
        padding_mode=pick("zeros", "reflect", "circular"),
    )  # fmt: skip
    x = torch.randn(2, 3, 11, 9, generator=generator)
    squares, _ = wanda_squares(nn.Sequential(layer), ["0"], [x])
    pad = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = functional.unfold(
        functional.pad(x, pad, mode), layer.kernel_size, layer.dilation, 0, layer.stride
    )
    expected = windows.square().sum(dim=(0, 2)).reshape(3, *layer.kernel_size)
    torch.testing.assert_close(squares["0.weight"], expected)


def test_wanda_of_a_convolution_over_time():
    layer = nn.Conv1d(4, 6, 5, stride=2, padding="valid", dilation=2)
    x = torch.randn(4, 30)  # no batch
    squares, _ = wanda_squares(layer, ["*"], [x])
    outputs = (30 - 2 * 4 - 1) // 2 + 1
    for tap in range(5):
        seen = x[:, 2 * tap : 2 * tap + 2 * outputs : 2]
        torch.testing.assert_close(squares["weight"][:, tap], seen.square().sum(dim=1))


def cells(module, layer, direction):
    """One direction of one layer as a cell."""
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    kind = nn.LSTMCell if isinstance(module, nn.LSTM) else nn.GRUCell
    weight = getattr(module, "weight_ih" + suffix)
    cell = kind(weight.shape[1], module.hidden_size)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data = getattr(module, name + suffix).data
    return cell


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_wanda_inside_recurrent_layers(kind, with_state, packed, batch_first):
    """Against cells that are called step by step, for each sequence, layer and direction."""
    torch.manual_seed(1)
    module = kind(6, 5, 2, bidirectional=True, batch_first=batch_first)
    lengths = [7, 4, 1] if packed else [7, 7, 7]
    x = torch.randn(7, 3, 6)
    states = [torch.randn(4, 3, 5) for _ in range(2 if kind is nn.LSTM else 1)]
    given = x.transpose(0, 1) if batch_first else x
    if packed:
        given = nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first)
    hx = tuple(states) if kind is nn.LSTM else states[0]
    batch = (given, hx) if with_state else (given,)
    dense = copy.deepcopy(module)
    squares, _ = wanda_squares(module, ["*"], [batch])
    expected = {name: torch.zeros(value.shape) for name, value in squares.items()}
    with torch.no_grad():
        for b, length in enumerate(lengths):
            inputs = list(x[:length, b])
            for layer in range(2):
                outputs = [[], []]
                for direction in range(2):
                    cell = cells(dense, layer, direction)
                    suffix = f"_l{layer}" + ("_reverse" if direction else "")
                    at = 2 * layer + direction
                    state = [s[at, b] if with_state else torch.zeros(5) for s in states]
                    order = range(length - 1, -1, -1) if direction else range(length)
                    made = {}
                    for t in order:
                        expected["weight_ih" + suffix] += inputs[t].square()
                        expected["weight_hh" + suffix] += state[0].square()
                        out = cell(inputs[t], tuple(state) if kind is nn.LSTM else state[0])
                        state = list(out) if kind is nn.LSTM else [out]
                        made[t] = state[0]
                    outputs[direction] = [made[t] for t in range(length)]
                inputs = [torch.cat(pair) for pair in zip(*outputs, strict=True)]
    assert set(expected) == {n for n, _ in module.named_parameters() if n.startswith("weight")}
    for name, value in squares.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_wanda_of_cells_and_attention():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(6, 5)
            self.attention = nn.MultiheadAttention(5, 1)

        def forward(self, x):
            state = None
            for step in x:
                state = self.cell(step, state)
            return self.attention(state[0], state[0], state[0])

    torch.manual_seed(0)
    model = Model()
    cell = copy.deepcopy(model.cell)
    x = torch.randn(3, 2, 6)
    squares, pruner = wanda_squares(model, ["*"], [x])
    first = cell(x[0])
    second = cell(x[1], first)
    torch.testing.assert_close(squares["cell.weight_ih"], x.square().sum(dim=(0, 1)))
    recurrent = (first[0].square().sum(dim=0) + second[0].square().sum(dim=0)).detach()
    torch.testing.assert_close(squares["cell.weight_hh"], recurrent)
    assert "attention.in_proj_weight" in pruner.masks  # by size alone


def test_wanda_learns_in_training():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, "irregular", 0.8, opt, schedule=one_shot(4), criterion="wanda")
    inputs = []
    for x in batches(4):
        inputs.append(model[:2](x).detach())
        loss_of(model, x).backward()
        opt.step()
        opt.zero_grad()
        weight = model[2].weight.detach().clone()
        pruner.step()
    norms = torch.cat(inputs).square().sum(dim=0).sqrt()
    assert torch.equal(pruner.masks["2.weight"], mask_of(weight.abs() * norms, 0.8))
    assert not any(module._forward_hooks for module in model.modules())
