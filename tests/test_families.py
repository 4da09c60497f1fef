"""Each family of models through the whole kit: sampled, synced, trained, killed and resumed, read by others.

The oracles are transformers' own `generate` and one plain forward pass, without cache or padding.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kit.config import Lora, Sampling
from kit.models.policy import load_policy, score
from kit.models.weights import weights_of
from kit.samplers import TransformersSampler
from kit.samplers.prompts import context_length, prompt_ids
from kit.sync import Every
from kit.types import Prompt, Rollout
from tests.conftest import tiny_run, untimed
from tests.families import FAMILIES, write_family

LORA = Lora(lora_r=4, lora_alpha=8.0)
PROMPTS = [
    Prompt(str(n), [{"role": "user", "content": text}], {}) for n, text in enumerate(["1+1", "Say 1234567.", "?"])
]
RENDERED = {  # of the user's "1+1", with the assistant's turn opened, as the family's model card shows it
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1+1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "Qwen3": "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n",
    "Gemma 3": "<bos><start_of_turn>user\n1+1<end_of_turn>\n<start_of_turn>model\n",
    "Mistral": "<s>[INST] 1+1 [/INST]",
    "Phi-3": "<|user|>\n1+1<|end|>\n<|assistant|>\n",
}
ADAPTED = {  # what "all-linear" is, where it is not Llama's seven
    "Phi-3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
}
LLAMAS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

each_family = pytest.mark.parametrize("name", FAMILIES)
each_way = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def made(name: str) -> Path:
        return root / name if (root / name).exists() else write_family(name, root / name)

    return made


def moved(folder: Path, lora: Lora | None) -> tuple[PreTrainedModel, Any]:
    """A policy that is no longer what its folder holds."""
    policy, tokenizer = load_policy(str(folder), lora=lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in {t.data_ptr(): t for t in weights_of(policy).values()}.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    return policy, tokenizer


@torch.no_grad()
def plain_logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)]


@each_family
def test_a_prompt_is_tokenized_as_the_family_writes_it(folder_of: Callable[[str], Path], name: str) -> None:
    _, tokenizer = load_policy(str(folder_of(name)))
    ids = prompt_ids(tokenizer, PROMPTS[0])
    assert tokenizer.decode(ids) == RENDERED[name]
    text = RENDERED[name]
    for token in FAMILIES[name].special:
        text = text.replace(token, "·")  # one token, whatever its length; the other characters are one each
    assert len(ids) == len(text)


@each_family
@each_way
def test_greedy_completions_are_those_of_generate(
    folder_of: Callable[[str], Path], name: str, lora: Lora | None
) -> None:
    policy, tokenizer = moved(folder_of(name), lora)
    sampler = TransformersSampler(policy, tokenizer)
    groups = sampler.generate(PROMPTS, 2, seed=(0,), sampling=Sampling(16, temperature=0))
    for group in groups:
        rollout = group.rollouts[0]
        prompt = torch.tensor([rollout.prompt_ids])
        expected = policy.generate(  # pyright: ignore[reportCallIssue]
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16
        )[0, prompt.shape[1] :].tolist()
        assert list(rollout.completion_ids) == expected
        assert group.rollouts[1].completion_ids == rollout.completion_ids


@each_family
@each_way
def test_scores_and_sampled_logprobs_are_those_of_a_plain_forward_pass(
    folder_of: Callable[[str], Path], name: str, lora: Lora | None
) -> None:
    policy, tokenizer = moved(folder_of(name), lora)
    groups = TransformersSampler(policy, tokenizer).generate(PROMPTS, 3, seed=(0,), sampling=Sampling(12))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    with torch.no_grad():
        found = score(policy, rollouts).logprobs
    for row, rollout in zip(found, rollouts, strict=True):
        expected = plain_logprobs(policy, rollout.prompt_ids, rollout.completion_ids)
        torch.testing.assert_close(row[: len(expected)], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rollout.old_logprobs), expected, rtol=0, atol=1e-4)
    assert any(i >= len(tokenizer) for rollout in rollouts for i in rollout.completion_ids)  # rows without a token
    for rollout in rollouts:
        known = [i for i in rollout.completion_ids if i < len(tokenizer)]
        assert rollout.text == tokenizer.decode(known, skip_special_tokens=True)


@each_family
def test_all_linear_adapts_every_layer_but_the_output(folder_of: Callable[[str], Path], name: str) -> None:
    policy, _ = load_policy(str(folder_of(name)), lora=LORA)
    layers = {key.split(".lora_")[0].rpartition(".")[2] for key in weights_of(policy)}
    assert layers == ADAPTED.get(name, LLAMAS)
    assert len(weights_of(policy)) == 2 * len(layers) * policy.config.num_hidden_layers


CHANGES: dict[str, Any] = {
    "sync": Every(2), "ref_sync": Every(2), "prompts_per_step": 3, "group_size": 3, "max_steps": 3, "eval_steps": 3,
    "eval_prompts": 2, "eval_samples": 1, "save_steps": 1, "learning_rate": 3e-3, "sampling": Sampling(6),
}  # fmt: skip


@each_family
@each_way
def test_a_run_syncs_trains_resumes_to_the_same_metrics_and_is_read_by_transformers_and_peft(
    folder_of: Callable[[str], Path], tmp_path: Path, name: str, lora: Lora | None
) -> None:
    start = partial(tiny_run, folder_of(name), lora=lora, **CHANGES)
    run = start(tmp_path / "straight")
    rollout = Rollout(tuple(prompt_ids(run.sampler.tokenizer, PROMPTS[1])), (65, 66, 67), (), (), "", "stop", 0)
    before = plain_logprobs(run.policy, rollout.prompt_ids, rollout.completion_ids)
    run.finish()
    receipts = [json.loads(line) for line in (tmp_path / "straight" / "receipts.jsonl").read_text().splitlines()]
    assert [receipt["step"] for receipt in receipts] == [2]
    assert receipts[0]["probe_moved"] > 0 and receipts[0]["delta_norm"] > 0
    next(start(tmp_path / "killed").steps(1))  # nothing of it survives but its directory
    again = start(tmp_path / "killed")
    assert again.step == 1
    again.finish()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")

    again.save_policy(tmp_path / "policy")
    source = folder_of(name) if lora else tmp_path / "policy"
    model = AutoModelForCausalLM.from_pretrained(source)
    if lora:
        model = PeftModel.from_pretrained(model, tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tuple(prompt_ids(tokenizer, PROMPTS[1])) == rollout.prompt_ids
    found = plain_logprobs(model.eval(), rollout.prompt_ids, rollout.completion_ids)
    with torch.no_grad():
        torch.testing.assert_close(found, score(run.policy, [rollout]).logprobs[0], rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 1e-3  # what was saved is the trained policy


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE = {"original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope"} | FACTORS}  # as Phi-3's are
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
YARN = {"rope_parameters": {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32
}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rope", "expected"), [("Phi-3", LONGROPE, 16), ("Llama 3", DYNAMIC, 128), ("Llama 3", YARN, 128)]
)
def test_a_context_ends_where_positions_are_embedded_anew(
    tmp_path: Path, name: str, rope: dict[str, Any], expected: int
) -> None:
    policy, tokenizer = load_policy(str(write_family(name, tmp_path, **rope)))
    assert context_length(policy) == expected
    ids = list(range(5, 5 + expected - 4))
    short, long = (Rollout(tuple(ids), tuple(range(70, 70 + n)), (), (), "", "stop", 0) for n in (4, 6))
    with torch.no_grad():  # up to there a rollout's scores are its own, whatever is scored with it
        found = score(policy, [short, short]).logprobs[0]
        torch.testing.assert_close(plain_logprobs(policy, ids, short.completion_ids), found, rtol=0, atol=1e-4)
        if rope is LONGROPE:  # and beyond not: the reason for the limit
            assert (score(policy, [short, long]).logprobs[0, :4] - found).abs().max() > 0.1
    room = expected - len(prompt_ids(tokenizer, PROMPTS[0]))
    sampler = TransformersSampler(policy, tokenizer)
    sampler.check_lengths(PROMPTS[:1], Sampling(room))
    with pytest.raises(ValueError, match=f"must fit into the model's context of {expected} tokens"):
        sampler.check_lengths(PROMPTS[:1], Sampling(room + 1))


@pytest.mark.parametrize(
    ("name", "roles", "words"),
    [("Gemma 3", ["system", "user"], "System role not supported"), ("Mistral", ["user", "user"], "must alternate")],
)
def test_roles_that_a_template_refuses_are_an_error_before_training(
    folder_of: Callable[[str], Path], name: str, roles: list[str], words: str
) -> None:
    sampler = TransformersSampler(*load_policy(str(folder_of(name))))
    prompt = Prompt("odd", [{"role": role, "content": "1+1"} for role in roles], {})
    with pytest.raises(ValueError, match=rf"refuses prompt 'odd' with messages of the roles \{roles}.*{words}"):
        sampler.check_lengths([prompt], Sampling(4))


def test_messages_without_a_chat_template_are_an_error_before_training(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(str(folder_of("Mistral")))
    tokenizer.chat_template = None
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="has no chat template: take the model's chat version"):
        tiny_run(tmp_path / "base", tmp_path / "run")
    plain = TransformersSampler(*load_policy(str(tmp_path / "base"))).generate(
        [Prompt("plain", "1+1=", {})], 1, seed=(0,), sampling=Sampling(3)
    )
    assert tokenizer.decode(plain[0].rollouts[0].prompt_ids) == "1+1="
