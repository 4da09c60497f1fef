"""Drawings for a web page: SVG whose colours are variables, so that one drawing serves a light and a dark page."""

import colorsys
import re
from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from kit.compare.figures import panel
from kit.plots import LINE_STYLES, Curve, colour
from kit.statistics import Interval

INK, AXIS = "#1b1f24", "#8a939d"  # of matplotlib's text and axes; on the page they are --ink and --axis
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kit",  # the same drawing gives the same bytes
    "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "xtick.color": AXIS, "ytick.color": AXIS, "axes.edgecolor": AXIS, "grid.color": AXIS,
    "text.parse_math": False,
}  # fmt: skip
DASHES = {"-": "", "--": "6 3", ":": "2 3", "-.": "6 3 2 3"}
LIGHT_ENOUGH, GLARING = 0.66, 0.75  # on a dark page: lightness of a line at least, saturation of a lighter one at most


def shade_of(curve: Curve) -> str:
    return to_hex(colour(curve.sync_interval) if curve.shade is None else curve.shade)


def variables(curves: Sequence[Curve]) -> tuple[str, str]:
    """CSS declarations of the curves' colours, on a light and on a dark page.

    >>> variables([Curve("dpo", 1, ())])
    ('--line-1f3b73: #1f3b73;', '--line-1f3b73: #7698da;')
    """
    shades = list(dict.fromkeys(map(shade_of, curves)))
    names = [f"--line-{shade[1:]}" for shade in shades]
    light = " ".join(f"{name}: {shade};" for name, shade in zip(names, shades, strict=True))
    dark = " ".join(f"{name}: {_on_dark(shade)};" for name, shade in zip(names, shades, strict=True))
    return light, dark


def _on_dark(shade: str) -> str:
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(shade))
    if lightness >= LIGHT_ENOUGH:
        return shade
    return to_hex(colorsys.hls_to_rgb(hue, LIGHT_ENOUGH, min(saturation, GLARING)))


def panel_svg(curves: Sequence[Curve], metric: str, x: str) -> str:
    """One panel, without a legend."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        ax = figure.subplots()
        panel(ax, curves, metric, x)
        ax.set_ylabel("")  # the page says it above
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # the page has a style
    used = set(re.findall(r"#([\w.-]+)", svg))  # the other ids would be the same in every panel
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    colours = {INK: "var(--ink)", AXIS: "var(--axis)"}
    colours |= {shade: f"var(--line-{shade[1:]})" for shade in map(shade_of, curves)}
    for shade, variable in colours.items():
        svg = svg.replace(shade, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(metric)}" ', 1)


def key_svg(curve: Curve) -> str:
    """What a curve's line looks like, beside its name."""
    style = LINE_STYLES.get(curve.objective, "-.") if curve.line is None else curve.line
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    line = f'<line x1="0" y1="6" x2="28" y2="6" stroke="var(--line-{shade_of(curve)[1:]})" stroke-width="3"{dash}/>'
    return f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true">{line}</svg>'


def range_svg(interval: Interval, lowest: float, highest: float, curve: Curve) -> str:
    """An interval and its mean between two bounds; what lies beyond them is cut."""

    def at(value: float) -> float:
        return 4 + 192 * (min(max(value, lowest), highest) - lowest) / ((highest - lowest) or 1)

    shade, low, high = f"var(--line-{shade_of(curve)[1:]})", at(interval.low), at(interval.high)
    return (
        '<svg class="range" viewBox="0 0 200 12" preserveAspectRatio="none" aria-hidden="true">'
        '<line x1="4" y1="6" x2="196" y2="6" stroke="var(--line)" stroke-width="1"/>'
        f'<line x1="{low:.1f}" y1="6" x2="{high:.1f}" y2="6" stroke="{shade}" stroke-width="3" stroke-opacity="0.45"/>'
        f'<circle cx="{at(interval.mean):.1f}" cy="6" r="4" fill="{shade}"/></svg>'
    )
