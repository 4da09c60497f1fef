"""Judges against vLLM's own server: verdicts that a model really wrote, its refusals, its silence and its death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kit.models.endpoint import ChatEndpoint, EndpointFailed, EndpointRefused
from kit.models.judge import PairwiseJudge, PointwiseJudge
from tests.vllm.models import CONTEXT, rule_model
from tests.vllm.server import VllmDidNotStart, VllmServer, serve

PROMPT = [{"role": "user", "content": "What is the weather?"}]


def endpoint(server: VllmServer, **changes: Any) -> ChatEndpoint:
    settings: dict[str, Any] = {"model": server.model, "timeout_s": 30.0, "retries": 1, "backoff_s": 0.1}
    return ChatEndpoint(**({"base_url": server.url} | settings | {"max_tokens": 64} | changes))


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_score_is_what_the_model_wrote_about_this_completion(rules: VllmServer) -> None:
    judge, logged = PointwiseJudge(endpoint(rules)), dict[str, float]()
    completions = [assistant("A lovely day."), assistant("Rain."), assistant("Schön, 雨, lovely 🌧")]
    rewards = judge([PROMPT] * 3, completions, log_metric=lambda name, value: logged.update({name: value}))
    assert rewards == [9.0, 2.0, 9.0]
    assert judge.metrics() == {"parsed": 3, "unparsable": 0, "cut_off": 0, "failed": 0}
    assert set(logged.values()) == {0.0}


def test_many_questions_at_once_keep_their_order(rules: VllmServer) -> None:
    judge, answered = PointwiseJudge(endpoint(rules), workers=16), rules.answered()
    completions = [f"{'lovely' if number % 3 else 'grey'} day {number}" for number in range(96)]
    assert judge(["p"] * 96, completions) == [9.0 if number % 3 else 2.0 for number in range(96)]
    assert rules.answered() - answered == 96


def test_a_model_that_always_prefers_the_first_gives_half_and_is_counted(rules: VllmServer) -> None:
    judge = PairwiseJudge(endpoint(rules))
    rewards = judge([PROMPT] * 2, [assistant("A lovely day."), assistant("Rain.")], baseline=["Snow.", "A lovely day."])
    assert rewards == [0.5, 0.5]
    counts = {"parsed": 4, "unparsable": 0, "cut_off": 0, "failed": 0}
    assert judge.metrics() == counts | {"ties": 0, "swapped_disagreement": 2}


def test_an_answer_without_a_verdict_is_asked_for_once_more_and_abstains(rules: VllmServer) -> None:
    judge, answered = PointwiseJudge(endpoint(rules), criterion="You may mumble."), rules.answered()
    assert judge(["p"] * 2, ["lovely", "grey"]) == [None, None]
    assert judge.metrics() == {"parsed": 0, "unparsable": 2, "cut_off": 0, "failed": 0}
    assert rules.answered() - answered == 4


def test_an_answer_cut_off_at_max_tokens_abstains_and_is_counted(rules: VllmServer) -> None:
    judge = PointwiseJudge(endpoint(rules, max_tokens=2))  # of three: `Score: `, `9`, the end
    assert judge(["p"], ["lovely"]) == [None]
    assert judge.metrics() == {"parsed": 0, "unparsable": 0, "cut_off": 1, "failed": 0}
    assert PointwiseJudge(endpoint(rules, max_tokens=3))(["p"], ["lovely"]) == [9.0]


def test_a_conversation_longer_than_the_models_context_fails_alone(rules: VllmServer) -> None:
    judge, logged = PointwiseJudge(endpoint(rules)), dict[str, float]()
    completions = ["lovely", "x" * CONTEXT, "grey"]
    rewards = judge(["p"] * 3, completions, log_metric=lambda name, value: logged.update({name: value}))
    assert rewards == [9.0, None, 2.0]
    assert judge.metrics() == {"parsed": 2, "unparsable": 0, "cut_off": 0, "failed": 1}
    assert logged["pointwise_judge/failed"] == pytest.approx(1 / 3)
    with pytest.raises(EndpointFailed, match="maximum context length is 4096"):
        judge(["p"], ["x" * CONTEXT])


@pytest.mark.parametrize(
    "change, said",
    [({"model": "judge"}, "The model `judge` does not exist"), ({"base_url": "http://127.0.0.1:{port}"}, "status 404")],
)
def test_a_wrong_model_or_address_stops_at_once_and_says_what_to_correct(
    rules: VllmServer, change: dict[str, str], said: str
) -> None:
    port = rules.url.split(":")[2].split("/")[0]
    wrong = endpoint(rules, **{name: value.format(port=port) for name, value in change.items()})
    with pytest.raises(EndpointRefused, match=f"{said}.*; correct base_url, model or the key"):
        PointwiseJudge(wrong)(["p"] * 20, ["c"] * 20)


def test_a_server_that_hangs_fails_within_the_stated_time_and_answers_again_later(rules: VllmServer) -> None:
    hasty = endpoint(rules, timeout_s=0.5, retries=2, backoff_s=0.1)
    assert hasty.patience_s == pytest.approx(3 * 0.5 + 0.1 + 0.2)
    rules.send(signal.SIGSTOP)
    start = time.monotonic()
    try:
        with pytest.raises(EndpointFailed, match=r"within 3 attempts, got .*timed out"):
            hasty.ask([{"role": "user", "content": "grade"}])
        assert time.monotonic() - start < hasty.patience_s + 1
    finally:
        rules.send(signal.SIGCONT)
    assert PointwiseJudge(endpoint(rules))(["p"], ["lovely"]) == [9.0]


def test_noise_is_no_verdict_and_only_the_key_opens(untrained: VllmServer) -> None:
    with pytest.raises(EndpointRefused, match=r"status 401 .*the key in the variable that api_key_env names"):
        PointwiseJudge(endpoint(untrained))(["p"], ["c"])
    judge = PointwiseJudge(endpoint(untrained, api_key_env="JUDGE_KEY", max_tokens=400))
    assert judge(["p"] * 8, [f"completion {number}" for number in range(8)]) == [None] * 8
    counts = judge.metrics()
    assert counts["unparsable"] + counts["cut_off"] == 8
    assert (counts["parsed"], counts["failed"]) == (0, 0)


def test_a_server_killed_in_the_middle_is_an_error_within_the_stated_time(untrained: VllmServer) -> None:
    judge = PointwiseJudge(endpoint(untrained, api_key_env="JUDGE_KEY", timeout_s=5.0), workers=8)
    completions = [f"completion {number}" for number in range(10_000)]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(judge, ["p"] * len(completions), completions)
        while untrained.answered() < 20 and not asking.done():
            time.sleep(0.02)
        untrained.kill()
        killed = time.monotonic()
        with pytest.raises(
            EndpointFailed, match=r"expected answers to 10000 questions .*, got none to 8 in a row after"
        ):
            asking.result()
        assert time.monotonic() - killed < 3 * judge.endpoint.patience_s
    counts = judge.metrics()
    assert counts["unparsable"] + counts["cut_off"] > 0 and 8 <= counts["failed"] < 100


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = r"(?s)got exit status [1-9].*the last lines that it printed:.*config\.json"
    with pytest.raises(VllmDidNotStart, match=said), serve(tmp_path / "empty"):
        pass


STARTER = """
import sys
from pathlib import Path
from tests.vllm.server import serve
with serve(Path(sys.argv[1])):
    pass
"""


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = rule_model(tmp_path / "rules")
    command, root = [sys.executable, "-c", STARTER, folder], Path(__file__).parents[2]
    starter = subprocess.Popen(command, cwd=root, env=os.environ | {"TMPDIR": str(tmp_path)})
    wait_until(lambda: len(processes_with(str(folder))) == 2)  # the starter and its server, which is still loading
    starter.kill()
    starter.wait()
    wait_until(lambda: not processes_with(str(folder)))


def processes_with(argument: str) -> list[str]:
    """Their numbers, of those that have this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # gone meanwhile
            if argument in path.read_text(errors="replace").split("\0"):
                found.append(path.parent.name)
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
