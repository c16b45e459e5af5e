"""Convolutions: x is [N, Ci, height, width] or [N, Ci, width], in memory as it stands or with the channels last."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

import gspattern
from gspattern import roofline
from gspattern.bench import conv_peers
from gspattern.bench.layers import Contender, Doubles, Floats, Layer, Product, facts_of
from gspattern.bench.shapes import ConvShape
from gspattern.matrices import Matrix, from_matrix
from gspattern.plans import plan_for

__all__ = ["ConvLayer", "patches"]


class ConvLayer(Layer[ConvShape]):
    """Weights are [Co, Ci, ...], x is float32 [N, Ci, ...]."""

    peers = conv_peers.PEERS

    def _shaped(self, weights: Floats) -> Floats:
        shape = self.shape
        return from_matrix(weights, (shape.outputs, shape.inputs, *shape.kernel))

    def inputs(self, n: int) -> Floats:
        size = (n, self.shape.inputs, *self.shape.length)
        return np.random.default_rng(1).standard_normal(size, dtype=np.float32)

    def weights(self, which: str) -> Floats:
        return np.ascontiguousarray(self._shaped(self.full(which)[0]))

    def exact(self, which: str, x: Floats, dtype: str) -> tuple[Doubles, Doubles]:
        weights = self.full(which, dtype)[0]
        columns = patches(x, self.shape)
        y = columns.astype(np.float64) @ weights.T.astype(np.float64)
        scale = (np.abs(columns) @ np.abs(weights.T)).astype(np.float64)
        scale[scale == 0] = 1
        size = (len(x), *self.shape.out_length, self.shape.outputs)
        return tuple(np.moveaxis(each.reshape(size), -1, 1) for each in (y, scale))

    def own(self, x: Floats) -> list[Contender]:
        y = np.empty((len(x), self.shape.outputs, *self.shape.out_length), np.float32)
        return [
            self._contender(pattern, matrix, layout, *arrays)
            for pattern, (matrix,) in self.matrices.items()
            for layout, arrays in (
                ("channels first", (x, y)),
                ("channels last", (_channels_last(x), _channels_last(y))),
            )
        ]

    def _contender(
        self, pattern: str, matrix: Matrix, layout: str, x: Floats, y: Floats
    ) -> Contender:
        shape = self.shape
        convolve = gspattern.conv2d if len(shape.kernel) == 2 else gspattern.conv1d
        call = partial(
            convolve, x, matrix, None, shape.stride, shape.padding, shape.dilation, out=y
        )
        pixels = len(x) * shape.uses
        plan = plan_for(matrix, max(pixels, 16))
        return Contender(
            pattern,
            "pattern",
            Product(layout, call, lambda y: y),
            pattern,
            facts_of(plan),
            lambda: roofline.bound(plan, matrix.shape, pixels, x.nbytes + y.nbytes),
        )


def _channels_last(images: Floats) -> Floats:
    """The same images, with the channels of a pixel side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, -1)), -1, 1)


def patches(x: Floats, shape: ConvShape) -> Floats:
    """What each output is a product of, [N * pixels, kernel * Ci] with Ci fastest: the matrix that im2col makes."""
    pads = [(0, 0), *((pad, pad) for pad in shape.padding), (0, 0)]
    padded = np.pad(np.moveaxis(x, 1, -1), pads)
    first, *inner, last = padded.strides
    view = as_strided(
        padded,
        (len(x), *shape.out_length, *shape.kernel, shape.inputs),
        (
            first,
            *(each * shape.stride for each in inner),
            *(each * shape.dilation for each in inner),
            last,
        ),
        writeable=False,
    )
    return view.reshape(-1, shape.cols)
