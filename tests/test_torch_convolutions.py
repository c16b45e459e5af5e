"""GSConv1d and GSConv2d against torch's own layers in float64, and their way through `convert`."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import GSConv1d, GSConv2d, convert, matrices, prune_  # noqa: E402


def error_bound(layer, x):
    """How far a float32 convolution may be from the exact one: sums of the sizes of its terms."""
    sizes = copy.deepcopy(layer).double()
    sizes.weight.data.abs_()
    if sizes.bias is not None:
        sizes.bias.data.abs_()
    terms = layer.weight[0].numel() + 1
    return 4 * torch.finfo(torch.float32).eps * terms * sizes(x.double().abs())


CASES = [
    (nn.Conv1d, {"kernel_size": 3, "padding": 1}),
    (nn.Conv1d, {"kernel_size": 11, "stride": 2, "padding": 5}),
    (nn.Conv1d, {"kernel_size": 5, "dilation": 2, "padding": "same", "bias": False}),
    (nn.Conv1d, {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"}),
    (nn.Conv2d, {"kernel_size": 1, "bias": False}),
    (nn.Conv2d, {"kernel_size": 1, "stride": 2}),
    (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (3, 5), "padding": (1, 2), "dilation": (1, 2)}),
    (nn.Conv2d, {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"}),
    (nn.Conv2d, {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect"}),
]


@pytest.mark.parametrize("pattern", ["gs(8,2)", "gs(16,1)+scatter", "irregular", "block(4,1)", "2:4"])  # fmt: skip
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_as_torch(kind, options, pattern):
    torch.manual_seed(0)
    layer = kind(24, 20, **options)
    prune_(layer, pattern, None if pattern == "2:4" else 0.75)
    compact = (GSConv1d if kind is nn.Conv1d else GSConv2d).from_conv(layer)
    sizes = (40,) if kind is nn.Conv1d else (13, 18)
    with torch.no_grad():
        for x in (torch.randn(2, 24, *sizes), torch.randn(24, *sizes)):
            y, exact = compact(x), copy.deepcopy(layer).double()(x.double())
            assert y.shape == exact.shape
            assert ((y - exact).abs() <= error_bound(layer, x)).all()
    back = compact.to_dense()
    assert repr(back) == repr(layer)
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in back.state_dict().items())
    assert np.array_equal(back.gs_pruned["weight"].mask, layer.gs_pruned["weight"].mask)
    again = (GSConv1d if kind is nn.Conv1d else GSConv2d).from_conv(back)
    assert torch.equal(again(x), y)


def test_channels_last_stays_so():
    layer = prune_(nn.Conv2d(16, 32, 3, padding=1), "gs(16,16)", 0.8)
    compact = GSConv2d.from_conv(layer)
    x = torch.randn(2, 16, 9, 9)
    y = compact(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_other_types_and_states():
    layer = prune_(nn.Conv1d(32, 16, 5, padding=2), "gs(16,16)", 0.8)
    compact = GSConv1d.from_conv(layer)
    x = torch.randn(3, 32, 20)
    exact = layer(x).detach()
    assert compact(x.bfloat16()).dtype == torch.bfloat16
    for dtype, error in (("bfloat16", 0.02), ("int8", 0.05), ("float64", 1e-6)):
        other = GSConv1d.from_conv(layer, dtype=dtype)
        assert str(other.matrix.dtype) == dtype
        assert (other(x) - exact).abs().max() < error
    buffer = io.BytesIO()
    torch.save(compact.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    fresh = GSConv1d.from_conv(prune_(nn.Conv1d(32, 16, 5, padding=2), "irregular", 0.9))
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(fresh(x), compact(x))
    assert fresh.matrix.kernel_shape == (16, 32, 5)
    assert torch.equal(copy.deepcopy(compact)(x), compact(x))
    with pytest.raises(
        ValueError, match=r"this layer is \(16, 160\), the state that of \(8, 160\)"
    ):
        fresh.load_state_dict(
            GSConv1d.from_conv(prune_(nn.Conv1d(32, 8, 5), "irregular", 0.9)).state_dict()
        )


def test_what_is_refused():
    layer = prune_(nn.Conv2d(16, 16, 3), "gs(16,16)", 0.8)
    compact = GSConv2d.from_conv(layer)
    x = torch.randn(1, 16, 5, 5)
    with pytest.raises(RuntimeError, match="GSConv2d runs on the CPU"):
        compact(x.to("meta"))
    with torch.no_grad(), pytest.raises(ValueError, match="16 channels"):
        compact(torch.randn(1, 8, 5, 5))
    with pytest.raises(TypeError, match=r"GSConv1d is made from torch\.nn\.Conv1d, got Conv2d"):
        GSConv1d.from_conv(layer)
    with pytest.raises(ValueError, match="got 4 groups"):
        GSConv2d.from_conv(nn.Conv2d(16, 16, 3, groups=4), "irregular")
    with pytest.raises(ValueError, match="not pruned by a Pruner"):
        GSConv2d.from_conv(nn.Conv2d(16, 16, 3))
    with pytest.raises(ValueError, match="encoded from 4-dimensional weights"):
        GSConv2d(gs.encode(np.eye(16, dtype=np.float32), "irregular"))
    with pytest.raises(ValueError, match="padding_mode must be one of zeros, reflect"):
        GSConv2d(compact.matrix, padding_mode="zero")
    with pytest.raises(ValueError, match=r"bias must have shape \(16,\), got \(4,\)"):
        GSConv2d(compact.matrix, torch.zeros(4))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.one = nn.Conv2d(32, 64, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.two = nn.Conv2d(64, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.two(torch.relu(self.norm(self.one(x))))
        return self.head(self.grouped(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("keep_dense", [False, "auto"])
def test_convert(keep_dense, caplog):
    model = prune_(Residual().eval(), {"one": "gs(cpu)", "*": "gs(16,1)+scatter"}, 0.9)
    x = torch.randn(2, 3, 12, 12)
    fast = convert(model, keep_dense=keep_dense, example_inputs=x)
    if not keep_dense:
        assert [type(fast.one), type(fast.two)] == [GSConv2d, GSConv2d]
        assert type(fast.stem) is type(fast.grouped) is nn.Conv2d
        saved = matrices(fast)
        assert saved["one.weight"].kernel_shape == (64, 32, 1, 1)
        assert np.array_equal(
            gs.from_matrix(saved["two.weight"].to_dense(), (32, 64, 3, 3)), model.two.weight.detach().numpy()
        )  # fmt: skip
        assert set(saved) == set(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        compiled = torch.compile(fast, backend="eager")
        torch.testing.assert_close(compiled(x), fast(x))


def test_convert_what_was_pruned_elsewhere():
    model = Residual().eval()
    with torch.no_grad():
        model.two.weight[torch.rand(model.two.weight.shape) < 0.8] = 0
        model.grouped.weight.zero_()
    fast = convert(model, pattern="irregular")
    assert isinstance(convert(model, pattern="irregular", keep_dense=False).two, GSConv2d)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
