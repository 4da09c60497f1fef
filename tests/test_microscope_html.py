"""What a model wrote cannot change the page, in the static view or in what the browser is sent; numbers are right."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.kl import k3
from kit.microscope import MEASURES, Completion, Filter, Group, Microscope, Rollouts, group_html
from kit.microscope.measures import number
from kit.microscope.payload import about, group_payload, line_payload
from kit.microscope.text import cut, visible
from tests.recorded import row, write_step

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "handler": '"><img src=x onerror="alert(1)">',
    "apostrophe": "' onmouseover='alert(1)",
    "entity": "&lt;script&gt;&#60;b&#62;",
    "style": "</span></bdi></section><style>*{display:none}</style>",
    "comment": "<!-- ",
    "cdata": "]]><![CDATA[",
    "template": "{{constructor.constructor('alert(1)')()}} ${alert(1)}",
    "ansi": "\x1b[31mred\x1b]8;;http://x\x07link",
    "right to left": "abc\u202egnp.exe\u2066\u200f\u061c",
    "null": "a\x00b",
    "zero width": "a\u200b\u200d\ufeff\u2060b",
    "line ends": "a\rb\u2028c\u2029d\x85e\x0bf\x0c",
    "marks": "\u0301" * 40 + "a" + "\u0308" * 40,
    "tags": "\U000e0041\U000e007f",
    "markdown": "[x](javascript:alert(1)) `</code>` $$\\href{javascript:alert(1)}{x}$$",
}
INVISIBLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e0fff]"
)


class Skeleton(HTMLParser):
    """Tags, attributes apart from the values of `title`, and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.styles: set[str | None] = set()
        self.titles: list[str] = []
        self.text = ""
        self.depth = 0
        self.feed(html)
        self.close()
        assert self.depth == 0, "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.styles |= {value for name, value in attrs if name == "style"}
        self.titles += [value or "" for name, value in attrs if name == "title"]
        self.depth += tag != "hr"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def completion(**changes: Any) -> Completion:
    made = Completion(
        0, "ab", 2, 1.0, {"right": 1.0, "short": None}, 3, "chosen", None, "stop", ["a", "b"], [-1.0, -0.5], [1.5, 0.5],
        [-0.5, -1.0], [-1.0, -1.0],
    )  # fmt: skip
    return replace(made, **changes)


def group(*completions: Completion, **changes: Any) -> Group:
    return replace(Group(0, "run", "training", 4, "sums", "p", "1+1=", completions or (completion(),)), **changes)


def everywhere(text: str) -> Group:
    """A group in which this text stands wherever a text can stand."""
    one = completion(
        text=text, pieces=[text, "b"], role=text, reason=text, finish_reason=text, rewards={text: 1.0, "b" + text: None}
    )
    return group(one, replace(one, role="chosen"), run=text, kind=text, task=text, prompt_id=text, prompt=text)


@pytest.mark.parametrize("colour_by", MEASURES)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_tag_or_attribute_comes_from_a_text(name: str, colour_by: str) -> None:
    hostile, harmless = (Skeleton(group_html(everywhere(text), colour_by)) for text in (HOSTILE[name], "x"))
    assert hostile.tags == harmless.tags and hostile.styles == harmless.styles
    assert INVISIBLE.search(hostile.text + "".join(hostile.titles)) is None
    assert hostile.text.count(visible(HOSTILE[name])) >= 8


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_browser_is_sent_is_visible(name: str, tmp_path: Path) -> None:
    text = HOSTILE[name]
    write_step(tmp_path, 0, [
        row(text, 0, task=text, prompt=text, completion=text, pieces=[text, "b"], rewards=[(text, 1.0), ("b", 0.0)],
            role="unused", reason=text, finish_reason=text),
    ])  # fmt: skip
    rollouts = Rollouts(tmp_path)
    [line] = rollouts.lines([0])
    sent = [line_payload(line), group_payload(rollouts, 0, 2000), about(rollouts)["choices"]["task"][0]["text"]]
    assert INVISIBLE.search(json.dumps(sent, ensure_ascii=False)) is None
    [one] = group_payload(rollouts, 0, 2000)["completions"]
    assert one["pieces"] == [visible(text), "b"]
    assert rollouts.find(Filter(text=text, task=text, role=text, prompt_id=text)).completions == 1
    skeleton = Skeleton(Microscope(tmp_path).html())
    assert {tag for tag, _ in skeleton.tags} <= {"div", "section", "span", "code", "bdi", "strong", "hr"}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain ünï 漢字 שלום", "plain ünï 漢字 שלום"),
        ("a\x00\x1b[1m\u202e\u200b", "a\\x00\\x1b[1m\\u202e\\u200b"),
        ("a\tb\r\n\nc", "a\\tb\\r↵\n↵\nc"),
        ("e\u0301", "e\u0301"),  # one mark on a letter
        ("\u0301a", "\u25cc\u0301a"),  # a mark without one
        ("a\n\u0301", "a↵\n\u25cc\u0301"),
        ("a\u0301\u0302\u0303\u0304b\u0301", "a\u0301\u0302\\u0303\\u0304b\u0301"),  # they do not pile up
    ],
)
def test_invisible_characters_are_written_out(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_a_long_completion_is_cut_and_says_how_much_is_left() -> None:
    long = completion(pieces=["x" * 60_000, "y" * 40_000], text="", role="unused")
    html = group_html(group(long, prompt="p" * 3000))
    assert len(html) < 20_000 and html.count("… 98,000 more characters") == 1 and "… 1,000 more characters" in html
    whole = Skeleton(group_html(group(long), limit=None)).text
    assert whole.count("x") >= 60_000 and whole.count("y") >= 40_000 and "more characters" not in whole
    assert cut(["ab", "", "cde"], 5) == (["ab", "", "cde"], 0)


def test_a_long_completion_is_sent_in_parts(tmp_path: Path) -> None:
    pieces = ["ab "] * 40_000
    logprobs = [-1.0] * len(pieces)
    write_step(tmp_path, 0, [row("p", 0, pieces=pieces, completion="ab " * 40_000, tokens=len(pieces),
                                 old_logprobs=logprobs, entropies=None, logprobs=None, ref_logprobs=None)])  # fmt: skip
    rollouts = Rollouts(tmp_path)
    sizes = []
    for limit in (2_000, 16_000, 200_000):
        payload = group_payload(rollouts, 0, limit)
        [one] = payload["completions"]
        assert sum(map(len, one["pieces"])) + one["rest"] == 120_000
        assert len(one["numbers"]["logprob"]["told"]) == len(one["pieces"])
        sizes.append(len(json.dumps(payload)))
    assert sizes[0] < 50_000 < sizes[1] < sizes[2]


def test_the_javascript_only_sets_text() -> None:
    source = (Path(__file__).parents[1] / "kit" / "microscope" / "microscope.js").read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|srcdoc|https?:|import\("
    assert re.findall(forbidden, source) == []
    assert "textContent" in source and "createElement" in source


def test_the_measures_of_a_token_by_hand() -> None:
    one = completion()  # sampler -1, -0.5; policy -0.5, -1; reference -1, -1
    assert MEASURES["logprob"].values(one) == [-1.0, -0.5]
    assert MEASURES["entropy"].values(one) == [1.5, 0.5]
    assert MEASURES["ratio"].values(one) == pytest.approx([math.exp(0.5), math.exp(-0.5)])
    assert MEASURES["kl"].values(one) == pytest.approx([math.exp(-0.5) + 0.5 - 1, 0.0])


def test_kl_is_that_of_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    own, ref = (-3 * torch.rand(50, generator=generator, dtype=torch.float64) for _ in range(2))
    one = completion(logprobs=own.tolist(), ref_logprobs=ref.tolist())
    assert MEASURES["kl"].values(one) == pytest.approx(k3(own, ref).tolist())


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ratio", "logprobs"), ("ratio", "old_logprobs"), ("kl", "logprobs"), ("kl", "ref_logprobs"),
     ("entropy", "entropies"), ("logprob", "old_logprobs")],
)  # fmt: skip
def test_what_was_not_asked_has_no_colour_and_says_so(name: str, missing: str) -> None:
    one = completion(**{missing: None})
    assert MEASURES[name].values(one) is None
    html = group_html(group(one), name)
    assert "not known of it" in html and html.count("<span>") == 2 + len(MEASURES[name].ticks(1.0))
    assert [span for span in Skeleton(html).titles if span.startswith(MEASURES[name].title)] == []


def test_a_scale_ends_beyond_what_it_shows_and_its_legend_says_where() -> None:
    measure = MEASURES["logprob"]
    assert measure.end([completion(old_logprobs=[-0.1, -1.4])]) == 2.0
    assert measure.ticks(2.0) == [(0.0, 0.0), (0.5, -1.0), (1.0, -2.0)]
    assert (measure.share(-1.0, 2.0), measure.share(-9.0, 2.0)) == (0.5, 1.0)
    ratio = MEASURES["ratio"]
    end = ratio.end([completion(logprobs=[-1.0, -0.5 - math.log(1.15)])])  # 1 and 1 / 1.15
    assert [value for _, value in ratio.ticks(end)] == pytest.approx([1 / 1.2, 1.0, 1.2])
    assert ratio.share(1 / 1.2, end) == pytest.approx(-1.0)
    html = group_html(group(completion(old_logprobs=[-0.1, -1.4])))
    assert all(text in html for text in ("0 nats", "−1 nats", "−2 nats", "log π_old(token)"))


def test_opposite_sides_differ_in_hue_and_strength_in_opacity() -> None:
    ratio = MEASURES["ratio"]
    assert ratio.colour(1.0) == "rgba(213, 94, 0, 0.600)" and ratio.colour(-0.5) == "rgba(0, 114, 178, 0.300)"
    assert ratio.colour(0.0).endswith(" 0.000)")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_shown_as_it_is(value: float) -> None:
    one = completion(logprobs=[value, -1.0], ref_logprobs=[-1.0, value], old_logprobs=[value, -1.0])
    for name, measure in MEASURES.items():
        html = group_html(group(one), name)
        told = Skeleton(html).titles
        assert any(text.startswith(measure.title) for text in told)
        assert "nan)" not in html and "inf)" not in html  # no such colour
    assert f"log-prob {number(value, 'nats')}" in Skeleton(group_html(group(one))).titles


def test_the_numbers_behind_a_token_are_exact() -> None:
    skeleton = Skeleton(group_html(group(), "logprob"))
    assert [title for title in skeleton.titles if "nats" in title] == ["log-prob −1 nats", "log-prob −0.5 nats"]
    for fact in ("reward 1", "right 1", "short –", "age 3", "2 tokens", "chosen", "training, step 4", "1+1="):
        assert fact in skeleton.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colour_by": "luck"}, r"colour_by must be one of \['logprob'.*got 'luck'"),
        ({"limit": 0}, "limit must be at least 1 character or None, got 0"),
    ],
)
def test_a_view_that_means_nothing_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_html(group(), **arguments)
