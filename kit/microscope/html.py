"""A group as HTML that needs nothing else: no script, no style sheet. For papermill, the web, and a notebook anywhere.

Everything that a model wrote or that was read from a file is made visible (`kit.microscope.text`), then escaped.
Notebooks typeset what stands between dollar signs, except in code: texts are code.
"""

from collections.abc import Sequence
from html import escape
from itertools import zip_longest

from kit.microscope.group import Completion, Group
from kit.microscope.measures import MEASURES, Measure, number
from kit.microscope.payload import facts_of, role_of
from kit.microscope.text import LIMIT, cut, visible

MUTED = "opacity:.72;font-size:.92em"
BOX = "border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.45em .7em;margin:.4em 0"
TEXT = (
    "display:block;background:none;padding:0;border:0;font-size:inherit;color:inherit;white-space:pre-wrap;overflow-wrap:anywhere;overflow:hidden;unicode-bidi:isolate;line-height:1.75;"
    "font-family:var(--jp-code-font-family,ui-monospace,monospace)"
)
PAGE = "font-size:13px;line-height:1.5;max-width:60em;color:var(--jp-content-font-color1,inherit)"
AS_IT_IS = "mathjax_ignore tex2jax_ignore"  # of versions 3 and later, and of version 2
CHIP = "border-radius:9px;padding:.05em .6em;margin-right:.5em;border:1px solid"
CHIPS = {"chosen": "0, 114, 178", "rejected": "213, 94, 0"}
GREY = "128, 128, 128"


def group_html(group: Group, colour_by: str = "logprob", *, limit: int | None = LIMIT) -> str:
    """All completions of a prompt at a step, their tokens coloured, with the number behind each in its title.

    Args:
        group: of `Rollouts.group`.
        colour_by: one of `MEASURES`: logprob, entropy, ratio or kl.
        limit: characters of a text that are shown; None = all.

    Raises:
        ValueError: for another measure, or a limit below 1.
    """
    if colour_by not in MEASURES:
        raise ValueError(f"colour_by must be one of {list(MEASURES)}, got {colour_by!r:.80}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 character or None, got {limit}")
    measure = MEASURES[colour_by]
    end = measure.end(group.completions)
    head = f"<strong>{_safe(group.kind)}, step {group.step}</strong> · {_safe(group.task or '')} · "
    head += f"<bdi>{_safe(group.prompt_id)}</bdi> · <bdi>{_safe(group.run)}</bdi>"
    parts = [
        f'<div style="{MUTED}">{head}</div>',
        f'<div style="{BOX};background:rgba(128,128,128,.1)">{_plain(group.prompt, limit)}</div>',
        _legend(measure, end),
        *(_completion(completion, measure, end, limit) for completion in group.completions),
    ]
    return f'<section class="{AS_IT_IS}" style="{PAGE}">{"".join(parts)}</section>'


def _safe(text: str) -> str:
    return escape(visible(text), quote=True)


def _plain(text: str, limit: int | None) -> str:
    [shown], rest = cut([text], limit or len(text)) if text else ([""], 0)
    return f'<code style="{TEXT}"><bdi>{_safe(shown)}</bdi></code>{_more(rest)}'


def _more(rest: int) -> str:
    return f'<div style="{MUTED}">… {rest:,} more characters: give a larger limit, or None</div>' if rest else ""


def _completion(completion: Completion, measure: Measure, end: float, limit: int | None) -> str:
    pieces, rest = cut(completion.pieces, limit or sum(map(len, completion.pieces)))
    values = measure.values(completion)
    tokens = "".join(
        _token(piece, value, measure, end) for piece, value in zip_longest(pieces, (values or ())[: len(pieces)])
    )
    text = f'<code style="{TEXT}"><bdi>{tokens}</bdi></code>{_more(rest)}'
    return f'<div style="{BOX}">{_facts(completion, values, measure)}{text}</div>'


def _token(piece: str, value: float | None, measure: Measure, end: float) -> str:
    if value is None:
        return f"<span>{_safe(piece)}</span>"
    colour, told = measure.colour(measure.share(value, end)), f"{measure.title} {number(value, measure.unit)}"
    return f'<span style="background:{colour}" title="{escape(told)}">{_safe(piece)}</span>'


def _facts(completion: Completion, values: Sequence[float] | None, measure: Measure) -> str:
    """The line above a completion."""
    (role, why), told = role_of(completion), facts_of(completion)
    told += f" · {measure.title}: not known of it" if values is None else ""
    hue = CHIPS.get(role, GREY)
    style = f"{CHIP} rgba({hue},.9);background:rgba({hue},.18)"
    chip = f'<span style="{style}" title="{escape(why)}"><bdi>{escape(role)}</bdi></span>'
    facts = f'<span style="{MUTED}">#{completion.index} · <bdi>{escape(told)}</bdi></span>'
    return f'<div style="margin-bottom:.2em">{chip}{facts}</div>'


def _legend(measure: Measure, end: float) -> str:
    """A strip of the scale's colours with numbers under it, and the formula."""
    ticks = measure.ticks(end)
    colours = ",".join(measure.colour(share) for share, _ in ticks)
    labels = "".join(f"<span>{number(value, measure.unit)}</span>" for _, value in ticks)
    strip = f"height:.8em;border-radius:3px;background:linear-gradient(90deg,{colours})"
    under = f'<div style="display:flex;justify-content:space-between;{MUTED}">{labels}</div>'
    scale = f'<div style="width:15em"><div style="{strip}"></div>{under}</div>'
    told = f'<div style="{MUTED}">{escape(measure.title)}: {escape(measure.formula)}</div>'
    return f'<div style="display:flex;flex-wrap:wrap;gap:.2em 1em;align-items:end;margin:.3em 0">{scale}{told}</div>'


def page_html(told: str, groups: Sequence[str]) -> str:
    """Several groups, and what they are the first of."""
    line = f"{told}. The first {len(groups)}:" if groups else f"{told}."
    head = f'<div style="{PAGE};{MUTED}">{escape(line)}</div>'
    return head + '<hr style="border:0;border-top:1px solid rgba(128,128,128,.35)">'.join(groups)
