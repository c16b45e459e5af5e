"""The engine's model: cases counted by hand, known costs of random gathers, two ways to count."""

import dataclasses

import numpy as np
import pytest

import gspattern as gs
from gspattern.engine import PRESETS, Engine, estimate, gather_cycles, simulate, utilization

SMALL = Engine(lanes=4, banks=4, gather_issue=4, fma_lanes=4, dram_bytes_per_cycle=16)
PATTERNS = [
    "dense", "irregular", "block(1,16)", "block(16,1)", "block(3,5)", "2:4", "bank_balanced(16)",
    "gs(16,16)", "gs(16,1)", "gs(16,4)", "gs(32,2)", "gs(8,8)", "gs(16,1)+scatter",
]  # fmt: skip


def layer(pattern, shape, sparsity, seed):
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if pattern == "dense":
        return weights
    if pattern == "2:4":
        sparsity = None
    chosen = gs.choose_mask(np.abs(weights), pattern, sparsity=sparsity)
    return gs.encode(weights, pattern, mask=chosen.mask, row_order=chosen.row_order)


@pytest.mark.parametrize(("banks", "cost"), [(8, 2.59), (16, 3.07), (32, 3.54)])
def test_random_columns_cost_what_is_known(banks, cost):
    engine = Engine(lanes=banks, banks=banks, gather_issue=banks, fma_lanes=banks)
    columns = np.random.default_rng(banks).integers(0, 1024, (200_000, banks))
    assert gather_cycles(columns, engine, 1024).mean() == pytest.approx(cost, rel=0.01)


@pytest.mark.parametrize("pattern", ["gs(16,16)", "gs(16,1)", "gs(16,4)", "gs(16,1)+scatter"])
def test_gs_gathers_cost_one(pattern):
    cycles = simulate(layer(pattern, (64, 128), 0.8, 1), "paper128")
    assert cycles.conflicts == 0
    assert cycles.gather == cycles.products // 16


def test_contiguous_banks_need_the_contiguous_mapping():
    matrix = layer("bank_balanced(16)", (16, 256), 0.75, 2)
    contiguous = dataclasses.replace(PRESETS["paper128"], mapping="contiguous")
    assert simulate(matrix, contiguous).conflicts == 0
    assert simulate(matrix, "paper128").conflicts > 0


def test_one_bundle_by_hand():
    # 16 + 4 bytes in 2 cycles, a gather until 3, data at 5, products at 6, the sum at 10, stored at 11.
    cycles = simulate(gs.encode(np.eye(4, dtype=np.float32), "gs(4,1)"), SMALL)
    assert (cycles.total, cycles.gather, cycles.conflicts, cycles.fma) == (11, 1, 0, 1)
    assert (cycles.streaming, cycles.reduction, cycles.stores) == (20 / 16, 0, 1)


def test_one_irregular_row_by_hand():
    mask = np.zeros((1, 16), np.bool_)
    mask[0, [0, 4, 8, 9]] = True  # three in bank 0
    cycles = simulate(mask, SMALL)
    # Bytes until 2, a gather of 3 cycles until 5, data at 7, products at 8, two adds until 10, 14, stored at 15.
    assert (cycles.total, cycles.gather, cycles.conflicts, cycles.reduction) == (15, 1, 2, 2)


def test_scatter_stores_conflict():
    matrix = layer("gs(4,1)+scatter", (8, 16), 0.5, 3)
    order = matrix.row_order.reshape(-1, 4)
    most = [np.bincount(rows % 4).max() for rows in order]
    assert simulate(matrix, SMALL).stores == sum(most)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(33, 65), (64, 128), (1, 64)])
def test_every_nonzero_is_multiplied_once(pattern, shape):
    matrix = layer(pattern, shape, 0.8, 4)
    dense = (matrix if pattern == "dense" else matrix.to_dense()).astype(np.float64)
    x = np.random.default_rng(5).normal(size=(shape[1], 3))
    cycles = simulate(matrix, "paper128", x=x)
    np.testing.assert_allclose(cycles.y, dense @ x, rtol=1e-12, atol=1e-12)
    places = dense.size if pattern == "dense" else matrix.mask().sum()
    assert cycles.products == 3 * places
    assert simulate(matrix, "paper128", x=x[:, 0]).y.shape == (shape[0],)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("engine", PRESETS)
def test_formula_and_simulation_agree(pattern, engine):
    for seed, (rows, cols, sparsity, n) in enumerate(
        [(256, 512, 0.5, 1), (192, 1024, 0.8, 1), (512, 320, 0.9, 2), (160, 768, 0.7, 3)]
    ):
        matrix = layer(pattern, (rows, cols), sparsity, seed)
        for prefetch in (True, False):
            chosen = dataclasses.replace(PRESETS[engine], prefetch=prefetch)
            counted, computed = simulate(matrix, chosen, n=n), estimate(matrix, chosen, n=n)
            assert computed.total == pytest.approx(counted.total, rel=0.02)
            for part in ("gather", "conflicts", "fma", "reduction", "stores", "products"):
                assert getattr(computed, part) == getattr(counted, part), part
            assert computed.streaming == pytest.approx(counted.streaming)


@pytest.mark.parametrize("pattern", ["irregular", "gs(16,16)", "bank_balanced(16)"])
def test_more_is_never_slower(pattern):
    matrix = layer(pattern, (64, 256), 0.8, 6)
    for name, values in {
        "ports": (1, 2, 4), "gather_issue": (1, 4, 16), "fma_lanes": (4, 8, 16),
        "dram_bytes_per_cycle": (4.0, 16.0, 64.0),
    }.items():  # fmt: skip
        totals = [
            simulate(matrix, dataclasses.replace(PRESETS["paper128"], **{name: value})).total
            for value in values
        ]
        assert totals == sorted(totals, reverse=True), name


def test_activations_beyond_the_scratchpad_are_tiled():
    weights = np.ones((2, 64), np.float32)
    engine = dataclasses.replace(SMALL, scratchpad_bytes=64)
    # 128 bytes of x in two tiles; two sums go out and in: 2 * 2 * 2 bytes; 16 bytes in a cycle.
    assert simulate(weights, engine).tiling == 9
    assert simulate(weights, engine).total == simulate(weights, SMALL).total + 9


def test_utilization():
    assert utilization([5, 5, 5]) == 1
    assert utilization([4, 0, 0, 0]) == pytest.approx(0)
    assert utilization([4, 2]) == pytest.approx(1 - (4 - 3) / 4 * 2)
    assert utilization([0, 0]) == utilization([7]) == 1
    with pytest.raises(ValueError, match="load must be"):
        utilization([-1, 2])


@pytest.mark.parametrize("shape", [(0, 16), (5, 0), (3, 16)])
def test_nothing_to_do(shape):
    cycles = simulate(np.zeros(shape, np.bool_), "paper128")
    assert cycles.products == cycles.gather == 0
    assert cycles.y.shape == shape[:1]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="ports must be an integer from 1"):
        Engine(ports=0)
    with pytest.raises(ValueError, match="dram_bytes_per_cycle must be"):
        Engine(dram_bytes_per_cycle=float("nan"))
    with pytest.raises(ValueError, match="mapping must be"):
        Engine(mapping="random")
    with pytest.raises(ValueError, match="one of paper64"):
        simulate(np.eye(2), "paper32")
    with pytest.raises(ValueError, match=r"x must have shape \(2,\)"):
        simulate(np.eye(2), x=np.ones(3))
