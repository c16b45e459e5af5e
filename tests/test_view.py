"""The bank viewer: what it draws is what the engine counts."""

import dataclasses
import io

import numpy as np
import pytest

import gspattern as gs
from gspattern.engine import PRESETS, ConvLayer, Engine, replay, simulate, stream, view

SMALL = Engine(lanes=4, banks=4, gather_issue=4)
PATTERNS = ["irregular", "gs(16,16)", "gs(16,4)", "gs(16,1)+scatter", "bank_balanced(16)", "2:4"]


def weights(shape=(48, 160), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ports", [1, 2])
def test_the_picture_is_what_replay_counts(pattern, ports):
    engine = dataclasses.replace(PRESETS["paper128"], ports=ports)
    sparsity = None if pattern == "2:4" else 0.8
    (panel,) = view(weights(), engine, pattern=pattern, sparsity=sparsity, cycles=10_000).panels
    chosen = gs.choose_mask(np.abs(weights()), pattern, sparsity)
    matrix = gs.encode(weights(), pattern, chosen.mask, chosen.row_order)
    addresses = stream(matrix).gathers
    run = replay(addresses, engine, 160)
    assert panel.cycles == panel.states.shape[1] == run.cycles.sum()
    assert panel.conflicts == run.conflicts.sum() == simulate(matrix, engine).conflicts
    assert panel.nonzeros == chosen.mask.sum()
    np.testing.assert_array_equal(panel.access, np.repeat(np.arange(len(addresses)), run.cycles))
    load = np.bincount(addresses[addresses >= 0] % 16, minlength=16)
    np.testing.assert_array_equal(panel.bank_load, load)
    np.testing.assert_array_equal(panel.lane_load, (addresses >= 0).sum(axis=0))
    if ports == 1:  # every slot has a cell of its own
        np.testing.assert_array_equal((panel.states > 0).sum(axis=1), load)
    late = [(panel.states[:, panel.access == a] == 2).any() for a in range(len(addresses))]
    np.testing.assert_array_equal(late, run.conflicts > 0)


def test_a_picture_by_hand():
    mask = np.zeros((2, 16), np.bool_)
    mask[0, [0, 4, 8, 9]] = True  # three in bank 0
    mask[1, [3, 6]] = True
    (panel,) = view(mask, SMALL).panels
    assert panel.states.tolist() == [
        [1, 2, 2, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
    ]
    assert panel.access.tolist() == [0, 0, 0, 1]
    assert panel.starts == [(0, 0), (3, 1)]
    assert (panel.cycles, panel.accesses, panel.conflicts) == (4, 2, 2)
    two = dataclasses.replace(SMALL, gather_issue=2)
    (panel,) = view(mask[:1], two).panels
    # 0 and 4 are issued first, 8 and 9 in the next cycle.
    assert panel.states.tolist() == [[1, 2, 2], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    text = str(view(mask, SMALL))
    assert " 0 ■xx·" in text.replace("\n0", "\n 0")
    assert "4 cycles for 2 accesses (2.00 each): 2 lost to conflicts" in text


def test_before_and_after_balancing():
    shown = view(weights(), pattern="gs(16,16)", sparsity=0.9, compare=True)
    before, after = shown.panels
    assert before.nonzeros == after.nonzeros
    assert before.conflicts > 0 == after.conflicts
    assert f"{before.cycles / after.cycles:.2f} times as long" in str(shown)
    given = weights() * gs.choose_mask(np.abs(weights()), "irregular", 0.9).mask
    before, _ = view(given, pattern="gs(16,16)", compare=True).panels
    assert (before.name, before.nonzeros) == ("as given", np.count_nonzero(given))


def test_windows_show_a_part():
    whole = view(weights() > 1, cycles=10_000).panels[0]
    part = view(weights() > 1, cycles=(20, 50)).panels[0]
    np.testing.assert_array_equal(part.states, whole.states[:, 20:50])
    assert "drawn: cycles 20 to 49" in str(view(weights() > 1, cycles=(20, 50)))
    few = view(weights() > 1, rows=8, cycles=10_000).panels[0]
    assert few.nonzeros == (weights() > 1)[:8].sum()
    np.testing.assert_array_equal(few.states, whole.states[:, : few.cycles])
    with pytest.raises(ValueError, match="cycles begin at"):
        view(weights() > 1, cycles=(10_000, 10_001))


def test_convolutions_go_by_address():
    mask = np.zeros((1, 3, 2), np.bool_)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # at 0 and 7 with a dilation of 2
    panel = view(ConvLayer(mask, (5,), dilation=2, padding=(0,)), SMALL).panels[0]
    assert panel.states.tolist() == [[1], [0], [0], [1]]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures(kind, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws")
    shown = view(weights(), pattern="gs(16,1)+scatter", sparsity=0.8, compare=True)
    for name in ("a", "b"):
        shown.save(tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"a.{kind}").read_bytes()
    assert first == (tmp_path / f"b.{kind}").read_bytes()
    assert first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    if kind == "png":
        from matplotlib.image import imread

        picture = imread(io.BytesIO(first))[..., :3]
        red = np.abs(picture - np.array([0xDD, 0x33, 0x22]) / 255).max(axis=2) < 0.02
        half = len(picture) // 2
        assert red[:half].mean() > 0.01  # the irregular mask; of the other only the legend
        assert red[half:].mean() < 0.002
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        shown.save(tmp_path / "a.pdf")


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="compare needs a pattern"):
        view(weights(), sparsity=0.9, compare=True)
    with pytest.raises(ValueError, match="sparsity is needed"):
        view(weights(), pattern="gs(16,16)")
    with pytest.raises(ValueError, match="weights must be numbers"):
        view(np.zeros(4))
    with pytest.raises(ValueError, match="rows begin at 48, but there are 48"):
        view(weights() > 1, rows=(48, 50))
    with pytest.raises(ValueError, match="cycles must be how many"):
        view(weights() > 1, cycles=0)
