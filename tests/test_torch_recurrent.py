"""Compact LSTM and GRU layers, held against torch's own in float64 on the same masked weights."""

import copy
import io
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import gspattern as gs
from gspattern.torch import (
    GSGRU,
    GSLSTM,
    GSGRUCell,
    GSLinear,
    GSLSTMCell,
    Pruner,
    convert,
    matrices,
    prune_,
)

COMPACT = {nn.LSTM: GSLSTM, nn.GRU: GSGRU, nn.LSTMCell: GSLSTMCell, nn.GRUCell: GSGRUCell}


def flat(result):
    """All tensors of what a layer returns, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in flat(part)]


def wide(value):
    if isinstance(value, tuple) and not isinstance(value, PackedSequence):
        return tuple(map(wide, value))
    return None if value is None else value.double()


def assert_same(compact, layer, x, hx=None):
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        got, exact = compact(x, hx), layer(wide(x), wide(hx))
    for a, b in zip(flat(got), flat(exact), strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 4e-6
    return got


def states(kind, *shape):
    one = torch.randn(shape)
    return (one, torch.randn(shape)) if kind in (nn.LSTM, nn.LSTMCell) else one


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_sequences(kind, bidirectional):
    torch.manual_seed(1)
    for layers, bias, batch_first in ((1, True, False), (2, True, True), (3, False, False)):
        layer = kind(
            24, 20, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional
        )
        prune_(layer, "gs(4,4)", 0.6)
        compact = COMPACT[kind].from_module(layer)
        count = layers * (1 + bidirectional)
        x = torch.randn(5, 7, 24)
        batch = 5 if batch_first else 7
        assert_same(compact, layer, x)
        assert_same(compact, layer, x, states(kind, count, batch, 20))
        assert_same(compact, layer, x[0])
        assert_same(compact, layer, x[0], states(kind, count, 20))
        lengths = torch.randint(1, x.shape[1 if batch_first else 0] + 1, (batch,))
        packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        got = assert_same(compact, layer, packed, states(kind, count, batch, 20))[0]
        assert torch.equal(got.batch_sizes, packed.batch_sizes)
        assert torch.equal(got.unsorted_indices, packed.unsorted_indices)
        assert_same(compact, layer, pack_sequence([torch.randn(3, 24), torch.randn(2, 24)]))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells(kind):
    for bias in (True, False):
        layer = prune_(kind(24, 20, bias=bias), "gs(4,1)", 0.6)
        compact = COMPACT[kind].from_module(layer)
        for shape in ((), (1,), (9,)):
            x = torch.randn(*shape, 24)
            assert_same(compact, layer, x)
            assert_same(compact, layer, x, states(kind, *shape, 20))


def test_one_weight_may_stay_whole():
    layer = prune_(nn.LSTM(24, 20), "gs(4,4)", 0.6, include=["weight_hh_l0"])
    compact = GSLSTM.from_module(layer)
    assert str(compact.matrices["weight_ih_l0"].pattern) == "block(4,16)"
    assert str(compact.matrices["weight_hh_l0"].pattern) == "gs(4,4)"
    assert_same(compact, layer, torch.randn(3, 2, 24))
    back = compact.to_dense()
    assert list(back.gs_pruned) == ["weight_hh_l0"]
    for name, value in layer.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_other_types():
    layer = prune_(nn.GRU(32, 16), "gs(8,8)", 0.5)
    compact = GSGRU.from_module(layer)
    x = torch.randn(4, 3, 32)
    with torch.no_grad():
        y, h = compact(x.bfloat16())
        assert y.dtype == h.dtype == torch.bfloat16
        assert (y.float() - layer(x.bfloat16().float())[0]).abs().max() < 0.01
        for dtype, error in (("bfloat16", 0.02), ("int8", 0.05), ("float64", 1e-6)):
            other = GSGRU.from_module(layer, dtype=dtype)
            assert str(other.matrices["weight_hh_l0"].dtype) == dtype
            assert (other(x)[0] - layer(x)[0]).abs().max() < error


def test_what_is_refused():
    layer = nn.LSTM(24, 20)
    with pytest.raises(ValueError, match="not pruned by a Pruner"):
        GSLSTM.from_module(layer)
    with pytest.raises(TypeError, match=r"GSGRU is made from torch\.nn\.GRU, got LSTM"):
        GSGRU.from_module(layer)
    with pytest.raises(ValueError, match="projections"):
        GSLSTM.from_module(nn.LSTM(24, 20, proj_size=8), "irregular")
    compact = GSLSTM.from_module(prune_(layer, "gs(4,4)", 0.6))
    x = torch.randn(3, 2, 24)
    with pytest.raises(RuntimeError, match="GSLSTM runs on the CPU"):
        compact(x.to("meta"))
    with pytest.raises(TypeError, match=r"hx must be a pair \(h_0, c_0\)"):
        compact(x, torch.zeros(1, 2, 20))
    with pytest.raises(
        ValueError, match=r"x must have shape \[steps, batch, 24\], got \[3, 2, 20\]"
    ):
        compact(x[..., :20])
    with torch.no_grad(), pytest.raises(ValueError, match=r"h_0 must have shape \[1, 2, 20\]"):
        compact(x, (torch.zeros(2, 2, 20), torch.zeros(1, 2, 20)))
    square = GSGRU.from_module(prune_(nn.GRU(20, 20, 2), "gs(4,4)", 0.6))
    with pytest.raises(ValueError, match="a cell has 2 matrices, got 4"):
        GSGRUCell(list(square.matrices.values()))


def test_state_of_a_layer():
    layer = GSLSTM.from_module(prune_(nn.LSTM(24, 20, 2), "gs(4,1)+scatter", 0.6))
    other = GSLSTM.from_module(prune_(nn.LSTM(24, 20, 2), "block(1,4)", 0.5))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 2, 24)
    assert torch.equal(other(x)[0], layer(x)[0])
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    assert "(weight_hh_l1): CompactWeight(pattern=gs(4,1)+scatter, dtype=float32" in repr(layer)
    small = GSLSTM.from_module(prune_(nn.LSTM(24, 20), "gs(4,4)", 0.6))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ih_l1\.values"):
        small.load_state_dict(layer.state_dict())
    narrow = GSLSTM.from_module(prune_(nn.LSTM(20, 20, 2), "gs(4,4)", 0.6))
    with pytest.raises(ValueError, match=r"this layer is \(80, 20\), the state that of \(80, 24\)"):
        narrow.load_state_dict(layer.state_dict())


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(32, 32, 2, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(64, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x):
        y, _ = self.encoder(input=x)
        h = None
        for step in y.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


def test_convert(caplog):
    torch.manual_seed(2)
    model = Translator()
    pruner = Pruner(model, "gs(8,8)", 0.75, include=["encoder", "cell.weight_hh", "out"])
    x = torch.randn(3, 5, 32)
    fast = convert(model, pruner, keep_dense=False)
    assert [type(module) for module in fast.children()] == [GSLSTM, GSGRUCell, GSLinear]
    with torch.no_grad():
        assert (fast(x) - model.double()(x.double())).abs().max() < 1e-5
    model.float()
    assert sorted(matrices(fast)) == sorted(model.state_dict())
    assert isinstance(matrices(fast)["encoder.weight_hh_l1_reverse"], gs.GSMatrix)
    with caplog.at_level(logging.INFO, "gspattern"):
        convert(model, example_inputs=x)
    assert "encoder: dense" in caplog.text
    assert "for an input of (3, 5, 32)" in caplog.text
    assert "gs(8,8)" in caplog.text


def test_convert_what_was_pruned_elsewhere():
    model = Translator()
    with torch.no_grad():
        model.encoder.weight_hh_l0[torch.rand(128, 32) < 0.7] = 0
    fast = convert(model, pattern="irregular", keep_dense=False)
    assert [type(module) for module in fast.children()] == [GSLSTM, nn.GRUCell, nn.Linear]
    zeros = model.encoder.weight_hh_l0.detach().numpy()
    assert np.array_equal(fast.encoder.matrices["weight_hh_l0"].to_dense(), zeros)
    named = convert(model, pattern={"cell": "irregular"}, keep_dense=False)
    assert [type(module) for module in named.children()] == [nn.LSTM, GSGRUCell, nn.Linear]
    projected = nn.LSTM(32, 32, proj_size=8)
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(projected, pattern={"*": "irregular"})


def test_converted_models_compile():
    layer = GSLSTM.from_module(prune_(nn.LSTM(24, 20), "gs(4,4)", 0.6))
    model = nn.Sequential(nn.Linear(24, 24), layer)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 2, 24)
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], model(x)[0])
