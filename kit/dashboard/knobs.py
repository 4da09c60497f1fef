"""One ipywidgets control for each knob of a run. Callbacks only leave values in `kit.controls.Controls`."""

from html import escape
from typing import Any

import ipywidgets as widgets

from kit.controls import Controls
from kit.printable import printable

INTERVALS = ("1", "2", "3", "5", "10", "20", "50", "100", "200", "500", "never")  # steps
KNOBS = {  # what a person turns, in this order, and what it is called
    "sync_interval": "sync every s steps",
    "learning_rate": "learning rate",
    "beta": "beta",
    "kl_coef": "KL weight",
    "temperature": "temperature",
    "entropy_coef": "entropy weight",
    "nll_coef": "NLL weight",
}
DECADES = {"learning_rate": (-7.0, -1.0), "beta": (-3.0, 1.0)}  # of the logarithmic sliders
HOTTEST = 2.0  # of the slider; code may set more


class Knob:
    """A control for one knob, and beside it what is in force and what waits for the next step.

    Args:
        name: one of `KNOBS` that the run has.
        controls: where a changed value goes.

    Attributes:
        control: the slider or field; a refused value stays in it, with the reason beside it.
        state: the text beside it.
    """

    def __init__(self, name: str, controls: Controls) -> None:
        self.name, self._controls = name, controls
        self.control = _control(name, controls[name])
        self.state = widgets.HTML()
        self.row = widgets.HBox([self.control, self.state])
        self.row.add_class("kit-knob")
        self._refused: tuple[Any, str] | None = None  # the value, and why
        self.refresh()
        self.control.observe(self._turned, "value")

    def refresh(self) -> None:
        """Show what the run has now, whoever set it."""
        force, pending = self._controls[self.name], self._controls.pending()
        wanted = pending.get(self.name, force)
        if self._refused and self._refused[0] == self.control.value:
            return self._say(f'<span class="kit-refused">refused: {_html(self._refused[1])}</span>')
        if as_value(self.name, self.control.value) != wanted:
            _admit(self.control, as_shown(self.name, wanted))
            self.control.value = as_shown(self.name, wanted)
        text = f"in force {_html(as_shown(self.name, force))}"
        waits = f" → <b>{_html(as_shown(self.name, wanted))}</b> from the next step"
        self._say(text + (waits if self.name in pending else ""))

    def _turned(self, change: dict[str, Any]) -> None:
        value, self._refused = as_value(self.name, change["new"]), None
        if value != self._controls.pending().get(self.name, self._controls[self.name]):
            try:
                self._controls.set(**{self.name: value})
            except (ValueError, TypeError) as error:
                self._refused = change["new"], str(error)
        self.refresh()

    def _say(self, text: str) -> None:
        if text != self.state.value:
            self.state.value = text


def as_value(name: str, shown: Any) -> Any:
    """What `Controls.set` takes for what a control shows or somebody wrote.

    >>> as_value("sync_interval", "never"), as_value("sync_interval", "10"), as_value("beta", "0.2")
    (None, 10, 0.2)

    Raises:
        ValueError: for what is no number.
    """
    if not isinstance(shown, str):
        return shown
    text = shown.strip()
    if name == "sync_interval":
        if text in ("never", "∞"):
            return None
        return int(text) if text.isdecimal() else text  # another schedule's own text, or refused with a reason
    return int(text) if text.isdecimal() else float(text)


def as_shown(name: str, value: Any) -> Any:
    """The reverse of `as_value`: text for an interval, a number for the rest."""
    if name == "sync_interval":
        return "never" if value is None else printable(str(value))
    return value


def _control(name: str, value: Any) -> Any:
    told: dict[str, Any] = {"description": KNOBS[name], "style": {"description_width": "9.5em"}}
    told |= {"continuous_update": False}  # a value is set when the mouse lets go, not on the way
    if name == "sync_interval":
        control = widgets.SelectionSlider(options=INTERVALS, value="1", **told)
    elif name in DECADES:
        low, high = DECADES[name]
        readout = ".1e" if name == "learning_rate" else ".3g"
        control = widgets.FloatLogSlider(min=low, max=high, step=0.05, readout_format=readout, **told)
    elif name == "temperature":
        control = widgets.FloatSlider(min=0.0, max=HOTTEST, step=0.05, **told)
    else:
        control = widgets.FloatText(step=0.01, **told)
    _admit(control, as_shown(name, value))
    control.value = as_shown(name, value)
    return control


def _admit(control: Any, shown: Any) -> None:
    """Widen a slider to a value that was set by other means than itself: it would move it into its range instead."""
    if isinstance(control, widgets.SelectionSlider) and shown not in control.options:
        numbers = sorted(int(text) for text in {*control.options, shown} if text.isdecimal())
        control.options = [*map(str, numbers), *([] if shown.isdecimal() else [shown]), "never"]
    elif isinstance(control, widgets.FloatLogSlider):
        while shown > 0 and shown < control.base**control.min:
            control.min -= 1
        while shown > control.base**control.max:
            control.max += 1
    elif isinstance(control, widgets.FloatSlider):
        control.max = max(control.max, shown)


def _html(value: Any) -> str:
    return escape(printable(f"{value:.3g}" if isinstance(value, float) else str(value)))
