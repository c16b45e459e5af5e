"""Gathers and scatters of this CPU: what they gather and store against NumPy, and streams against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from gspattern import _core
from gspattern.engine import Engine, GatherBench, GatherRate, gather_bench, make_indices
from gspattern.engine.gathers import STREAMS
from gspattern.plans import cpu_info

GATHERS = {name: (lanes, reach) for name, lanes, reach, scatters in _core.gathers() if not scatters}
SCATTERS = [name for name, _, _, scatters in _core.gathers() if scatters]
LOOK_UPS = {name: found for name, found in GATHERS.items() if found[1]}
COUNTS = [0, 1, 3, 15, 16, 63, 64, 65, 127, 128, 1000]
ENTRIES = 4096


def table_of(entries=ENTRIES):
    """Any bits: sums are of bits, so that NaN and infinity are numbers as all others."""
    return np.random.default_rng(1).integers(0, 2**32, entries, np.uint32).view(np.float32)


def cases():
    """Every instruction that gathers, with the streams that it can do."""
    for name, (lanes, reach) in GATHERS.items():
        tables = [f"table {reach}"] if reach else ["table 8", "table 32"]
        for stream in [] if reach else STREAMS:
            yield name, stream, 16
        for stream in tables:
            yield name, stream, lanes if reach else 8


def test_the_instructions_are_those_of_the_backends():
    names = [name for name, *_ in _core.gathers()]
    assert len(names) == len(set(names))
    assert names[:2] == ["load", "store"]
    for backend in ("avx2", "avx512", "neon"):
        there = backend in _core.backends()
        assert any(name.startswith(backend) for name in names) == there
    for name, (lanes, reach) in LOOK_UPS.items():
        assert "permute" in name
        assert reach >= lanes > 1


@pytest.mark.parametrize(("name", "stream", "lanes"), list(cases()))
@pytest.mark.parametrize("count", COUNTS)
def test_gathers_are_those_of_numpy(name, stream, lanes, count):
    table = table_of()
    indices = make_indices(stream, count, ENTRIES, lanes, lanes, seed=count)
    seconds, total = _core.gather(name, indices, table, 3)
    assert total == 3 * int(table.view(np.uint32)[indices].sum(dtype=np.uint64)) % 2**32
    assert seconds >= 0
    assert np.array_equal(table.view(np.uint32), table_of().view(np.uint32))  # as it was


@pytest.mark.parametrize("name", GATHERS)
def test_every_entry_can_be_gathered(name):
    """One slot after another, with a table in which each entry has a bit pattern of its own."""
    entries, reach = 64, GATHERS[name][1]
    table = (np.uint32(1) << np.arange(entries, dtype=np.uint32) % 32).view(np.float32)
    for entry in range(entries):
        for slot in range(64):
            indices = np.full(64, entry // reach * reach if reach else 0, np.int32)
            indices[slot] = entry
            expected = int(table.view(np.uint32)[indices].sum(dtype=np.uint64)) % 2**32
            assert _core.gather(name, indices, table, 1)[1] == expected


@pytest.mark.parametrize("name", SCATTERS)
@pytest.mark.parametrize("stream", [*STREAMS, "table 32"])
@pytest.mark.parametrize("count", COUNTS)
def test_scatters_are_those_of_numpy(name, stream, count):
    table, expected = table_of(), table_of().view(np.uint32)
    # Few entries, so that many slots of a bundle go to the same one: the last is there.
    indices = make_indices(stream, count, 64, 16, 16, seed=count)
    assert _core.gather(name, indices, table, 2)[1] == 0
    for number, index in enumerate(indices):
        expected[index] = number
    assert np.array_equal(table.view(np.uint32), expected)


@pytest.mark.parametrize("name", [name for name, *_ in _core.gathers()])
@pytest.mark.parametrize("slot", [0, 17, 63, 64, 69])
def test_indices_outside_of_the_table_are_refused(name, slot):
    for wrong in (-1, 64, 2**31 - 1, -(2**31)):
        indices = np.zeros(70, np.int32)
        indices[slot] = wrong
        table = table_of(64)
        with pytest.raises(ValueError, match=r"indices must be in \[0, 64\)"):
            _core.gather(name, indices, table, 1)
        assert np.array_equal(table.view(np.uint32), table_of(64).view(np.uint32))


@pytest.mark.parametrize("name", LOOK_UPS)
def test_look_ups_need_indices_of_one_table(name):
    lanes, reach = LOOK_UPS[name]
    assert lanes <= reach <= 64
    indices = np.zeros(64, np.int32)
    indices[lanes - 1] = reach
    with pytest.raises(ValueError, match=f"every {lanes} of them in one table of {reach} entries"):
        _core.gather(name, indices, table_of(), 1)
    # A table that the array ends within: it would be read past its end.
    indices[:] = reach
    with pytest.raises(ValueError, match="in one table of"):
        _core.gather(name, indices, table_of(2 * reach - 1), 1)
    assert _core.gather(name, indices, table_of(2 * reach), 1)


def test_wrong_arguments_are_refused():
    indices, table = np.zeros(64, np.int32), table_of()
    with pytest.raises(ValueError, match="this CPU has no instruction sse gather"):
        _core.gather("sse gather", indices, table, 1)
    with pytest.raises(TypeError, match="int32"):
        _core.gather("load", indices.astype(np.int64), table, 1)
    with pytest.raises(TypeError, match="float32"):
        _core.gather("load", indices, np.zeros(64), 1)
    table.flags.writeable = False
    with pytest.raises(ValueError, match="table must be writeable"):
        _core.gather("load", indices, table, 1)
    shared = np.zeros(64, np.int32)
    with pytest.raises(ValueError, match="must not share memory"):
        _core.gather("store", shared, shared.view(np.float32), 1)


# ------------------------------------------------------------------- streams


@pytest.mark.parametrize(("lanes", "banks"), [(16, 16), (8, 16), (16, 8), (3, 5), (1, 1)])
def test_streams_are_what_they_are_called(lanes, banks):
    entries, count = 40 * banks, 50 * lanes

    def per_bank(stream):
        indices = make_indices(stream, count, entries, lanes, banks)
        assert indices.dtype == np.int32
        assert indices.shape == (count,)
        assert indices.min() >= 0
        assert indices.max() < entries
        bundles = indices.reshape(-1, lanes) % banks
        return indices, np.array([np.bincount(bundle, minlength=banks) for bundle in bundles])

    indices, hits = per_bank("gs")
    assert hits.max() <= -(-lanes // banks)  # no conflict but those that nothing avoids
    assert len(np.unique(indices)) > min(count, entries) / 4
    _, hits = per_bank("same bank")
    assert (hits.max(axis=1) == lanes).all()
    assert (hits.sum(axis=0) > 0).all() or banks > 5
    indices, _ = per_bank("random")
    assert len(np.unique(indices)) > min(count, entries) / 4
    indices, hits = per_bank(f"table {2 * banks}")
    assert hits.max() <= -(-lanes // banks)
    tables = indices.reshape(-1, lanes) // (2 * banks)
    assert (tables == tables[:, :1]).all()
    assert len(np.unique(tables)) > 5


def test_strides_by_hand():
    assert make_indices("stride 1", 6, 4, 4, 4).tolist() == [0, 1, 2, 3, 0, 1]
    assert make_indices("stride 3", 8, 7, 2, 2).tolist() == [0, 3, 1, 4, 2, 5, 0, 3]
    whole = make_indices("stride 16", 1024, 1024)
    assert whole[:3].tolist() == [0, 16, 32]
    assert sorted(whole) == list(range(1024))  # each once


def test_streams_repeat_by_their_seed():
    first = make_indices("gs", 100, 1024, seed=3)
    assert np.array_equal(first, make_indices("gs", 100, 1024, seed=3))
    assert not np.array_equal(first, make_indices("gs", 100, 1024, seed=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("laplacian", 16, 64), "stream must be gs, same bank, random, stride S or table T"),
        (("stride 0", 16, 64), "stream must be"),
        (("gs", -1, 64), "count must be an integer from 0"),
        (("gs", 16, 15), "entries must be an integer from 16"),
        (("gs", 16, 2**31), "entries must be"),
        (("stride 65", 16, 64), "entries must be an integer from 65"),
        (("table 24", 16, 64), "must be a multiple of banks = 16"),
        (("gs", 16, 64, 0), "lanes must be"),
        (("gs", 16, 64, 16, 0), "banks must be"),
    ],
)
def test_streams_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_indices(*arguments)


# ----------------------------------------------------------------- benchmark


def test_the_bench_measures_what_there_is():
    sizes = {"here": 4096, "there": 5000}
    seen = []

    def track(work):
        for cell in work:
            seen.append(cell)
            yield cell

    found = gather_bench("paper64", 1e-4, sizes, runs=2, track=track)
    assert (found.lanes, found.banks) == (8, 8)
    assert found.sizes == {"here": 4096, "there": 4864}
    assert [(rate.where, rate.stream, rate.instruction) for rate in found.rates] == seen
    tables = {f"table {reach}" for _, reach in LOOK_UPS.values()}
    expected = {
        (where, stream, name)
        for where in sizes
        for stream in {*STREAMS, *tables}
        for name, _, reach, _ in _core.gathers()
        if not reach or stream == f"table {reach}"
    }
    assert len(seen) == len(expected)
    assert set(seen) == expected
    for rate in found.rates:
        assert rate.bytes == found.sizes[rate.where]
        assert rate.bytes_per_second == rate.bytes / rate.seconds > 0
    assert found.stream_bytes >= 4 * max(cpu_info().caches.values(), default=0)
    assert found.stream_bytes_per_second > 1e8


def test_no_line_arrives_faster_than_the_memory_gives_them():
    """From memory every float of the stream is in a line of its own, that moves as a whole."""
    caches = cpu_info().caches
    if not caches or max(caches.values()) > 1 << 27:
        pytest.skip("the caches are unknown, or so large that the arrays would be of gigabytes")
    sizes = {"memory": 4 * max(caches.values())}
    found = gather_bench(Engine(), 0, sizes, ["load"], ["stride 16"], runs=2)
    for rate in found.rates:
        assert rate.bytes_per_second < found.stream_bytes_per_second / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "paper"}, "engine must be"),
        ({"runs": 0}, "runs must be an integer from 1"),
        ({"seconds": -1}, "seconds must not be negative"),
        ({"seconds": float("nan")}, "seconds must not be negative"),
        ({"sizes": {"L1": 255}}, "sizes must be from 256 bytes up for 16 banks"),
        ({"sizes": {}}, "sizes must be"),
        ({"instructions": ["sse gather"]}, "this CPU has load, store.*got 'sse gather'"),
        ({"streams": ["gs", "ms1"]}, "stream must be"),
        ({"streams": ["table 4096"], "sizes": {"L1": 4096}}, "entries must be"),
    ],
)
def test_a_bench_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        gather_bench(**arguments)


@pytest.fixture
def known():
    rates = (
        GatherRate("load", "gs", "L1", 4096, 1e-6),
        GatherRate("avx2 gather", "gs", "L1", 4096, 2e-6),
        GatherRate("load", "table 8", "memory", 8192, 8e-6),
    )
    return GatherBench(rates, 16, 16, {"L1": 4096, "memory": 8192}, 1 << 20, 4e10)


def test_the_table_says_what_was_measured(known):
    assert known.cells() == [
        ("from", "stream", "load", "avx2 gather"),
        ("L1", "gs", "4.10", "2.05"),
        ("memory", "table 8", "1.02", ""),
        ("memory", "STREAM copy", "40.00", ""),
    ]
    text = str(known)
    assert "bundles of 16, 16 banks" in text
    assert "L1 4,096, memory 8,192" in text
    assert "1,048,576 bytes" in text


def test_the_picture_has_a_bar_for_every_rate(known):
    matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    matplotlib.use("Agg")
    from gspattern.plots import plot_gathers

    figure = plot_gathers(known)
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes]
    assert heights == [pytest.approx([4.096, 2.048]), pytest.approx([1.024])]
    assert [line.get_ydata()[0] for line in figure.axes[1].lines] == [pytest.approx(40)]
    matplotlib.pyplot.close(figure)


def test_the_command_line(known, monkeypatch):
    pytest.importorskip("typer", reason="the extra `cli` is not installed")
    from typer.testing import CliRunner

    from gspattern import engine
    from gspattern.cli import app

    def bench(machine, track):
        assert list(track(["a", "b"])) == ["a", "b"]
        assert (machine.lanes, machine.banks) == (8, 4)
        return known

    monkeypatch.setattr(engine, "gather_bench", bench)
    arguments = ["engine", "--gather-bench", "--preset", "paper64", "--set", "banks=4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{known}\n"
    result = CliRunner().invoke(app, [*arguments, "--shape", "16x16"])
    assert result.exit_code == 2
    assert "give one of" in result.stderr
