"""Calls of a chat endpoint: faults of a real local server counted and survived, limits kept, the key never shown."""

import json
import socketserver
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from kit.models.endpoint import ChatEndpoint, EndpointFailed, EndpointRefused
from kit.models.judge import PointwiseJudge
from tests.chat_server import Answer, Server, endpoint, in_turn, quoted, serve

KEY = "sk-test-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as running:
        yield running


FAULTS: dict[str, Answer] = {
    "an error of the server": (500, "oops"),
    "too many requests": (429, "slow down"),
    "garbage": (200, "<html>"),
    "half an answer": (200, '{"choices": [{"message"'),
    "JSON of another form": (200, '{"error": "busy"}'),
    "a list": (200, "[]"),
    "no choices": (200, '{"choices": []}'),
    "no text": (200, '{"choices": [{"message": {"content": null}}]}'),
    "nesting without end": (200, "[" * 200_000),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_tried_again(server: Server, fault: str) -> None:
    server.answer = in_turn(FAULTS[fault], FAULTS[fault], "Score: 3")
    judge = PointwiseJudge(endpoint(server))
    assert judge(["p"], ["c"]) == [3.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_abstains_for_its_completion_alone(server: Server, fault: str) -> None:
    server.answer = lambda question: FAULTS[fault] if quoted(question, "answer") == "bad" else "Score: 3"
    judge = PointwiseJudge(endpoint(server, retries=1))
    assert judge(["p"] * 3, ["fine", "bad", "fine"]) == [3.0, None, 3.0]
    assert judge.metrics() == {"parsed": 2, "unparsable": 0, "cut_off": 0, "failed": 1}
    assert len(server.requests) == 4


def test_a_conversation_that_the_server_rejects_is_not_tried_again(server: Server) -> None:
    server.answer = lambda question: (400, "too long") if quoted(question, "answer") == "bad" else "Score: 3"
    assert PointwiseJudge(endpoint(server))(["p"] * 2, ["fine", "bad"]) == [3.0, None]
    assert len(server.requests) == 2


def test_an_endpoint_that_answers_nothing_stops_the_run(server: Server) -> None:
    server.answer = lambda question: (503, "down")
    with pytest.raises(EndpointFailed, match=r"none of the 2 questions of pointwise_judge was answered: .*status 503"):
        PointwiseJudge(endpoint(server, retries=0))(["p"] * 2, ["c"] * 2)


def test_a_server_that_falls_silent_stops_the_run_before_all_questions_are_asked(server: Server) -> None:
    server.answer = in_turn(*["Score: 3"] * 5, (503, "down"))
    judge = PointwiseJudge(endpoint(server, retries=0), workers=1)
    with pytest.raises(EndpointFailed, match=r"expected answers to 100 .*got none to 8 in a row after 5: .*status 503"):
        judge(["p"] * 100, ["c"] * 100)
    assert judge.metrics() == {"parsed": 5, "unparsable": 0, "cut_off": 0, "failed": 8}
    assert len(server.requests) <= 5 + 8 + 1  # the one that was on its way


def test_as_many_silent_questions_as_are_asked_at_once_are_an_outage(server: Server) -> None:
    server.answer = lambda question: (503, "down") if quoted(question, "answer") < "15" else "Score: 3"
    rewards = PointwiseJudge(endpoint(server, retries=0), workers=6)(["p"] * 10, [str(n) for n in range(8, 18)])
    assert rewards == [3.0, 3.0, *[None] * 5, 3.0, 3.0, 3.0]  # "8" and "9" sort last; a gap of five is none
    many = [str(n) for n in range(100, 110)] + [str(n) for n in range(20, 30)]  # ten are none with twelve workers
    assert PointwiseJudge(endpoint(server, retries=0), workers=12)(["p"] * 20, many) == [*[None] * 10, *[3.0] * 10]
    with pytest.raises(EndpointFailed, match="got none to 10 in a row"):
        PointwiseJudge(endpoint(server, retries=0), workers=10)(["p"] * 20, many)


def test_conversations_that_the_server_rejects_are_no_outage(server: Server) -> None:
    server.answer = lambda question: (400, "too long") if quoted(question, "answer") == "bad" else "Score: 3"
    judge = PointwiseJudge(endpoint(server))
    assert judge(["p"] * 21, ["bad"] * 20 + ["fine"]) == [*[None] * 20, 3.0]
    assert len(server.requests) == 21
    with pytest.raises(EndpointFailed, match=r"none of the 20 questions .* was answered: .*too long"):
        judge(["p"] * 20, ["bad"] * 20)


def test_nobody_listening_is_named(server: Server) -> None:
    judge = PointwiseJudge(ChatEndpoint("http://127.0.0.1:9/v1", "judge", retries=0))
    with pytest.raises(EndpointFailed, match="Connection refused"):
        judge(["p"], ["c"])


@pytest.mark.parametrize("delay_s, timeout_s", [(0.6, 0.2), (0.02, 0.3)])  # silence, and a trickle of bytes
def test_a_slow_answer_is_given_up(server: Server, delay_s: float, timeout_s: float) -> None:
    server.delay_s = delay_s
    start = time.monotonic()
    with pytest.raises(EndpointFailed, match=r"TimeoutError|timed out"):
        PointwiseJudge(endpoint(server, timeout_s=timeout_s, retries=1))(["p"], ["c"])
    assert time.monotonic() - start < 1.9  # a whole trickle would take 2.4 s, an attempt
    assert len(server.requests) == 2


TRICKLES = {  # each byte arrives well within the limit of one attempt, the end never does
    "headers": b"HTTP/1.1 200 OK\r\nX-Wait: ",
    "an error's body": b"HTTP/1.1 500 no\r\nContent-Length: 1000\r\n\r\n",
    "a refusal's body": b"HTTP/1.1 401 no\r\nContent-Length: 1000\r\n\r\n",
    "a body of unknown length": b"HTTP/1.0 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("what", TRICKLES)
def test_a_trickle_is_cut_off_in_time_whatever_trickles(what: str) -> None:
    with trickling(TRICKLES[what]) as url:
        asked = ChatEndpoint(url, "judge", timeout_s=0.4, retries=1, backoff_s=0.1)
        assert asked.patience_s == pytest.approx(0.9)
        start = time.monotonic()
        with pytest.raises(EndpointFailed, match=r"within 2 attempts, got TimeoutError: .* longer than 0\.4 s"):
            asked.ask([{"role": "user", "content": "q"}])
        assert 0.9 <= time.monotonic() - start < 2  # ten seconds and more, if each byte were waited for


@contextmanager
def trickling(beginning: bytes) -> Iterator[str]:
    """An address where every request gets `beginning` and then a byte at a time, until the client hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(beginning)
            with suppress(OSError):
                for _ in range(400):
                    self.request.sendall(b" ")
                    time.sleep(0.05)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def test_patience_counts_attempts_and_waits_up_to_a_minute_each() -> None:
    asked = ChatEndpoint("http://127.0.0.1/v1", "judge", timeout_s=10.0, retries=4, backoff_s=20.0)
    assert asked.patience_s == 5 * 10 + 20 + 40 + 60 + 60


def test_waits_grow_between_attempts(server: Server) -> None:
    times: list[float] = []

    def answer(question: str) -> Answer:
        times.append(time.monotonic())
        return (500, "")

    server.answer = answer
    with pytest.raises(EndpointFailed, match="within 4 attempts"):
        endpoint(server, retries=3, backoff_s=0.05).ask([{"role": "user", "content": "q"}])
    waits = [late - early for early, late in pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, [0.05, 0.1, 0.2], strict=True)), waits


@pytest.mark.parametrize("status", [401, 403, 404, 302, 307])
def test_a_refusal_that_every_call_will_meet_stops_the_run_at_once(server: Server, status: int) -> None:
    server.answer, server.think_s = (lambda question: (status, "no")), 0.05
    server.headers = {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(EndpointRefused, match=f"got status {status} .*correct base_url, model or the key"):
        PointwiseJudge(endpoint(server), workers=1)(["p"] * 20, ["c"] * 20)
    assert len(server.requests) < 20  # the queue is dropped
    assert server.most_busy == 1


def test_the_key_is_sent_and_shown_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"  {KEY}\n")  # as a file's contents arrive
    asked = endpoint(server, api_key_env="MY_KEY", retries=0)
    judge = PointwiseJudge(asked)
    assert judge(["p"], ["c"]) == [7.0]
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(asked) and KEY not in str(vars(asked))
    body = "not so, " + KEY * 40  # where the message is cut, part of a key could remain
    for fault in ((401, body), (400, body), (500, body), (200, json.dumps({"choices": body})), (200, body)):
        server.answer = in_turn(fault)
        with pytest.raises((EndpointRefused, EndpointFailed)) as caught:
            judge(["p"], ["c"])
        shown = "".join(traceback.format_exception(caught.value))
        assert "sk-" not in shown


def test_without_a_variable_no_key_is_sent(server: Server) -> None:
    assert endpoint(server).ask([{"role": "user", "content": "q"}]) == "Fine.\nScore: 7"
    assert server.keys == [None]


@pytest.mark.parametrize("value", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ValueError, match="expected the API key in the environment variable 'MY_KEY'") as caught:
        ChatEndpoint("http://127.0.0.1/v1", "judge", api_key_env="MY_KEY")
    assert not value.strip() or value not in str(caught.value)


def test_a_key_that_disappears_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    judge = PointwiseJudge(endpoint(server, api_key_env="MY_KEY"))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="variable 'MY_KEY', got nothing"):
        judge(["p"], ["c"])
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "127.0.0.1/v1",
        "http://u:secret@h/v1",
        "https://h/v1?key=secret",
        "http:///v1",
        "http://h:port/v1",
        "http://h:70000/v1",
        "http://h:0/v1",
        "http://h /v1",
        "http://h/v1\n",
        "http://h/v1#secret",
        "http://[h/v1",
    ],
)
def test_an_address_that_cannot_be_right_or_holds_a_key_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected base_url as http") as caught:
        ChatEndpoint(url, "judge")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"retries": -1},
        {"backoff_s": -1.0},
        {"backoff_s": float("nan")},
        {"max_tokens": 0},
    ],
)
def test_a_setting_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected timeout_s > 0, retries >= 0"):
        ChatEndpoint("http://127.0.0.1/v1", "judge", **change)
