"""The text of a figure says what is drawn, with numbers, and reaches whoever cannot see the picture."""

import base64

import matplotlib.pyplot as plt
import numpy as np
import pytest

from kit import figures
from kit.figures import description, show


@pytest.fixture(autouse=True)
def _no_figure_left() -> None:
    plt.close("all")


def test_lines_are_told_with_their_ends_and_extremes() -> None:
    figure, ax = plt.subplots()
    ax.plot([0, 10, 20], [0.44, 0.9, 0.2], label="offline")
    ax.plot([0, 10, 20], [0.44, np.nan, 0.95], label="online")
    ax.axvline(10)
    ax.set(xlabel="optimizer step", ylabel="accuracy\n(fraction)", title="Two regimes.")
    assert description(figure) == (
        "Figure. Two regimes, accuracy (fraction) against optimizer step: offline from 0.44 to 0.2, highest 0.9; "
        "online from 0.44 to 0.95; 1 line without a name."
    )


def test_bars_points_and_maps() -> None:
    figure, axes = plt.subplots(1, 4)
    axes[0].bar([0, 1], [2.0, 5.0], label="cost")
    axes[1].barh([0, 1], [3.0, 4.0])
    axes[2].scatter([0, 1, 2], [1, 2, 3], label="a run")
    figure.colorbar(axes[3].imshow(np.array([[0.0, 0.5, 1.0], [1.0, 1.0, -1.0]])))
    axes[0].set(ylabel="seconds")
    figure.suptitle("All kinds")
    assert description(figure) == (
        "All kinds, 4 panels. seconds: cost 2 bars from 2 to 5. Panel: 2 bars from 3 to 4. Panel: 3 points of a run. "
        "Panel: a map of 2 x 3 cells from -1 to 1."
    )


def test_panels_that_are_off_or_empty_are_left_out() -> None:
    figure, axes = plt.subplots(1, 3)
    axes[0].plot([0, 1], [0, 1], label="a")
    axes[1].plot([0, 1], [0, 1], label="b")
    axes[1].set_axis_off()
    assert description(figure) == "Figure. Panel: a from 0 to 1."


def test_a_line_without_a_number_is_no_curve() -> None:
    figure, ax = plt.subplots()
    ax.plot([0, 1], [np.nan, np.nan], label="nothing")
    ax.plot([], [], label="empty")
    assert description(figure) == "Figure. Panel: 2 lines without a name."


def test_show_hands_over_a_png_with_its_text_and_closes_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[dict, dict]] = []
    monkeypatch.setattr(figures, "display", lambda bundle, metadata, raw: shown.append((bundle, metadata)))
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], label="a")
    show(figure)
    ((bundle, metadata),) = shown
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert metadata["image/png"]["alt"] == bundle["text/plain"] == "Figure. Panel: a from 0 to 1."
    assert not plt.get_fignums()
