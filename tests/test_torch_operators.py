"""Operators of compact layers under compilers, exporters and gradients, held against torch's own dense layers."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import (  # noqa: E402
    GSGRU,
    GSLSTM,
    GSConv1d,
    GSConv2d,
    GSLinear,
    convert,
    matrices,
    operators,
    prune_,
)

# What torch's exporters and compilers warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

# With short groups, another order of rows, blocks that stick out, packed positions.
PATTERNS = ["gs(8,2)", "gs(4,1)+scatter", "block(4,4)", "2:4", "irregular"]
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "clamp": lambda z: z.clamp(-0.5, 0.75),
}
OPS = torch.ops.gspattern


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pruned(layer, pattern="gs(8,2)"):
    return prune_(layer, pattern, None if pattern == "2:4" else 0.5, include=["*"])


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def trained(weight):
    """Values that want a gradient, and the structure."""
    return weight.values.requires_grad_(), weight.structure


def limits(name):
    return (name, -0.5, 0.75) if name == "clamp" else (name, 0.0, 0.0)


def same_gradients(first, second, inputs):
    """Two results of the same inputs, and their gradients for the same gradient of the result."""
    torch.testing.assert_close(first, second)
    grad = torch.randn_like(second)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad) for y in (first, second)), strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------- gradients


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_linear(pattern, activation):
    layer = GSLinear.from_linear(pruned(nn.Linear(24, 14, dtype=torch.float64), pattern))
    values, structure = trained(layer.weight)
    x, bias, residual = wide(3, 24), wide(14), wide(3, 14)

    def function(x, values, bias, residual):
        how = limits(activation)
        return operators.linear(x, values, structure, (14, 24), bias, residual, *how)

    assert torch.autograd.gradcheck(function, (x, values, bias, residual))
    weight = layer.to_dense().weight.detach()
    dense = ACTIVATIONS[activation](functional.linear(x, weight, bias) + residual)
    same_gradients(function(x, values, bias, residual), dense, (x, bias, residual))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 24), (0, 24)], ids=str)
def test_gradients_of_inputs_of_all_shapes(shape):
    layer = GSLinear.from_linear(pruned(nn.Linear(24, 14, dtype=torch.float64)))
    x = wide(*shape)
    same_gradients(layer(x), layer.to_dense()(x), (x,))


CONVOLUTIONS = [
    (nn.Conv1d, (8, 9), {"kernel_size": 4, "dilation": 2, "padding": "same"}),
    (nn.Conv1d, (8, 9), {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "circular"}),
    (nn.Conv2d, (8, 5, 4), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    (nn.Conv2d, (8, 5, 4), {"kernel_size": 1, "padding": "valid"}),
]


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize(("kind", "shape", "options"), CONVOLUTIONS, ids=str)
def test_gradients_of_convolutions(kind, shape, options, activation):
    layer = kind(8, 6, dtype=torch.float64, **options)
    compact = (GSConv1d if kind is nn.Conv1d else GSConv2d).from_conv(pruned(layer, "gs(4,2)"))
    values, _ = trained(compact.weight)
    compact.bias.requires_grad_()
    x = wide(2, *shape)
    residual = torch.randn_like(layer(x), requires_grad=True)

    def function(x, values, bias, residual):
        return compact(x, residual, activation)

    inputs = x, values, compact.bias, residual
    assert torch.autograd.gradcheck(function, inputs)
    for given in (x, x.detach()[0].requires_grad_()):
        exact = ACTIVATIONS[activation](compact.to_dense()(given))
        same_gradients(compact(given, activation=activation), exact, (given,))


def recurrent_layer(kind, bidirectional=False, layers=2):
    layer = kind(6, 4, layers, bidirectional=bidirectional, dtype=torch.float64)
    layer = (GSLSTM if kind is nn.LSTM else GSGRU).from_module(pruned(layer, "gs(2,1)"))
    return layer.requires_grad_()


def recurrent_arguments(layer, kind, packed):
    weights = [getattr(layer, name) for name in layer._weights]
    values, structures = [w.values for w in weights], [w.structure for w in weights]
    biases = [getattr(layer, name) for name in layer._biases]
    x, sequences = (wide(6, 6), 3) if packed else (wide(3, 2, 6), 2)
    states = [wide(len(weights) // 2, sequences, 4) for _ in range(2 if kind is nn.LSTM else 1)]
    h, c = (*states, None)[:2]
    sizes = torch.tensor([3, 2, 1]) if packed else None
    cell = "lstm" if kind is nn.LSTM else "gru"
    return x, values, structures, biases, h, c, sizes, cell, 4, layer.bidirectional


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gradients_of_recurrent_layers(kind, bidirectional, packed):
    layer = recurrent_layer(kind, bidirectional)
    x, values, structures, biases, h, c, *how = recurrent_arguments(layer, kind, packed)

    def function(x, h, c, *parameters):
        own = parameters[: len(values)], structures, parameters[len(values) :]
        return operators.recur(x, *own, h, c, *how)[: 3 if kind is nn.LSTM else 2]

    assert torch.autograd.gradcheck(function, (x, h, c, *values, *biases), fast_mode=True)
    torch.library.opcheck(OPS.recurrent.default, (x, values, structures, biases, h, c, *how))


# -------------------------------------------------------- transforms, forward mode


TRANSFORMED = {
    "linear": (nn.Linear, (24, 14), (3, 24)),
    "conv1d": (nn.Conv1d, (8, 6, 3, 1, "same"), (2, 8, 5)),
    "conv2d": (nn.Conv2d, (8, 6, 2, 2, 1), (2, 8, 4, 3)),
    "lstm": (nn.LSTM, (6, 4, 2, True, False, 0.0, True), (3, 2, 6)),
    "gru": (nn.GRU, (6, 4, 1, False), (3, 2, 6)),
    "lstm cell": (nn.LSTMCell, (6, 4), (2, 6)),
    "gru cell": (nn.GRUCell, (6, 4), (2, 6)),
}


def first(y):
    return y if isinstance(y, torch.Tensor) else first(y[0])


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("kind", TRANSFORMED)
def test_transforms_are_those_of_dense_layers(kind, dtype):
    make, sizes, shape = TRANSFORMED[kind]
    compact = convert(pruned(make(*sizes), "gs(2,1)"), keep_dense=False, dtype=dtype)
    dense = compact.to_dense()
    x, tangent = torch.randn(shape), torch.randn(shape)

    def loss(layer):
        return lambda x: first(layer(x)).square().sum()

    def forward_mode(layer):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            return torch.autograd.forward_ad.unpack_dual(loss(layer)(dual)).tangent

    exact = torch.func.grad(loss(dense))(x)
    torch.testing.assert_close(torch.func.grad(loss(compact))(x), exact)
    torch.testing.assert_close(
        torch.func.jvp(loss(compact), (x,), (tangent,))[1], (exact * tangent).sum()
    )
    torch.testing.assert_close(forward_mode(compact), (exact * tangent).sum())
    several = torch.func.vmap(torch.func.grad(loss(compact)))(torch.stack([x, tangent]))
    torch.testing.assert_close(several[0], exact)
    twice = torch.func.jvp(torch.func.grad(loss(compact)), (x,), (tangent,))[1]
    near = (torch.func.grad(loss(dense.double()))(x.double() + 1e-6 * tangent) - exact) / 1e-6
    near -= (torch.func.grad(loss(dense))(x.double()) - exact) / 1e-6
    torch.testing.assert_close(twice, near.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_transforms_go_to_the_values(pattern):
    for layer, x in (
        (nn.Linear(24, 14), torch.randn(3, 24)),
        (nn.Conv1d(8, 12, 3), torch.randn(2, 8, 9)),
        (nn.GRU(16, 8), nn.utils.rnn.pack_sequence([torch.randn(3, 16), torch.randn(2, 16)])),
    ):
        compact = convert(pruned(layer, pattern), keep_dense=False).requires_grad_()
        names, parameters = zip(*compact.named_parameters(), strict=True)

        def loss(own, compact=compact, x=x, names=names):
            y = first(torch.func.functional_call(compact, dict(zip(names, own, strict=True)), (x,)))
            return y.square().sum()

        expected = torch.autograd.grad(loss(parameters), parameters)
        got = torch.func.grad(loss)(parameters)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
        # Models of an ensemble: the values of two, stacked.
        stacked = tuple(torch.stack([p.detach(), 2 * p.detach()]) for p in parameters)
        torch.testing.assert_close(
            torch.func.vmap(loss)(stacked)[1], loss([2 * p for p in parameters])
        )


# --------------------------------------------------------------- what torch checks


@pytest.mark.parametrize("activation", ["none", "clamp", "silu"])
def test_operators_are_what_torch_expects(activation):
    how = limits(activation)
    layer = GSLinear.from_linear(pruned(nn.Linear(24, 14, dtype=torch.float64)))
    values, structure = trained(layer.weight)
    arguments = wide(3, 24), values, structure, (14, 24), wide(14), wide(3, 14), *how
    torch.library.opcheck(OPS.linear.default, arguments)
    layer = GSConv2d.from_conv(pruned(nn.Conv2d(8, 6, 3, dtype=torch.float64), "gs(4,2)"))
    values, structure = trained(layer.weight)
    x = wide(2, 8, 5, 5)
    for given in (x, x.detach().contiguous(memory_format=torch.channels_last), x.detach()[0]):
        shapes = (6, 8, 3, 3), (2, 1), (1, 1), (1, 2)
        arguments = given, values, structure, *shapes, wide(6), None, *how
        torch.library.opcheck(OPS.convolve.default, arguments)


def test_operators_of_backward_passes_are_what_torch_expects():
    layer = GSLinear.from_linear(pruned(nn.Linear(24, 14, dtype=torch.float64)))
    values, structure = layer.weight.values, layer.weight.structure
    torch.library.opcheck(OPS.dense.default, (values, structure, (14, 24)))
    torch.library.opcheck(OPS.kept.default, (wide(14, 24).detach(), values, structure))
    for kind in (nn.LSTM, nn.GRU):
        layer = recurrent_layer(kind).requires_grad_(False)
        x, values, structures, biases, h, c, *how = recurrent_arguments(layer, kind, False)
        x, h, c = (None if t is None else t.detach() for t in (x, h, c))
        x = x.transpose(0, 1).contiguous().transpose(0, 1)  # as of a layer with batch_first
        grads = torch.ones(3, 2, 4).double(), h.clone(), h.new_empty(0) if c is None else c.clone()
        arguments = *grads, x, values, structures, biases, h, c, *how
        torch.library.opcheck(OPS.recurrent_backward.default, arguments)


# -------------------------------------------------------------- compilers, exporters


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 3, padding="same")
        self.norm = nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(32, 16)
        self.one = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).transpose(1, 2)
        x, _ = self.lstm(x)
        return self.head(torch.relu(self.one(self.cell(x[:, -1]))))


def fast_net():
    model = prune_(Net().eval(), "gs(4,4)", 0.7, include=["conv", "lstm", "cell", "one"])
    return convert(model, keep_dense=False)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_models_compile_as_one_graph(backend):
    model = fast_net()
    x = torch.randn(3, 6, 10)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (x, torch.cat([x, x])):
            torch.testing.assert_close(compiled(batch), model(batch))
    model.requires_grad_()
    gradients = []
    for run in (model, compiled):
        y = run(x)
        torch.testing.assert_close(y, expected)
        gradients.append(torch.autograd.grad(y.square().sum(), list(model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_all_they_need(strict, tmp_path):
    model = fast_net()
    x = torch.randn(3, 6, 10)
    sizes = ({0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("steps", min=3)},)
    program = torch.export.export(model, (x,), dynamic_shapes=sizes, strict=strict)
    torch.export.save(program, tmp_path / "net.pt2")
    more = torch.randn(5, 6, 12)
    torch.save((x, more, model(x).detach(), model(more).detach()), tmp_path / "examples.pt")
    script = (
        "import sys, torch, gspattern.torch\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "x, more, y, other = torch.load(sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(x), y)\n"
        "    assert torch.equal(model(more), other)\n"
    )
    files = [str(tmp_path / name) for name in ("net.pt2", "examples.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, *files], check=True)


def test_traced_models_call_the_operators(tmp_path):
    model = fast_net()
    traced = torch.jit.trace(model, (torch.randn(3, 6, 10),))
    torch.jit.save(traced, tmp_path / "net.pt")
    x = torch.randn(4, 6, 10)
    assert torch.equal(torch.jit.load(tmp_path / "net.pt")(x), model(x))


# --------------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("pattern", ["gs(8,2)", "gs(8,1)+scatter", "block(3,5)"])
def test_fine_tuning_is_that_of_the_masked_dense_model(pattern):
    model = Net().double().train()
    for name in ("conv", "lstm", "cell", "one"):
        pruned(model.get_submodule(name), pattern)
    fast = convert(copy.deepcopy(model), keep_dense=False).requires_grad_()
    kept = {
        name: parameter != 0 for name, parameter in model.named_parameters() if parameter.dim() > 1
    }
    structures = {n: b.clone() for n, b in fast.named_buffers() if n.endswith("structure")}
    losses = []
    for net in (model, fast):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            x = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
            loss = (net(x) - x.mean(dim=(1, 2))[:, None]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():  # as Pruner does
                for name, mask in kept.items() if net is model else ():
                    model.get_parameter(name).mul_(mask)
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-9)
    assert losses[4] < losses[0]
    for name, buffer in structures.items():
        assert torch.equal(fast.get_buffer(name), buffer)
    state = model.state_dict()
    for name, value in matrices(fast).items():
        dense = value
        if isinstance(value, gs.Matrix):
            dense = value.to_dense()
            dense = gs.from_matrix(dense, value.kernel_shape) if value.kernel_shape else dense
        torch.testing.assert_close(torch.from_numpy(np.array(dense)), state[name])
    with torch.no_grad():
        torch.testing.assert_close(fast.eval()(x), model.eval()(x))


def linear_layer(dtype=None, pattern="gs(8,2)"):
    return GSLinear.from_linear(pruned(nn.Linear(24, 14), pattern), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_gradients_in_other_types(dtype):
    layer = linear_layer(dtype)
    weight = layer.to_dense().weight.detach().float()
    for given in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 24).to(given).requires_grad_()
        y = layer(x)
        assert y.dtype == given
        grad = torch.randn(3, 14).to(given)
        y.backward(grad)
        assert x.grad.dtype == given
        error = 2e-2 if given == torch.bfloat16 else 1e-6
        torch.testing.assert_close(x.grad.float(), grad.float() @ weight, rtol=error, atol=error)
    if dtype == "int8":
        with pytest.raises(RuntimeError, match="only Tensors of floating point"):
            layer.requires_grad_()
    else:
        layer.requires_grad_()
        layer(torch.randn(3, 24)).sum().backward()
        assert layer.weight.values.grad.dtype == layer.weight.values.dtype


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_gradients_of_convolutions_in_bfloat16(activation):
    layer = pruned(nn.Conv1d(16, 8, 3, padding=1), "gs(8,2)")
    compact = GSConv1d.from_conv(layer, dtype="bfloat16")
    x = torch.randn(2, 16, 9).bfloat16().requires_grad_()
    residual = torch.randn(2, 8, 9).bfloat16().requires_grad_()
    y = compact(x, residual, activation)
    assert y.dtype == torch.bfloat16
    exact = compact.to_dense().float()(x.float()) + residual.float()
    exact = ACTIVATIONS[activation or "none"](exact)
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.02)
    got, expected = (
        torch.autograd.grad(z.float().square().sum(), (x, residual)) for z in (y, exact)
    )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.1)


def test_changes_of_values_are_seen():
    layer = linear_layer()
    values, x = layer.weight.values, torch.randn(2, 24)
    y = layer(x)
    unbiased = y - layer.bias
    assert not layer(x).requires_grad
    with torch.no_grad():
        values.mul_(2)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * unbiased)
    values.data = values.data / 4
    torch.testing.assert_close(layer(x) - layer.bias, unbiased / 2)
    values.requires_grad_()
    layer(x)
    values.data.mul_(8)  # which no version counter tells
    with torch.no_grad():
        torch.testing.assert_close(layer(x) - layer.bias, 4 * unbiased)
    before = layer.matrix
    copied = before.values.copy()
    with torch.no_grad():
        values.zero_()
    assert np.array_equal(before.values, copied)
    assert torch.equal(layer(x), layer.bias.expand(2, 14))


def test_places_outside_the_matrix_stay_zero():
    layer = linear_layer(pattern="block(4,5)")  # the last blocks stick out on both sides
    x = torch.randn(2, 24)
    with torch.no_grad():
        layer.weight.values.fill_(1)
    expected = x @ torch.from_numpy(layer.matrix.mask()).float().T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.matrix.to_dense().sum() == layer.matrix.nnz


def test_layers_that_are_made_or_loaded_in_inference_mode():
    dense = pruned(nn.Linear(24, 14))
    with torch.inference_mode():
        layer = GSLinear.from_linear(dense)
        x = torch.randn(2, 24)
        y = layer(x)
        other = copy.deepcopy(layer)
        other.weight.values = nn.Parameter(other.weight.values.clone(), requires_grad=False)
        assert other.weight.values.is_inference()
        assert torch.equal(other(x), y)
        other.weight.values.zero_()
        assert torch.equal(other(x), other.bias.expand(2, 14))
    layer.requires_grad_()
    layer(torch.randn(2, 24)).sum().backward()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_their_own_way(duplicate):
    model = fast_net().requires_grad_()
    twin = duplicate(model)
    x = torch.randn(3, 6, 10)
    y = model(x)
    assert torch.equal(twin(x), y)
    assert [p.requires_grad for p in twin.parameters()] == [True] * len(list(model.parameters()))
    twin(x).sum().backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model(x), y)
    assert not torch.allclose(twin(x), y)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(model(x), twin(x))


def test_loading_keeps_the_parameters_that_an_optimizer_holds():
    first = linear_layer()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight.values.mul_(3)
    values, x = first.weight.values, torch.randn(2, 24)
    first.load_state_dict(second.state_dict())
    assert first.weight.values is values
    assert torch.equal(first(x), second(x))
    state = second.state_dict()
    assert list(state) == ["bias", "weight.values", "weight.structure"]
    broken = {**state, "weight.structure": state["weight.structure"].clone()}
    broken["weight.structure"][-3:] ^= 255
    with pytest.raises(gs.FormatError):
        first.load_state_dict(broken)


def test_autocast_is_that_of_torch():
    model = nn.ModuleList([nn.Linear(24, 16), nn.Conv1d(24, 16, 3), nn.LSTM(24, 16), nn.GRUCell(24, 16)])  # fmt: skip
    inputs = [torch.randn(2, 24), torch.randn(2, 24, 5), torch.randn(2, 3, 24), torch.randn(2, 24)]
    layers = [pruned(layer, "gs(8,8)") for layer in model]
    compacts = [convert(layer, keep_dense=False) for layer in layers]
    with torch.autocast("cpu"), torch.no_grad():
        for layer, compact, x in zip(layers, compacts, inputs, strict=True):
            y, expected = (
                m(x)[0] if isinstance(layer, nn.LSTM) else m(x) for m in (compact, layer)
            )
            assert y.dtype == expected.dtype
            torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)


def test_nothing_is_known_of_layers_that_are_gone():
    gc.collect()
    before = len(operators._known)
    layer = linear_layer()
    layer(torch.randn(1, 24))
    assert len(operators._known) == before + 1
    del layer
    gc.collect()
    assert len(operators._known) == before


def test_programs_that_lie_about_shapes_are_refused():
    layer = linear_layer()
    values, structure = layer.weight.values, layer.weight.structure
    x = torch.randn(3, 24)
    with pytest.raises(ValueError, match=r"must have shape \(15, 24\), got \(14, 24\)"):
        operators.linear(x, values, structure, (15, 24), None, None, "none", 0.0, 0.0)
    with pytest.raises(gs.FormatError, match="no structure of a matrix"):
        operators.linear(x, values, structure[:40], (14, 24), None, None, "none", 0.0, 0.0)
    with pytest.raises(gs.FormatError):
        operators.linear(x, values[:-1], structure, (14, 24), None, None, "none", 0.0, 0.0)
