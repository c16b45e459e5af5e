"""One layer of an LSTM over a sequence, in one direction: x is [T, N, features]."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import gspattern
from gspattern import roofline
from gspattern.bench import lstm_peers
from gspattern.bench.layers import Contender, Doubles, Floats, Layer, Product, facts_of
from gspattern.bench.lstm_peers import Inputs, Weights, run_steps
from gspattern.bench.shapes import LSTMShape
from gspattern.matrices import Matrix
from gspattern.plans import plan_for_samples
from gspattern.roofline import Bound

__all__ = ["LSTMLayer"]


class LSTMLayer(Layer[LSTMShape]):
    """Two matrices, [4 H, features] and [4 H, H], with sums of about 1, so that gates do not saturate, and a bias."""

    peers = lstm_peers.PEERS

    def _sizes(self) -> list[tuple[int, int]]:
        return [(self.shape.rows, self.shape.inputs), (self.shape.rows, self.shape.hidden)]

    def _make(self, rows: int, cols: int, seed: int) -> Floats:
        weights: Floats = super()._make(rows, cols, seed) / np.float32(cols**0.5)
        return weights

    def _bias(self) -> Floats:
        return np.random.default_rng(2).standard_normal(self.shape.rows, dtype=np.float32)

    def inputs(self, n: int) -> Inputs:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.shape.steps, n, self.shape.inputs), dtype=np.float32)
        h, c = np.tanh(rng.standard_normal((2, n, self.shape.hidden), dtype=np.float32))
        return Inputs(x, h, c)

    def weights(self, which: str) -> Weights:
        inputs, hidden = self.full(which)
        return Weights(inputs, hidden, self._bias())

    def exact(self, which: str, x: Inputs, dtype: str) -> tuple[Doubles, Doubles]:
        """Errors are relative to the sums of the absolute products that a gate adds up, of the largest gate."""
        inputs, hidden = self.full(which, dtype)
        bias = self._bias()
        wide: list[Any] = [each.astype(np.float64) for each in (inputs, hidden, bias, *x)]
        y = run_steps(Weights(*wide[:3]), Inputs(*wide[3:]))
        sums = np.abs(x.x) @ np.abs(inputs.T) + np.abs(hidden).sum(axis=1) + np.abs(bias)
        scale = sums.reshape(*x.x.shape[:2], 4, -1).max(axis=2)
        return y, scale.astype(np.float64)

    def dense_bound(self, n: int) -> Bound:
        """Weights of the state are loaded in every step, those of the input once."""
        rows, inputs, hidden = self.shape.rows, self.shape.inputs, self.shape.hidden
        once = roofline.dense_bound((rows, inputs), n * self.shape.steps, self.dtype)
        step = roofline.dense_bound((rows, hidden), n, self.dtype)
        return roofline.together(once, step, self.shape.steps)

    def own(self, x: Inputs) -> list[Contender]:
        return [
            self._contender(pattern, inputs, hidden, x)
            for pattern, (inputs, hidden) in self.matrices.items()
        ]

    def _contender(self, pattern: str, inputs: Matrix, hidden: Matrix, x: Inputs) -> Contender:
        steps, batch, _ = x.x.shape
        bias, state = self._bias(), (x.h[None], x.c[None])
        params = (inputs, hidden, bias, None)
        at_once = plan_for_samples(inputs, steps * batch)
        each = plan_for_samples(hidden, batch)
        facts = facts_of(each) | {"bytes": at_once.bytes + each.bytes, "step_bytes": each.bytes}

        def bound() -> Bound:
            once = roofline.bound(at_once, inputs.shape, steps * batch)
            return roofline.together(once, roofline.bound(each, hidden.shape, batch), steps)

        call = partial(gspattern.lstm, x.x, params, state)
        product = Product("sequence", call, lambda y: y[0])
        return Contender(pattern, "pattern", product, pattern, facts, bound)
