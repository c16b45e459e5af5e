"""What converted models compute in one pass: against the same models one layer after the other, in float64."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from gspattern.torch import (  # noqa: E402
    Conversion,
    GSConv1d,
    GSConv2d,
    GSLinear,
    conversion,
    convert,
    load,
    prune_,
    revert,
    save,
)
from gspattern.torch.fusing import FusedForward, fuse_calls, unfuse  # noqa: E402

CHANNELS = 32


def shaken(model, seed=0):
    """A model in evaluation mode whose norms change what they get."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.normal_(0, 1)  # some of them negative
                module.bias.data.normal_(0, 0.3)
    return model.eval()


def pruned(model, seed=0):
    return prune_(shaken(model, seed), "gs(8,8)", 0.75, include=["*"])


def fused(model):
    return {name: str(call) for name, call in fuse_calls(model)[0].items()}


def assert_same(fast, model, *inputs, scale=1e-5):
    """Equal but for the rounding of float32, which the model in float64 has not."""
    exact = copy.deepcopy(model).double()(*(x.double() for x in inputs))
    with torch.inference_mode():
        found = fast(*inputs)
    assert found.dtype == inputs[0].dtype
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= scale * exact.abs().max()


class Bottleneck(nn.Module):
    """As in ResNet50: one ReLU in three places, and a sum in place."""

    def __init__(self, channels=CHANNELS, stride=1):
        super().__init__()
        out = channels * stride
        self.conv1 = nn.Conv2d(channels, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Bottleneck(), Bottleneck(stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * CHANNELS, 10)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def net(seed=0):
    return prune_(
        shaken(Net(), seed), "gs(8,8)", 0.75
    )  # the first convolution and the last Linear are dense


OF_NET = {
    "conv1": "batch norm, relu",
    "layer1.0.conv1": "batch norm, relu",
    "layer1.0.conv2": "batch norm, relu",
    "layer1.0.conv3": "batch norm, sum, relu",
    "layer1.1.conv1": "batch norm, relu",
    "layer1.1.conv2": "batch norm, relu",
    # Two convolutions meet in a sum; the later one adds the other.
    "layer1.1.conv3": "batch norm",
    "layer1.1.downsample.0": "batch norm, sum, relu",
}


def test_a_residual_network_is_fused_throughout():
    model = net()
    fast = convert(model, keep_dense=False)
    assert {row.name: row.fused for row in conversion(fast) if row.fused} == OF_NET
    assert type(fast) is Net
    assert fast.state_dict().keys() >= {"bn1.weight", "layer1.1.downsample.1.running_var"}
    x = torch.randn(2, 3, 9, 9)
    assert_same(fast, model, x)


def test_norms_and_activations_do_not_run_by_themselves():
    fast = convert(net(), keep_dense=False)
    ran = []
    for module in fast.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU):
            module.register_forward_hook(lambda *args: ran.append(args))
    with torch.inference_mode():
        fast(torch.randn(1, 3, 9, 9))
    assert ran == []
    with torch.no_grad():
        fast.train()(torch.randn(2, 3, 9, 9))
    assert len(ran) == 8 + 7


def test_channels_last_is_kept_between_layers(monkeypatch):
    fast = convert(net(), keep_dense=False)
    seen = []
    forward = GSConv2d.forward

    def recorded(self, input, residual=None, activation=None):
        seen.extend([input, forward(self, input, residual, activation)])
        return seen[-1]

    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        expected = fast(x)
        monkeypatch.setattr(GSConv2d, "forward", recorded)
        y = fast(x.contiguous(memory_format=torch.channels_last))
    assert len(seen) == 2 * 7
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8"])
def test_other_dtypes(dtype):
    """Norms are folded after the values were rounded, so that nothing is rounded twice."""
    model = net()
    fast = convert(model, keep_dense=False, dtype=dtype)
    assert_same(fast, revert(copy.deepcopy(fast)).float(), torch.randn(2, 3, 9, 9))


def test_copies_pickles_and_files(tmp_path):
    model = net()
    fast = convert(model, keep_dense=False)
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        expected = fast(x)
        again = copy.deepcopy(fast)
        assert again.layer1[0].forward.module is again.layer1[0]
        assert torch.equal(again(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
        save(fast, tmp_path / "net.safetensors")
        with torch.device("meta"):
            empty = Net()
        loaded = load(tmp_path / "net.safetensors", empty)
        assert torch.equal(loaded(x), expected)
    assert conversion(loaded) == conversion(fast)
    assert isinstance(loaded.layer1[0].forward, FusedForward)
    plain = convert(model, keep_dense=False, fuse=False)
    save(plain, tmp_path / "plain.safetensors")
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "plain.safetensors", Net())(x), plain(x))
    assert "forward" not in load(tmp_path / "plain.safetensors", Net()).layer1[0].__dict__


def test_revert_gives_the_dense_model_bit_for_bit(caplog):
    model = net()
    back = revert(convert(model, keep_dense=False))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
    assert all("forward" not in module.__dict__ for module in back.modules())
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(back(x), model(x))
    assert "rounded" not in caplog.text
    with pytest.raises(ValueError, match="not made by convert"):
        conversion(back)
    revert(convert(model, keep_dense=False, dtype="int8"))
    assert "7 weights go back as int8 rounded them" in caplog.text


def test_in_training_mode_norms_learn():
    model = net()
    fast = convert(model.train(), keep_dense=False)
    assert fast.training
    assert fast.layer1[0].conv1.training
    x = torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    after = fast.state_dict()
    for key, value in model.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5)
    assert_same(fast.eval(), model.eval(), x)


def test_changed_values_are_seen():
    model = net()
    fast = convert(model, keep_dense=False)
    x = torch.randn(2, 3, 9, 9)
    assert_same(fast, model, x)
    for layer in (model, fast):
        with torch.no_grad():
            layer.layer1[0].bn2.weight.mul_(2)
            layer.bn1.running_mean.add_(1)
    assert_same(fast, model, x)
    other = net(1)
    with torch.no_grad():
        for layer in (model, fast):
            state = {k: v for k, v in other.state_dict().items() if ".bn3." in k}
            layer.load_state_dict(state, strict=False, assign=True)
    assert_same(fast, model, x)
    # What no tensor tells of: a pass in training mode makes all anew, if norms are frozen too.
    for layer in (model, fast):
        layer.conv1.weight.data.mul_(3)
        layer.train()
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            layer(x)
        layer.eval()
    assert_same(fast, model, x, scale=1e-4)


def test_a_model_of_batch_statistics_in_evaluation_mode():
    """Norms that are in training mode while the model is not: as the model says, not as it was fused."""
    model = net()
    fast = convert(model, keep_dense=False)
    x = torch.randn(4, 3, 9, 9)
    for layer in (model, fast):
        layer.layer1[0].bn1.train()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_compiled():
    x = torch.randn(2, 16, 9)
    fast = convert(conv1d(lambda m, x: torch.relu(m.norm(m.layer(x)) + x)), keep_dense=False)
    sums = convert(conv1d(lambda m, x: torch.relu(m.layer(x) + x)), keep_dense=False)
    with torch.no_grad():
        for model in (fast, sums):
            torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))


# ------------------------------------------------------------------ what is fused, and what is not


class One(nn.Module):
    """A layer, and what a test does with it."""

    def __init__(self, layer, norm, forward, **others):
        super().__init__()
        self.layer, self.norm, self.code = layer, norm, forward
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.code(self, x)


def conv1d(code, **others):
    torch.manual_seed(3)
    norm = others.pop("norm", None) or nn.BatchNorm1d(16)
    layer = others.pop("layer", None) or nn.Conv1d(16, 16, 3, padding=1)
    return pruned(One(layer, norm, code, **others))


FUSED = {
    "relu": (lambda m, x: torch.relu(m.layer(x)), "relu"),
    "functional": (
        lambda m, x: functional.relu(m.norm(m.layer(x)), inplace=True),
        "batch norm, relu",
    ),
    "method": (lambda m, x: m.layer(x).tanh(), "tanh"),
    "gelu": (lambda m, x: functional.gelu(m.norm(m.layer(x))), "batch norm, gelu"),
    "silu": (lambda m, x: functional.silu(m.layer(x)), "silu"),
    "sum": (lambda m, x: x + m.norm(m.layer(x)), "batch norm, sum"),
    "left": (lambda m, x: torch.sigmoid(torch.add(m.layer(x), x)), "sum, sigmoid"),
    "in place": (lambda m, x: m.layer(x).add_(x).relu_(), "sum, relu"),
    "own": (lambda m, x: m.layer(x) + 1 * x, "sum"),
    "number": (lambda m, x: m.layer(x) + 1, ""),
    "twice": (lambda m, x: m.norm(y := m.layer(x)) + y, ""),
    "itself": (lambda m, x: (y := m.layer(x)) + y, ""),
    "scaled": (lambda m, x: torch.add(m.layer(x), x, alpha=2), ""),
    "norm after the sum": (lambda m, x: m.norm(m.layer(x) + x), "sum"),
    "norm after the activation": (lambda m, x: m.norm(torch.relu(m.layer(x))), "relu"),
    "sum after the activation": (lambda m, x: torch.relu(m.layer(x)) + x, "relu"),
    "approximate": (lambda m, x: functional.gelu(m.layer(x), approximate="tanh"), ""),
    "a vector": (lambda m, x: torch.relu(m.layer(x) + x[:1, :, :1]), "sum, relu"),
    "a size": (lambda m, x: torch.relu(m.layer(x) + x.shape[1]), "sum, relu"),
    "two norms": (lambda m, x: m.norm(m.norm(m.layer(x))), "batch norm"),
    "two sums": (lambda m, x: m.layer(x) + x + 2 * x, "sum"),
}


@pytest.mark.parametrize("case", FUSED)
def test_what_is_fused(case):
    code, expected = FUSED[case]
    model = conv1d(code)
    fast = convert(model, keep_dense=False)
    assert conversion(fast).rows[0].fused == expected
    assert conversion(fast).notes == ()
    assert_same(fast, model, torch.randn(2, 16, 16))
    assert_same(fast, model, torch.randn(5, 16, 16))


LAYERS = {
    "relu": (nn.ReLU(), "relu"),
    "relu6": (nn.ReLU6(), "clamp"),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), "clamp"),
    "gelu": (nn.GELU(), "gelu"),
    "tanh gelu": (nn.GELU("tanh"), ""),
    "silu": (nn.SiLU(), "silu"),
    "softplus": (nn.Softplus(), ""),
    "leaky": (nn.LeakyReLU(), ""),
    "identity": (nn.Sequential(nn.Identity(), nn.ReLU()), "relu"),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Linear])
def test_activation_layers_and_sequences(case, kind):
    activation, expected = LAYERS[case]
    norm = nn.BatchNorm1d(32) if kind is nn.Linear else nn.BatchNorm1d(32, affine=False)
    layer = kind(16, 32) if kind is nn.Linear else kind(16, 32, 3, bias=False)
    model = pruned(nn.Sequential(layer, norm, activation))
    fast = convert(model, keep_dense=False)
    assert type(fast) is nn.Sequential
    assert type(fast[0]) is (GSLinear if kind is nn.Linear else GSConv1d)
    assert conversion(fast).rows[0].fused == ", ".join(filter(None, ["batch norm", expected]))
    assert_same(fast, model, torch.randn(3, 16) if kind is nn.Linear else torch.randn(3, 16, 9))


def test_norms_without_statistics_or_over_another_dimension():
    model = conv1d(lambda m, x: m.norm(m.layer(x)), norm=nn.BatchNorm1d(16, track_running_stats=False))  # fmt: skip
    assert fused(model) == {}
    # Behind a linear layer, a norm of inputs [N, C, L] is one over the features of the batch.
    model = conv1d(lambda m, x: torch.relu(m.norm(m.layer(x))), layer=nn.Linear(16, 16))
    fast = convert(model, keep_dense=False)
    assert conversion(fast).rows[0].fused == "batch norm, relu"
    assert_same(fast, model, torch.randn(4, 16))
    assert_same(fast, model, torch.randn(4, 16, 16))


def test_sums_in_place_change_what_others_see():
    def seen_later(m, x):
        y = z = 2 * x
        y += m.layer(x)
        return y + z

    def of_the_caller(m, x):
        x += m.layer(x)
        return x

    def harmless(m, x):
        y = 2 * x
        y += m.layer(x)
        return torch.relu(y)

    def input_changes(m, x):
        x = x * 1
        y = m.layer(x)
        x.mul_(2)
        return y + x

    def residual_changes(m, x):
        z = x * 1
        y = m.layer(x) + z
        z *= 2
        return torch.relu(y) + z

    for code, expected in [
        (seen_later, {}),
        (of_the_caller, {}),
        (harmless, {"layer": "sum, relu"}),
        (input_changes, {}),
        (residual_changes, {"layer": "sum"}),
    ]:
        model = conv1d(code)
        fast = convert(model, keep_dense=False)
        assert fused(revert(copy.deepcopy(fast))) == expected, code
        x = torch.randn(2, 16, 8)
        with torch.no_grad():
            torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)


def test_hooks_and_own_forwards_are_left_alone():
    model = conv1d(lambda m, x: m.act(m.norm(m.layer(x))), act=nn.ReLU())
    calls = []
    model.norm.register_forward_hook(lambda *_: calls.append("norm"))
    fast = convert(model, keep_dense=False)
    with torch.inference_mode():
        fast(torch.randn(1, 16, 8))
    assert calls == ["norm"]
    watched = conv1d(lambda m, x: m.layer(torch.relu(m.head(x))), head=nn.Conv1d(16, 16, 1))
    watched.head.register_forward_hook(lambda *_: calls.append("head"))
    assert fused(watched) == {}
    own = conv1d(lambda m, x: torch.relu(m.layer(x)))
    own.forward = own.layer.forward
    assert fused(own) == {}


class Branching(nn.Module):
    """What torch.fx cannot read, around what it can."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
        self.conv = nn.Conv1d(16, 16, 1)

    def forward(self, x):
        y = self.conv(self.body(x))
        return y if y.sum() > 0 else torch.relu(y)


def test_what_cannot_be_traced_is_said():
    model = pruned(Branching())
    fast = convert(model, keep_dense=False)
    report = conversion(fast)
    assert {row.name: row.fused for row in report} == {"body.0": "batch norm, relu", "conv": ""}
    (note,) = report.notes
    assert note.startswith(
        "not fused: the code of the model, which torch.fx cannot read (TraceError"
    )
    assert note in str(report)
    assert_same(fast, model, torch.randn(2, 16, 8))


def test_arguments_that_the_trace_did_not_see():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x, scale=None, *, twice=False):
            y = torch.relu(self.layer(x))
            y = y if scale is None else y * scale
            return 2 * y if twice else y

    model = pruned(Optional())
    fast = convert(model, keep_dense=False)
    assert conversion(fast).rows[0].fused == "relu"
    x = torch.randn(3, 16)
    with torch.inference_mode():
        for args, keywords in [
            ((x,), {}), ((x, torch.tensor(3.0)), {}), ((x,), {"twice": True}), ((), {"x": x}),
        ]:  # fmt: skip
            torch.testing.assert_close(fast(*args, **keywords), model(*args, **keywords))


def test_a_wrong_trace_is_found_on_the_example():
    class Asking(nn.Module):
        """A proxy is no tensor: torch.fx reads the wrong branch."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            if isinstance(x, torch.Tensor):
                return torch.relu(self.layer(x))
            return torch.tanh(self.layer(x))

    model = pruned(Asking())
    x = torch.randn(3, 16)
    fast = convert(model, keep_dense=False, example_inputs=x)
    (note,) = conversion(fast).notes
    assert note == "nothing is fused: what torch.fx reads gives another answer to the example"
    assert not conversion(fast).fuse
    assert_same(fast, model, x)


def test_gradients_are_those_of_the_layers_one_by_one():
    """The norm's own parameters still learn, in evaluation mode too."""
    model = conv1d(lambda m, x: torch.relu(m.norm(m.head(x))), head=nn.Conv1d(16, 16, 1))
    fast = copy.deepcopy(model)
    fuse_calls(fast)
    for layer in (model, fast):
        layer(torch.ones(2, 16, 8)).sum().backward()
    for (name, a), b in zip(model.named_parameters(), fast.parameters(), strict=True):
        if name.startswith(("norm", "head")):
            assert torch.equal(a.grad, b.grad)
    unfuse(fast)
    assert "forward" not in fast.__dict__


# ------------------------------------------------------------------ the choice, and its report


def test_the_choice_without_an_example():
    layers = [nn.Linear(128, 128), nn.Linear(64, 64), nn.Linear(256, 256), nn.Linear(8, 8)]
    torch.manual_seed(0)
    small = prune_(nn.Sequential(*layers[:2], layers[3]), "gs(8,8)", 0.75)
    fast = convert(small)
    assert [type(layer) for layer in fast] == [GSLinear, nn.Linear, nn.Linear]
    assert [row.reason for row in conversion(fast)] == [
        "of its size and sparsity", "it has less than 16,384 weights",
    ]  # fmt: skip
    full = convert(prune_(nn.Linear(256, 256), "irregular", 0.3))
    assert conversion(full).rows[0].reason == "less than half are zeros"
    wide = convert(prune_(nn.Linear(256, 256), "irregular", 0.9), dtype="float64")
    assert conversion(wide).rows[0].reason == "only scalar kernels multiply float64"
    assert type(wide) is nn.Linear
    conv = convert(prune_(nn.Conv2d(16, 16, 3), "gs(8,8)", 0.75))
    assert type(conv) is GSConv2d


def test_the_choice_on_an_example(tmp_path):
    model = net()
    x = torch.randn(1, 3, 16, 16)
    fast = convert(model, example_inputs=x)
    report = conversion(fast)
    assert [row.name for row in report if row.sparsity is not None] == [
        name for name in OF_NET if name != "conv1"
    ]
    for row in report:
        if row.sparsity is not None:
            kept = fast.get_submodule(row.name)
            assert row.compact == isinstance(kept, GSConv2d)
            assert row.compact == (row.compact_us <= row.dense_us)
            assert row.dense_nbytes == model.get_submodule(row.name).weight.nbytes
    assert_same(fast, model, x)
    text = str(report)
    assert "layer1.1.downsample.0  Conv2d" in text
    assert "batch norm, sum, relu" in text
    assert Conversion.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="no report of a conversion"):
        Conversion.from_json("{}")
    save(fast, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", Net())
    assert conversion(loaded) == report
    assert [type(m) for m in loaded.modules()] == [type(m) for m in fast.modules()]


def test_layers_that_cannot_be_converted_are_reported():
    model = nn.Sequential(nn.MultiheadAttention(32, 4), nn.Linear(128, 128))
    prune_(model, "gs(8,8)", 0.75, include=["*"])
    report = conversion(convert(model, fuse=False))
    assert [(row.name, row.compact, row.reason) for row in report] == [
        ("1", True, "of its size and sparsity"),
        ("0", False, "MultiheadAttention is not converted"),
        ("0.out_proj", False, "NonDynamicallyQuantizableLinear is not converted"),
    ]


def test_folded_values_are_exact():
    """W scaled by rows, and the bias: as float64 makes them, rounded once."""
    model = pruned(nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)))
    fast = convert(model, keep_dense=False)
    norm = model[1]
    factors = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach()
    expected = (model[0].weight.double() * factors[:, None, None, None]).float().detach().numpy()
    scaled = fast[0].matrix.scale_rows(factors.numpy())
    dense = np.moveaxis(expected, 1, -1).reshape(16, -1)
    np.testing.assert_allclose(scaled.to_dense(), dense, rtol=2e-7)
