"""Pictures: what is drawn is what the mask says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
matplotlib.use("Agg")

from gspattern.plots import (  # noqa: E402
    bank_colours,
    mask_image,
    plot_mask,
    plot_schedule,
    plot_tradeoff,
)

WHITE = (255, 255, 255)


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize(("pattern", "banks"), [("gs(4,1)", 4), ("gs(3,3,contiguous)", 3)])
def test_every_element_has_the_colour_of_its_bank(pattern, banks):
    mask = np.random.default_rng(0).random((8, 10)) < 0.4
    image = mask_image(mask, pattern)
    colours = bank_colours(banks)
    assert len(np.unique(colours, axis=0)) == banks
    for i in range(8):
        for j in range(10):
            bank = j % 4 if banks == 4 else next(b for b in (2, 1, 0) if b * 10 // 3 <= j)
            expected = tuple(colours[bank]) if mask[i, j] else WHITE
            assert tuple(image[i, j]) == expected


def test_rows_are_drawn_as_they_are_grouped():
    mask = np.eye(4, dtype=bool)
    order = np.array([2, 0, 3, 1])
    drawn = (mask_image(mask, "irregular", order) != 255).any(axis=2)
    assert np.array_equal(drawn, mask[order])
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        mask_image(mask[0], "irregular")


def test_plot_mask(axes):
    mask = np.ones((8, 8), bool)
    assert plot_mask(mask, "gs(4,1)", ax=axes) is axes
    assert axes.get_title() == "gs(4,1)"
    assert np.array_equal(axes.images[0].get_array(), mask_image(mask, "gs(4,1)"))
    assert [line.get_ydata()[0] for line in axes.lines] == [3.5]  # between its two groups


def test_plot_tradeoff(axes):
    plot_tradeoff({"dense": (100.0, 98.0, 0.1), "gs(16,16)": (20.0, 97.5, 0.2)}, ax=axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dense", "gs(16,16)"]
    drawn = sorted(
        (float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0]))
        for c in axes.containers
    )
    assert drawn == [(20.0, 97.5), (100.0, 98.0)]


def test_matplotlib_is_asked_for_when_it_is_needed():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import gspattern.plots as plots\n"
        "print(plots.mask_image([[True]], 'irregular').shape)\n"
        "try: plots.plot_mask([[True]], 'irregular')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '(1, 1, 3)\npictures need matplotlib: pip install "gspattern[plot]"\n'


def test_a_schedule_is_a_staircase(axes):
    def schedule(step, final):
        return {3: 0.25 * final, 6: final}.get(step)

    plot_schedule(schedule, 0.8, 10, axes)
    stairs, marks = axes.lines
    assert stairs.get_drawstyle() == "steps-post"
    assert stairs.get_xydata().tolist() == [[0, 0], [3, 0.2], [6, 0.8], [10, 0.8]]
    assert marks.get_xydata().tolist() == [[3, 0.2], [6, 0.8]]
    with pytest.raises(ValueError, match="chooses no masks in 2 steps"):
        plot_schedule(schedule, 0.8, 2)
