"""How a notebook shows a figure: with a text for whoever does not see it."""

import base64
import io
from collections.abc import Iterator

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

PNG = "image/png"


def show(figure: Figure) -> None:
    """Display a figure and close it; its description is the picture's alternative text, and what a terminal prints."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    text = description(figure)
    bundle = {PNG: base64.b64encode(picture.getvalue()).decode(), "text/plain": text}
    display(bundle, metadata={PNG: {"alt": text}}, raw=True)
    plt.close(figure)


def description(figure: Figure) -> str:
    """What is drawn, panel by panel, with the numbers that each curve begins and ends with.

    >>> figure, ax = plt.subplots()
    >>> _ = ax.plot([0, 1, 2], [0.4, 0.9, 0.7], label="s = 1")
    >>> _ = ax.set(xlabel="optimizer step", ylabel="accuracy")
    >>> description(figure)
    'Figure. accuracy against optimizer step: s = 1 from 0.4 to 0.7, highest 0.9.'
    >>> plt.close(figure)
    """
    shown = [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]
    panels = [ax for ax in shown if ax.lines or ax.containers or ax.collections or ax.images]
    heading = figure.get_suptitle() or "Figure"
    if len(panels) > 1:
        heading += f", {len(panels)} panels"
    return " ".join([f"{_one_line(heading)}.", *map(_panel, panels)])


def _panel(ax: Axes) -> str:
    axes = " against ".join(filter(None, map(_one_line, (ax.get_ylabel(), ax.get_xlabel()))))
    heading = ", ".join(filter(None, (_one_line(ax.get_title()), axes)))
    return f"{heading or 'Panel'}: {'; '.join(_contents(ax)) or 'drawn without labels'}."


def _contents(ax: Axes) -> Iterator[str]:
    unnamed = 0
    for line in ax.lines:
        values = [float(y) for y in line.get_ydata() if y == y]  # pyright: ignore[reportGeneralTypeIssues]
        if str(line.get_label()).startswith("_") or not values:
            unnamed += 1
            continue
        extremes = [("highest", max(values)), ("lowest", min(values))]
        beyond = "".join(f", {word} {y:.3g}" for word, y in extremes if y not in (values[0], values[-1]))
        yield f"{_one_line(str(line.get_label()))} from {values[0]:.3g} to {values[-1]:.3g}{beyond}"
    for bars in ax.containers:
        if isinstance(bars, BarContainer) and len(bars.patches):
            heights = [bar.get_height() if bars.orientation == "vertical" else bar.get_width() for bar in bars.patches]
            name = str(bars.get_label())
            prefix = "" if name.startswith("_") else f"{_one_line(name)} "
            yield f"{prefix}{len(heights)} bars from {min(heights):.3g} to {max(heights):.3g}"
    for points in ax.collections:
        if isinstance(points, PathCollection):
            name = str(points.get_label())
            yield f"{len(points.get_offsets())} points{'' if name.startswith('_') else f' of {_one_line(name)}'}"  # pyright: ignore[reportArgumentType]
    for image in ax.images:
        array = image.get_array()
        assert array is not None
        yield f"a map of {' x '.join(map(str, array.shape[:2]))} cells from {array.min():.3g} to {array.max():.3g}"
    if unnamed:
        yield f"{unnamed} line{'s' * (unnamed > 1)} without a name"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
