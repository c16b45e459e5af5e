"""LSTM and GRU on every backend, against torch's own layers in float64 on the masked weights.

A step rounds its sums like any product and its activations by two units in the last place; sigmoid, tanh and a state
within [-1, 1] pass errors on no larger than they are times the sums of |W_hh|, so that bounds are per case.
"""

import numpy as np
import pytest
import torch
from torch import nn

import gspattern as gs

BACKENDS = gs.backends()
rng = np.random.default_rng(5)


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def pruned(weight, pattern, sparsity):
    selection = gs.choose_mask(np.abs(weight).astype(np.float32), pattern, sparsity)
    return gs.encode(weight, pattern, mask=selection.mask, row_order=selection.row_order)


def build(kind, features, hidden, layers=1, pattern="gs(cpu)", sparsity=0.7, bias=True, **options):
    """A torch layer in float64 and the parameters of the same one here: float32, pruned."""
    torch.manual_seed(features + hidden + layers)
    module = getattr(nn, kind)(features, hidden, layers, bias=bias, **options)
    params = []
    for weight in module._flat_weights:
        array = weight.detach().numpy().copy()
        if array.ndim == 2:
            params.append(pruned(array, pattern, sparsity))
            weight.data = torch.from_numpy(params[-1].to_dense())
        else:
            params.append(array)
    return module.double(), params


def run_both(module, params, x, hx, **options):
    """Outputs and states of both, as lists of arrays."""
    function = gs.lstm if isinstance(module, nn.LSTM) else gs.gru
    y, state = function(x, params, hx, bidirectional=module.bidirectional, **options)
    got = [y, *(state if isinstance(state, tuple) else (state,))]
    wide = torch.from_numpy(x.astype(np.float64))
    if isinstance(hx, tuple):
        hx = tuple(torch.from_numpy(a.astype(np.float64)) for a in hx)
    elif hx is not None:
        hx = torch.from_numpy(hx.astype(np.float64))
    with torch.no_grad():
        if "lengths" in options:
            batch_first = options.get("batch_first", False)
            packed = nn.utils.rnn.pack_padded_sequence(
                wide, torch.from_numpy(options["lengths"]), batch_first, enforce_sorted=False
            )
            y, state = module(packed, hx)
            y, _ = nn.utils.rnn.pad_packed_sequence(
                y, batch_first, total_length=x.shape[1 if batch_first else 0]
            )
        else:
            y, state = module(wide, hx)
    exact = [y, *(state if isinstance(state, tuple) else (state,))]
    return got, [a.numpy() for a in exact]


def initial(kind, *shape):
    return (normal(*shape), normal(*shape)) if kind == "LSTM" else normal(*shape)


def assert_close(got, exact, bound=4e-6):
    for a, b in zip(got, exact, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layers_and_directions(kind, layers, bidirectional, backend):
    for bias in (True, False):
        module, params = build(kind, 40, 33, layers, bias=bias, bidirectional=bidirectional)
        count = layers * (1 + bidirectional)
        with gs.use_backend(backend):
            for steps, batch in ((1, 1), (6, 1), (4, 7), (3, 40)):
                x, hx = normal(steps, batch, 40), initial(kind, count, batch, 33)
                assert_close(*run_both(module, params, x, hx))
                assert_close(*run_both(module, params, x, None))
                lengths = rng.integers(1, steps + 1, batch)
                assert_close(*run_both(module, params, x, hx, lengths=lengths))
