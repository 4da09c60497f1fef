"""What the doctor says of a run's parts before it starts: each fault, and the same without it beside it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from kit.config import Lora, RunConfig, Sampling
from kit.doctor import Finding, Parts, check_parts, model_parts
from kit.doctor.before import UnreadableModelError, read_prompts
from kit.importance import NoCorrection
from kit.models.reward_model import RewardModel
from kit.models.tokenizer import END_ID, build_tokenizer
from kit.objectives import DPO, GRPO
from kit.sync import Every, OnDrift
from kit.types import Messages, Prompt

ROOT = Path(__file__).parents[1]
MESSAGES: Messages = [{"role": "user", "content": "1+1="}]


def names(parts: Parts) -> list[tuple[str, str]]:
    return [(finding.name, finding.severity) for finding in check_parts(parts)]


def prompts(*contents: str | Messages) -> list[Prompt]:
    return [Prompt(str(i), content, {}) for i, content in enumerate(contents)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.mark.parametrize("name", ["seed", "reward_model"])
def test_nothing_is_wrong_with_the_embedded_models(name: str) -> None:
    parts = model_parts(ROOT / "data" / name, prompts(MESSAGES), Lora())
    assert check_parts(parts) == []


def test_a_model_of_another_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_parts(model_parts("data/seed")) == []


def test_string_prompts_for_a_chat_model(tokenizer: PreTrainedTokenizerBase) -> None:
    assert names(Parts(tokenizer, prompts=prompts(MESSAGES, "1+1="))) == [("string_prompts", "warning")]
    assert names(Parts(tokenizer, prompts=prompts(MESSAGES, MESSAGES))) == []
    rendered = str(tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True))
    assert names(Parts(tokenizer, prompts=prompts(rendered))) == []  # somebody applied the template beforehand


def test_messages_for_a_model_without_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    assert names(Parts(tokenizer, prompts=prompts(MESSAGES))) == [("messages_without_template", "error")]
    assert names(Parts(tokenizer, prompts=prompts("1+1="))) == []


def test_a_second_start_token() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|user|>"
    start = tokenizer.bos_token_id
    once = Parts(tokenizer, prompts=prompts("<|user|>1+1="))
    assert names(once) == []  # this tokenizer adds none
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|user|> $A", None, [("<|user|>", start)])
    assert names(once) == [("doubled_start", "warning")]
    assert names(Parts(tokenizer, prompts=prompts("1+1="))) == []


def test_no_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.eos_token = None
    assert names(Parts(tokenizer)) == [("no_end_token", "error")]
    assert names(Parts(tokenizer, generation_config=GenerationConfig(eos_token_id=END_ID))) == []


@pytest.mark.parametrize(("ends", "is_other"), [(END_ID, False), ([0, END_ID], False), (0, True), ([0, 4], True)])
def test_the_end_token_is_not_the_one_that_ends_a_turn(
    tokenizer: PreTrainedTokenizerBase, ends: int | list[int], is_other: bool
) -> None:
    found = names(Parts(tokenizer, generation_config=GenerationConfig(eos_token_id=ends)))
    assert found == ([("other_end_token", "error")] if is_other else [])


def test_a_template_that_writes_nothing_after_an_answer_says_nothing_of_the_end(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}\n"
    assert names(Parts(tokenizer, generation_config=GenerationConfig(eos_token_id=0))) == []


def test_a_template_that_cannot_render_a_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('only tools') }}"
    assert names(Parts(tokenizer)) == [("broken_template", "error")]


def test_no_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.pad_token = None
    assert names(Parts(tokenizer)) == [("no_padding_token", "note")]


def gpt2(probability: float) -> GPT2LMHeadModel:
    """Dropout is on in GPT-2's own configuration: the case of trl#3500."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1, resid_pdrop=probability,
            embd_pdrop=probability, attn_pdrop=probability, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def test_dropout() -> None:
    model = gpt2(0.1)
    assert names(Parts(model_config=model.config)) == [("dropout_configured", "note")]
    assert names(Parts(model_config=model.config, model=model.eval())) == [("dropout_configured", "note")]
    assert names(Parts(model_config=model.config, model=model.train())) == [("dropout_on", "error")]
    assert names(Parts(model_config=gpt2(0.0).config, model=gpt2(0.0).train())) == []


def test_a_dropout_module_that_the_configuration_does_not_speak_of() -> None:
    """As LoRA's, which peft adds."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).eval()
    assert names(Parts(model=model)) == []
    model[1].train()
    (finding,) = check_parts(Parts(model=model))
    assert finding.name == "dropout_on" and "such as 1" in finding.seen
    model[1].p = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert names(Parts(model=model)) == []


def test_attention_dropout_has_no_module_and_counts_by_the_mode() -> None:
    model = nn.Linear(2, 2)
    parts = Parts(model_config=LlamaConfig(vocab_size=8, attention_dropout=0.2), model=model)
    assert names(parts) == [("dropout_on", "error")]
    model.eval()
    assert names(parts) == [("dropout_configured", "note")]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (-1, [("tokens_without_row", "error")]),
        (0, []),
        (1, [("rows_without_token", "note")]),
        (1024, [("rows_without_token", "note")]),
        (1025, [("rows_without_token", "warning")]),
    ],
)
def test_vocabulary(tokenizer: PreTrainedTokenizerBase, extra: int, expected: list[tuple[str, str]]) -> None:
    config = LlamaConfig(vocab_size=len(tokenizer) + extra)
    assert names(Parts(tokenizer, config)) == expected


@pytest.mark.parametrize(
    ("targets", "is_tied", "expected"),
    [
        (("q_proj", "lm_head"), True, [("tied_weights_adapted", "warning")]),
        (("model.embed_tokens",), True, [("tied_weights_adapted", "warning")]),
        (("q_proj", "lm_head"), False, []),
        (("q_proj",), True, []),
        ("all-linear", True, []),
    ],
)
def test_tied_weights_under_lora(targets: Any, is_tied: bool, expected: list[tuple[str, str]]) -> None:
    config = RunConfig(lora=Lora(lora_target_modules=targets))
    assert names(Parts(model_config=LlamaConfig(tie_word_embeddings=is_tied), config=config)) == expected


@pytest.mark.parametrize(
    ("weight", "dtype", "rate", "is_stuck"),
    [
        # bfloat16 has 7 bits after the leading one: in [2^-6, 2^-5) = [0.0156, 0.031) its numbers are 2^-13 apart, so
        # what is below half of that, 2^-14 = 6.1e-5, rounds back.
        (0.02, torch.bfloat16, 6.0e-5, True),
        (0.02, torch.bfloat16, 6.2e-5, False),
        (0.0157, torch.bfloat16, 6.0e-5, True),
        (0.0155, torch.bfloat16, 6.0e-5, False),  # one octave lower: 3.05e-5
        (0.02, torch.float32, 1e-8, False),  # not looked at
    ],
)
def test_updates_that_round_back(weight: float, dtype: torch.dtype, rate: float, is_stuck: bool) -> None:
    layer = nn.Linear(4, 4, bias=False, dtype=dtype)
    nn.init.constant_(layer.weight, weight)
    parts = Parts(model=layer, config=RunConfig(learning_rate=rate))
    assert names(parts) == ([("updates_too_small", "error")] if is_stuck else [])
    if dtype is torch.bfloat16:  # what the rule stands for
        moved = layer.weight.detach() + torch.tensor(rate, dtype=torch.float32)
        assert torch.equal(moved.to(dtype), layer.weight.detach()) == is_stuck
    layer.requires_grad_(False)  # a frozen base may be as coarse as it likes
    assert names(parts) == []


def test_ratios_of_a_cut_distribution() -> None:
    cut, whole = RunConfig(sampling=Sampling(top_p=0.9)), RunConfig()
    expected = [("ratios_of_a_cut_distribution", "error")]
    assert names(Parts(config=cut, objective=GRPO(), sync=Every(1))) == expected
    assert names(Parts(config=cut, objective=DPO(), sync=OnDrift(max_kl=0.1))) == expected
    assert names(Parts(config=cut, objective=DPO(), sync=Every(1))) == []
    assert names(Parts(config=cut, objective=GRPO(importance=NoCorrection()), sync=Every(1))) == []
    assert names(Parts(config=whole, objective=GRPO(), sync=OnDrift(max_kl=0.1))) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True, "top_k": 50}, "top_k=50"),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, "temperature=0.6, top_p=0.9"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}, None),
        ({}, None),
    ],
)
def test_generation_settings_that_change_the_distribution(settings: dict[str, Any], said: str | None) -> None:
    found = check_parts(Parts(generation_config=GenerationConfig(**settings)))
    assert [(f.name, f.severity) for f in found] == ([("sampling_defaults", "note")] if said else [])
    assert not said or said in found[0].seen


@pytest.fixture(scope="module")
def judge() -> RewardModel:
    return RewardModel("data/reward_model")


def about_judge(
    judge: RewardModel, template: Any, tokenizer: PreTrainedTokenizerBase, contents: Sequence[Any]
) -> list[Finding]:
    before, judge.tokenizer.chat_template = judge.tokenizer.chat_template, template
    try:
        found = check_parts(Parts(tokenizer, prompts=prompts(*contents), functions=[partial(judge)]))
        assert {finding.about for finding in found} <= {"reward_model", ""}
        return [finding for finding in found if finding.about]
    finally:
        judge.tokenizer.chat_template = before


def test_reward_model_and_its_template(judge: RewardModel) -> None:
    own = judge.tokenizer.chat_template
    policy = model_parts("data/seed").tokenizer  # the same vocabulary
    assert policy is not None and policy.get_vocab() == judge.tokenizer.get_vocab()

    def said(template: Any, contents: Sequence[Any] = (MESSAGES,), of: Any = policy) -> list[tuple[str, str]]:
        return [(f.name, f.severity) for f in about_judge(judge, template, of, contents)]

    assert said(own) == []
    assert said(None) == [("reward_model_template_missing", "error")]
    assert said(None, ["1+1="]) == []  # plain text needs none
    assert said(own, [MESSAGES, "1+1="]) == [("reward_model_reads_text", "warning")]
    assert said("{{ raise_exception('no') }}") == [("reward_model_template_broken", "error")]
    other = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    assert said(other) == [("reward_model_template_differs", "warning")]
    assert said(f"{own}{{# the same in other words #}}") == []


def test_a_template_that_was_copied_from_another_family(judge: RewardModel) -> None:
    policy = build_tokenizer()
    policy.add_special_tokens({"eos_token": "<|im_end|>"})  # pyright: ignore[reportArgumentType]
    policy.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    (finding,) = about_judge(judge, policy.chat_template, policy, [MESSAGES])
    assert finding.name == "reward_model_template_foreign" and '"<|im_end|>"' in finding.seen
    assert about_judge(judge, judge.tokenizer.chat_template, policy, [MESSAGES]) == []  # its own, another family


def test_a_model_that_is_loaded_is_looked_at_too() -> None:
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "seed")
    parts = replace(model_parts("data/seed"), model=model, config=RunConfig(), objective=DPO(), sync=Every(1))
    assert names(parts) == []


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a model folder with config.json, came .*nowhere"):
        model_parts(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text((ROOT / "data/seed/config.json").read_text())
    with pytest.raises(FileNotFoundError, match="expected a tokenizer in"):
        model_parts(tmp_path)
    shutil.copy(ROOT / "data/seed/tokenizer.json", tmp_path)
    shutil.copy(ROOT / "data/seed/tokenizer_config.json", tmp_path)
    assert model_parts(tmp_path).end_tokens == (END_ID,)  # without generation_config.json
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(UnreadableModelError, match="expected a model folder that transformers can read"):
        model_parts(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnreadableModelError, match="Download or save it again"):
        model_parts(tmp_path)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "solution": "2"}) for p in ("1+1=", MESSAGES)) + "\n")
    assert [prompt.content for prompt in read_prompts(file)] == ["1+1=", MESSAGES]
    for line in ("[1]", "{", '{"question": "1+1="}', '{"prompt": []}', '{"prompt": [1]}', '{"prompt": 3}'):
        file.write_text(f'{{"prompt": "a"}}\n{line}\n')
        with pytest.raises(ValueError, match=r"expected a JSON object with a prompt .* in line 2 of"):
            read_prompts(file)
    with pytest.raises(FileNotFoundError, match="expected a file of JSON lines"):
        read_prompts(tmp_path / "none.jsonl")
