"""Index streams: what matrices access, and Spatter's suites of it."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gspattern as gs
from gspattern.engine import (
    Engine,
    SpatterRun,
    read_suite,
    replay_run,
    simulate,
    stream,
    write_suite,
)
from gspattern.engine.streams import KERNELS

PATTERNS = ["irregular", "gs(16,16)", "gs(16,4)", "gs(16,1)", "gs(16,1)+scatter", "block(3,5)", "2:4"]  # fmt: skip


def encoded(pattern, shape=(50, 96), seed=0):
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    chosen = gs.choose_mask(np.abs(weights), pattern, None if pattern == "2:4" else 0.8)
    return gs.encode(weights, pattern, chosen.mask, chosen.row_order)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("order", ["stored", "rows", "banks"])
def test_a_stream_accesses_every_nonzero_once(pattern, order):
    matrix = encoded(pattern)
    found = stream(matrix, order)
    used = found.gathers >= 0
    np.testing.assert_array_equal(used, found.targets >= 0)
    places = np.zeros(matrix.shape, np.int64)
    np.add.at(places, (found.targets[used], found.gathers[used]), 1)
    np.testing.assert_array_equal(places, matrix.mask())
    stored = found.stores[found.stores >= 0]
    np.testing.assert_array_equal(np.sort(stored), np.arange(50))
    if order == "rows":
        np.testing.assert_array_equal(found.targets[used], np.nonzero(matrix.mask())[0])
        np.testing.assert_array_equal(found.gathers[used], np.nonzero(matrix.mask())[1])
    if order == "banks":
        for bundle in found.gathers:
            assert (np.diff(bundle[bundle >= 0] % 16) >= 0).all()


def test_a_stream_of_rows_by_hand():
    mask = np.zeros((2, 8), np.bool_)
    mask[0, [1, 2, 3, 5, 7]] = mask[1, 4] = True
    found = stream(mask, engine=Engine(lanes=4, banks=4))
    assert found.gathers.tolist() == [[1, 2, 3, 5], [7, -1, -1, -1], [4, -1, -1, -1]]
    assert found.targets.tolist() == [[0, 0, 0, 0], [0, -1, -1, -1], [1, -1, -1, -1]]
    assert found.stores.tolist() == [[0, -1, -1, -1], [1, -1, -1, -1]]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_suites_come_back_as_they_were(kernel, pattern, tmp_path):
    matrix = encoded(pattern)
    found = stream(matrix)
    run = SpatterRun.of(found, kernel, n=3, name="a layer")
    write_suite([run], tmp_path / "suite.json")
    (again,) = read_suite(tmp_path / "suite.json")
    assert again == SpatterRun(**{**vars(run), **unused_deltas(run)})
    columns = [bundle[bundle >= 0] for bundle in found.gathers if (bundle >= 0).any()]
    rows = [bundle[bundle >= 0] for bundle in found.targets if (bundle >= 0).any()]
    stores = [row[row >= 0] for row in found.stores]
    expected = {
        "gather": [("reads", columns, 96)],
        "multigather": [("reads", columns, 96)],
        "gs": [("reads", columns, 96), ("writes", rows, 50)],
        "scatter": [("writes", stores, 50)],
        "multiscatter": [("writes", stores, 50)],
    }[kernel]
    for side, accesses, delta in expected:
        got = again.accesses(side)
        assert len(got) == 3 * len(accesses)
        for i, access in enumerate(got):
            repetition, which = divmod(i, len(accesses))
            np.testing.assert_array_equal(access[access >= 0], accesses[which] + repetition * delta)


def unused_deltas(run):
    """Deltas that a kernel does not have come back as Spatter's defaults."""
    return {"delta": 8} if run.kernel == "gs" else {"delta_gather": 8, "delta_scatter": 8}


def test_replay_counts_what_the_simulator_does():
    for pattern in PATTERNS:
        matrix = encoded(pattern)
        if pattern == "block(3,5)":  # loads, not gathers
            continue
        counted = simulate(matrix, "paper128")
        replayed = replay_run(SpatterRun.of(stream(matrix)), "paper128")
        assert replayed.slots == matrix.mask().sum()
        assert replayed.cycles == counted.gather + counted.conflicts + 2  # bank_latency
        assert replayed.conflicts == counted.conflicts
        assert replayed.bytes_per_cycle == replayed.slots * 2 / replayed.cycles


@settings(max_examples=50, deadline=None)
@given(
    indices=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    delta=st.integers(0, 9),
    count=st.integers(1, 5),
    ports=st.integers(1, 3),
)
def test_replay_against_a_count_of_each_bank(indices, delta, count, ports):
    engine = Engine(lanes=8, banks=8, gather_issue=8, ports=ports)
    done = replay_run(SpatterRun("gather", tuple(indices), delta=delta, count=count), engine)
    cycles = 0
    for i in range(count):
        for begin in range(0, len(indices), 8):
            hits = np.bincount(np.array(indices[begin : begin + 8]) + delta * i & 7)
            cycles += -(-hits.max() // ports)
    assert done.cycles == cycles + engine.bank_latency
    assert done.slots == count * len(indices)


@pytest.mark.parametrize(
    ("form", "indices", "delta"),
    [
        ("UNIFORM:4:3", [0, 3, 6, 9], 8),
        ("UNIFORM:4:3:5", [0, 3, 6, 9], 5),
        ("UNIFORM:4:3:NR", [0, 3, 6, 9], 12),
        ("MS1:8:4:32", [0, 1, 2, 3, 35, 36, 37, 38], 8),
        ("MS1:8:2,3:20,22", [0, 1, 21, 43, 44, 45, 46, 47], 8),
        ("MS1:6:2,4:10", [0, 1, 11, 12, 22, 23], 8),
        ("LAPLACIAN:1:2:100", [0, 1, 2, 3, 4], 1),
        ("LAPLACIAN:2:1:100", [0, 99, 100, 101, 200], 1),
        ("LAPLACIAN:3:1:10", [0, 90, 99, 100, 101, 110, 200], 1),
    ],
)
def test_forms_by_hand(form, indices, delta, tmp_path):
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps([{"pattern": form}]))
    (run,) = read_suite(suite)
    assert run == SpatterRun("gather", tuple(indices), delta=delta)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("{}", "must be a list of configurations"),
        ("[{}]", "configuration 0: gather needs pattern"),
        ('[{"kernel": "copy"}]', "kernel must be one of gather"),
        ('[{"pattern": []}]', "must have integers from 0 up"),
        ('[{"pattern": [0, -1]}]', "must have integers from 0 up"),
        ('[{"pattern": "UNIFORM:4"}]', "got 'UNIFORM:4'"),
        ('[{"pattern": "UNIFORM:4:0"}]', "got 'UNIFORM:4:0'"),
        ('[{"pattern": "MS1:4:9:2"}]', "got 'MS1:4:9:2'"),
        ('[{"pattern": "RANDOM:4"}]', "got 'RANDOM:4'"),
        ('[{"pattern": [0], "wrap": 0}]', "wrap must be an integer from 1 up, got 0"),
        ('[{"pattern": [0], "count": true}]', "count must be an integer from 1 up"),
        ('[{"kernel": "GS", "pattern-gather": [0], "pattern-scatter": [0, 1]}]', "of one length"),
        ('[{"kernel": "multigather", "pattern": [5], "pattern-gather": [1]}]', "must be below 1, got 1"),
        ('[{"pattern": [0, 1], "access-sizes": [1]}]', "access-sizes must sum to 2, got 1"),
    ],
)  # fmt: skip
def test_wrong_suites_are_named(text, said, tmp_path):
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_suite(tmp_path / "suite.json")


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="order must be one of stored"):
        stream(np.eye(4), "sorted")
    with pytest.raises(ValueError, match="kernel must be one of gather"):
        SpatterRun.of(stream(np.eye(4)), "copy")
    with pytest.raises(ValueError, match="accesses nothing"):
        SpatterRun.of(stream(np.zeros((4, 4))))
    with pytest.raises(ValueError, match="lower the count"):
        SpatterRun("gather", (0, 1), count=1 << 26).accesses("reads")


SPATTER = os.environ.get("SPATTER") or shutil.which("spatter")


@pytest.mark.skipif(not SPATTER, reason="Spatter is not installed; SPATTER may name it")
def test_spatter_runs_what_is_exported(tmp_path):
    found = stream(encoded("gs(16,1)+scatter"))
    write_suite([SpatterRun.of(found, kernel, n=4) for kernel in KERNELS], tmp_path / "suite.json")
    done = subprocess.run(
        [SPATTER, "-f", tmp_path / "suite.json"], capture_output=True, text=True, check=True
    )
    moved = [int(line.split()[1]) for line in done.stdout.splitlines() if re.match(r"\d+ ", line)]
    nonzeros, rows = int((found.gathers >= 0).sum()), 50
    # gs counts what it reads and what it writes.
    assert moved == [8 * 4 * slots for slots in (nonzeros, rows, 2 * nonzeros, nonzeros, rows)]
