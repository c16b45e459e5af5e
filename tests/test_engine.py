"""The engine's model: cases counted by hand, known costs of random gathers, two ways to count."""

import dataclasses
import time

import numpy as np
import pytest
import torch

import gspattern as gs
from gspattern.engine import (
    PRESETS,
    ConvLayer,
    Engine,
    LSTMLayer,
    estimate,
    gather_cycles,
    network_cycles,
    replay,
    simulate,
    total_cycles,
    utilization,
)

SMALL = Engine(lanes=4, banks=4, gather_issue=4, fma_lanes=4, dram_bytes_per_cycle=16)
PATTERNS = [
    "dense", "irregular", "block(1,16)", "block(16,1)", "block(3,5)", "block(1,4)", "2:4", "bank_balanced(16)",
    "gs(16,16)", "gs(16,1)", "gs(16,4)", "gs(32,2)", "gs(8,8)", "gs(16,1)+scatter",
]  # fmt: skip


def layer(pattern, shape, sparsity, seed):
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if pattern == "dense":
        return weights
    if pattern == "2:4":
        sparsity = None
    scores = np.ascontiguousarray(np.abs(gs.as_matrix(weights)))
    chosen = gs.choose_mask(scores, pattern, sparsity=sparsity)
    mask = gs.from_matrix(chosen.mask, shape)
    return gs.encode(weights, pattern, mask=mask, row_order=chosen.row_order)


@pytest.mark.parametrize(("banks", "cost"), [(8, 2.59), (16, 3.07), (32, 3.54)])
@pytest.mark.parametrize("count", [gather_cycles, lambda *args: replay(*args).cycles])
def test_random_columns_cost_what_is_known(banks, cost, count):
    engine = Engine(lanes=banks, banks=banks, gather_issue=banks, fma_lanes=banks)
    columns = np.random.default_rng(banks).integers(0, 1024, (200_000, banks))
    assert count(columns, engine, 1024).mean() == pytest.approx(cost, rel=0.01)


@pytest.mark.parametrize(("issue", "ports"), [(1, 1), (2, 1), (3, 2), (8, 1), (8, 3)])
def test_replay_and_formula_agree(issue, ports):
    engine = Engine(lanes=8, banks=4, gather_issue=issue, ports=ports)
    addresses = np.random.default_rng(issue).integers(-3, 64, (5000, 8))
    run = replay(addresses, engine, 64)
    np.testing.assert_array_equal(
        run.cycles, gather_cycles(np.maximum(addresses, 0), engine, 64, addresses >= 0)
    )
    assert run.total == run.cycles.sum() + engine.bank_latency


def test_replay_by_hand():
    engine = Engine(lanes=4, banks=4, gather_issue=2)
    # Two slots a cycle. All apart: 2. Three in bank 0, issued at 0, 0 and 1: 3. In bank 1 the last of 2: 2. Nothing: 0.
    accesses = [[0, 1, 2, 3], [0, 4, 8, 3], [0, 3, 1, 5], [-1, -1, -1, -1]]
    run = replay(accesses, engine)
    assert run.cycles.tolist() == [2, 3, 3, 0]
    assert run.conflicts.tolist() == [0, 1, 1, 0]
    assert run.total == 8 + 2
    with pytest.raises(ValueError, match="below length"):
        replay(accesses, engine, length=8)
    with pytest.raises(ValueError, match="must be integers"):
        replay([0.5], engine)


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


def test_changed_engines_by_hand():
    matrix = gs.encode(np.eye(4, dtype=np.float32), "gs(4,1)")

    def total(n=1, **values):
        return simulate(matrix, dataclasses.replace(SMALL, **values), n=n).total

    # Two columns: gathers until 3 and 4, products at 6 and 7, sums at 11, two stores until 13.
    assert total(n=2) == 13
    # With sums of one column at a time: the first stored at 11, the second at 12.
    assert total(n=2, accumulators=1) == 12
    # A line of 64 bytes is there after 100 + 4.
    assert total(prefetch=False) == 113
    # Indices in a cycle of their own.
    assert total(fused_gather=False) == 12
    # Half of the slots in a cycle; half of the products.
    assert total(gather_issue=2) == total(fma_lanes=2) == 12


def test_two_bundles_of_a_row_by_hand():
    weights = np.zeros((1, 16), np.float32)
    weights[0, [0, 1, 2, 3, 4, 9, 14, 15]] = 1
    matrix = gs.encode(weights, "gs(4,4)")
    # 20 bytes until 1.25, 16 until 2.25; gathers until 3 and 4, products at 6 and 7; two adds until 9, 13, stored.
    assert simulate(matrix, SMALL).total == 14
    # 20 bytes until 5, 16 until 9; gathered at 10, data at 12, product at 13; 15, 19, stored at 20.
    slow = dataclasses.replace(SMALL, dram_bytes_per_cycle=4)
    assert simulate(matrix, slow).total == 20


def test_banks_of_a_convolution_by_hand():
    # The taps of 3 channels, 2 apart: columns 0 and 4 are at addresses 0 and 7, so in banks 0 and 3, or both in 0.
    mask = np.zeros((1, 3, 2), np.bool_)
    mask[0, 0, 0] = mask[0, 1, 1] = True
    conv = ConvLayer(mask, (5,), dilation=2, padding=(0,))
    assert conv.out_length == (3,)
    by_column = dataclasses.replace(SMALL, mapping="interleaved")
    assert simulate(conv, SMALL).conflicts == 0
    assert simulate(conv, by_column).conflicts == 3  # one for each position


def test_an_lstm_by_hand():
    ones = np.ones((4, 1), np.float32)
    # 8 bytes until 1, loaded at 2, data at 4, products at 5, 9, stored at 10; so twice, and gates.
    assert simulate(LSTMLayer(ones, ones), SMALL).total == 10 + 10 + 30
    # The inputs of three steps at once: stored at 12, 13, 14.
    assert simulate(LSTMLayer(ones, ones, steps=3), SMALL).total == 14 + 3 * (10 + 30)


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


def random_layer(rng):
    """A matrix, a convolution or an LSTM of sizes, pattern and sparsity drawn at random, and its n."""
    pattern = str(rng.choice(PATTERNS))
    sparsity = float(rng.uniform(0.4, 0.95))
    kind = rng.choice(["matrix", "conv1d", "conv2d", "lstm"], p=[0.55, 0.15, 0.15, 0.15])
    seed = int(rng.integers(1 << 30))
    if kind == "matrix":
        shape = int(rng.integers(96, 600)), int(rng.integers(200, 1100))
        return layer(pattern, shape, sparsity, seed), int(rng.choice([1, 1, 2, 5, 9, 40]))
    if kind == "lstm":
        hidden, inputs = int(rng.integers(48, 160)), int(rng.integers(100, 400))
        weights = (layer(pattern, (4 * hidden, k), sparsity, seed) for k in (inputs, hidden))
        return LSTMLayer(*weights, steps=int(rng.integers(1, 6))), int(rng.integers(1, 4))
    kernel = (int(rng.choice([1, 3, 11])),) if kind == "conv1d" else (3, int(rng.choice([1, 3])))
    shape = int(rng.integers(32, 160)), int(rng.integers(24, 96)), *kernel
    length = (int(rng.integers(20, 60)),) if kind == "conv1d" else (int(rng.integers(6, 15)), 9)
    stride, dilation = int(rng.choice([1, 2])), int(rng.choice([1, 2]))
    return ConvLayer(layer(pattern, shape, sparsity, seed), length, stride, dilation), int(
        rng.integers(1, 4)
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(75))
def test_formula_and_simulation_agree(preset, seed):
    rng = np.random.default_rng([seed, *preset.encode()])
    given, n = random_layer(rng)
    engine = dataclasses.replace(
        PRESETS[preset],
        prefetch=bool(rng.random() < 0.7),
        fused_gather=bool(rng.random() < 0.5),
        mapping=str(rng.choice(["address", "address", "interleaved", "contiguous"])),
        ports=int(rng.choice([1, 1, 2])),
        accumulators=int(rng.choice([1, 4, 8])),
        dram_bytes_per_cycle=float(rng.choice([4.0, 16.0, 64.0])),
        l1_bytes=int(rng.choice([1024, 32768])),
        scratchpad_bytes=int(rng.choice([4096, 65536])) if PRESETS[preset].scratchpad_bytes else 0,
    )
    counted, computed = simulate(given, engine, n=n), estimate(given, engine, n=n)
    assert computed.total == pytest.approx(counted.total, rel=0.02)
    for part in (
        "gather",
        "conflicts",
        "fma",
        "reduction",
        "stores",
        "products",
        "tiling",
        "gates",
    ):
        assert getattr(computed, part) == getattr(counted, part), part
    assert computed.streaming == pytest.approx(counted.streaming)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_convolution_multiplies_every_nonzero_once(pattern):
    weights = layer(pattern, (24, 10, 3, 5), 0.7, 7)
    dense = weights if pattern == "dense" else gs.from_matrix(weights.to_dense(), (24, 10, 3, 5))
    x = np.random.default_rng(8).normal(size=(2, 9, 11, 10))
    conv = ConvLayer(weights, (9, 11), stride=2, dilation=2, padding=(2, 4))
    expected = torch.nn.functional.conv2d(
        torch.tensor(x).movedim(3, 1), torch.tensor(dense, dtype=torch.float64), None, 2, (2, 4), 2
    )
    y = simulate(conv, "paper128", x=x).y
    np.testing.assert_allclose(y, expected.movedim(1, 3), rtol=1e-12, atol=1e-12)


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
    small = dataclasses.replace(SMALL, scratchpad_bytes=64)  # 32 bytes of x, 32 of y

    # 128 bytes of x in four tiles, 16 bytes in a cycle. The two sums fit.
    two_rows = np.ones((2, 64), np.float32)
    assert simulate(two_rows, SMALL).tiling == 0
    assert simulate(two_rows, small).tiling == 128 / 16
    assert simulate(two_rows, small).total == simulate(two_rows, SMALL).total + 8

    # 64 bytes of sums go out and come back between tiles, three times; then they are stored.
    assert simulate(np.ones((32, 64), np.float32), small).tiling == (128 + 3 * 2 * 64 + 64) / 16

    # Six pictures of four positions, 8 bytes each: four at a time fit, so the weights pass twice.
    conv = ConvLayer(np.ones((1, 1, 1), np.float32), (4,))
    cycles = simulate(conv, small, n=6)
    assert cycles.tiling == 6 * 8 / 16 + (6 * 8 > 32) * 6 * 8 / 16
    assert cycles.streaming == 2 / 16 + 2 / 64 + (24 // 8 - 2) * 2 / 64


def test_utilization():
    assert utilization([5, 5, 5]) == 1
    assert utilization([4, 0, 0, 0]) == pytest.approx(0)
    assert utilization([4, 2]) == pytest.approx(1 - (4 - 3) / 4 * 2)
    assert utilization([0, 0]) == utilization([7]) == 1
    with pytest.raises(ValueError, match="load must be"):
        utilization([-1, 2])


@pytest.mark.parametrize("shape", [(0, 16), (5, 0), (3, 16)])
def test_nothing_to_do(shape):
    cycles = simulate(np.zeros(shape, np.bool_), "paper128", x=np.zeros(shape[1]))
    assert cycles.products == cycles.gather == 0
    assert cycles.y.shape == shape[:1]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="ports must be an integer from 1"):
        Engine(ports=0)
    with pytest.raises(ValueError, match="dram_bytes_per_cycle must be"):
        Engine(dram_bytes_per_cycle=float("nan"))
    with pytest.raises(ValueError, match="mapping must be"):
        Engine(mapping="random")
    with pytest.raises(ValueError, match="weights must be a Matrix, or an array of 2 to 4 dim"):
        simulate(np.ones(4))
    assert ConvLayer(np.ones((2, 3, 3)), 4).length == (4,)
    with pytest.raises(ValueError, match="one of paper64"):
        simulate(np.eye(2), "paper32")
    with pytest.raises(ValueError, match=r"x must have shape \(2,\)"):
        simulate(np.eye(2), x=np.ones(3))


def test_networks_have_their_known_sizes():
    # Products of one picture of 224 x 224, as published for ResNet50 v1.5 (4.09 GMACs).
    layers = network_cycles("resnet50", "dense", None)
    assert total_cycles(layers).products == 4_089_184_256
    assert sum(layer.count for layer in layers) == 54
    gnmt = total_cycles(network_cycles("gnmt", "dense", None))
    # LSTMs of encoder and decoder, attention and classifier, in 30 steps each; the keys at once.
    cell = 4 * 1024 * 1024
    lstms = (4 * 2 + 3) * cell + (2 + 3 * 3) * cell
    assert gnmt.products == 30 * (lstms + 2 * 1024**2 + 32320 * 1024)


def test_balance_pays_in_resnet50():
    began = time.perf_counter()
    cycles = {
        pattern: total_cycles(network_cycles("resnet50", pattern, 0.9))
        for pattern in ("irregular", "gs(16,16)", "block(1,16)")
    }
    assert time.perf_counter() - began < 3 * 20
    irregular, balanced, blocks = cycles.values()
    assert irregular.conflicts > irregular.gather
    assert balanced.conflicts == 0
    assert balanced.gather < irregular.gather
    assert irregular.total > balanced.total > blocks.total  # the latter have a third of the sums
    for each in cycles.values():  # all but the first convolution is pruned
        expected = 0.1 * (4_089_184_256 - 118_013_952) + 118_013_952
        assert each.products == pytest.approx(expected, rel=0.01)
