"""The engine half of the vLLM sampler, on real vLLM: what it generates, what it holds, and how that can go wrong."""

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import kit.samplers.vllm_engine as module
from kit.config import Lora, Sampling
from kit.models.policy import load_policy, score
from kit.samplers import TransformersSampler
from kit.samplers.checksum import adapter_checksums, differing, weight_checksums
from kit.samplers.vllm_engine import SamplerDied, VLLMEngine
from kit.samplers.vllm_requests import Completion
from kit.samplers.vllm_start import LORA_RANKS, unchanged
from kit.types import Prompt, Rollout
from tests.vllm.models import tiny_model

SEED = str(Path(__file__).parents[2] / "data" / "seed")
TOLERANCE = 1e-4  # nats a token, in float32; measured are 2e-5
GREEDY = Sampling(max_completion_length=24, temperature=0.0)
PROMPTS = [Prompt(str(i), [{"role": "user", "content": f"{17 * i + 3}+{29 * i % 83}="}], {}) for i in range(24)]


@dataclass
class Adapted:
    """A policy with a LoRA adapter that changes what it says, and its engine."""

    engine: VLLMEngine
    policy: PreTrainedModel  # the base with peft's layers in place
    config: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        state = self.policy.state_dict()
        return {
            f"base_model.model.{name.replace('.default', '')}": value for name, value in state.items() if "lora" in name
        }

    def expected(self) -> dict[str, str]:
        return adapter_checksums(self.tensors(), self.config, self.engine.dtype)

    def load(self, version: int) -> None:
        self.engine.load_adapter(self.tensors(), self.config, version)


def with_adapter(target: str | list[str] = "all-linear", rank: int = 4, alpha: float = 9.0) -> tuple[Any, dict]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(load_policy(SEED)[0], LoraConfig(r=rank, lora_alpha=alpha, target_modules=target)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model, model.peft_config["default"].to_dict()


@pytest.fixture(scope="module")
def adapted() -> Iterator[Adapted]:
    wrapped, config = with_adapter()
    engine = VLLMEngine(SEED, lora=Lora(lora_r=4, lora_alpha=9.0))
    yield Adapted(engine, wrapped.base_model.model, config)
    engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(SEED)
    yield engine
    engine.close()


@pytest.fixture
def policy() -> PreTrainedModel:
    """The seed model some steps later: every tensor is another one."""
    model = load_policy(SEED)[0]
    move(model, 0.02, seed=5)
    return model


@torch.no_grad()
def move(model: torch.nn.Module, size: float, *, seed: int, only: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def expected(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    return weight_checksums(model.state_dict(), dtype)


def own_logprobs(model: PreTrainedModel, completion: Completion) -> torch.Tensor:
    """What the trainer says of the tokens."""
    rollout = Rollout(completion.prompt_ids, completion.token_ids, (), (), "", "stop", 0)
    return score(model, [rollout]).logprobs[0].detach()


def gap(model: PreTrainedModel, completion: Completion) -> float:
    """Largest difference of the engine's log-probs from the trainer's, nats."""
    return (own_logprobs(model, completion) - torch.tensor(completion.logprobs)).abs().max().item()


def assert_same_greedy(engine: VLLMEngine, policy: PreTrainedModel) -> None:
    sampler = TransformersSampler(policy, load_policy(SEED)[1], share=True)
    wanted = [group.rollouts[0] for group in sampler.generate(PROMPTS, 1, seed=(0,), sampling=GREEDY)]
    found = engine.generate([rollout.prompt_ids for rollout in wanted], [0] * len(wanted), GREEDY)
    for rollout, completion in zip(wanted, found, strict=True):
        assert completion.token_ids == rollout.completion_ids
        assert completion.logprobs == pytest.approx(rollout.old_logprobs, abs=TOLERANCE)
        assert completion.finish_reason == rollout.finish_reason
    assert {rollout.finish_reason for rollout in wanted} == {"stop", "length"}


def test_greedy_completions_are_those_of_the_transformers_sampler(engine: VLLMEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(policy.state_dict(), 1)
    assert_same_greedy(engine, policy)


def test_greedy_completions_through_an_adapter_are_those_of_the_transformers_sampler(adapted: Adapted) -> None:
    adapted.load(1)
    assert_same_greedy(adapted.engine, adapted.policy)
    with torch.inference_mode():  # the adapter matters
        base = load_policy(SEED)[0]
        assert gap(base, adapted.engine.probe()) > 0.01 > TOLERANCE > gap(adapted.policy, adapted.engine.probe())


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Probabilities by definition: the fewest most likely tokens that together reach `top_p`, in double precision."""
    kept, total = torch.zeros_like(logits, dtype=torch.float64), 0.0
    for token in (probs := torch.softmax(logits.double() / temperature, -1)).argsort(descending=True).tolist():
        if total >= top_p:
            break
        kept[token] = probs[token]
        total += probs[token].item()
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.5, 0.9)])
def test_logprobs_are_those_of_the_distribution_drawn_from(
    engine: VLLMEngine, policy: PreTrainedModel, temperature: float, top_p: float
) -> None:
    engine.load_weights(policy.state_dict(), 1)
    sampling = Sampling(max_completion_length=12, temperature=temperature, top_p=top_p)
    for completion in engine.generate([[7, 20 + i] for i in range(6)], range(6), sampling):
        tokens = torch.tensor([completion.prompt_ids + completion.token_ids])
        with torch.inference_mode():
            logits = policy(tokens).logits[0, len(completion.prompt_ids) - 1 : -1]
        for row, token, logprob in zip(logits, completion.token_ids, completion.logprobs, strict=True):
            assert logprob == pytest.approx(nucleus(row, temperature, top_p)[token].log().item(), abs=TOLERANCE)


def test_tokens_come_as_often_as_the_distribution_says(engine: VLLMEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(policy.state_dict(), 1)
    with torch.inference_mode():
        probs = nucleus(policy(torch.tensor([[7, 20, 30]])).logits[0, -1], 1.3, 0.8)
    count = 3000
    drawn = engine.generate([[7, 20, 30]] * count, range(count), Sampling(1, temperature=1.3, top_p=0.8))
    shares = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=len(probs)) / count
    assert (probs > 0.02).sum() > 5
    standard_error = (probs * (1 - probs) / count).sqrt()
    assert (shares - probs).abs().le(5 * standard_error + 2 / count).all()
    assert not shares[probs == 0].any()


def test_a_completion_depends_on_its_own_seed_only(engine: VLLMEngine) -> None:
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    prompts = [[7, *range(30, 65), 20 + i % 9] for i in range(150)]  # more tokens than vLLM reads at once
    together = engine.generate(prompts, range(150), Sampling(16))
    for i in (0, 77, 149):
        assert engine.generate([prompts[i]], [i], Sampling(16))[0].token_ids == together[i].token_ids
    backwards = engine.generate(prompts[::-1], range(149, -1, -1), Sampling(16))[::-1]
    assert [c.token_ids for c in backwards] == [c.token_ids for c in together]
    others = engine.generate(prompts[:9] * 2, range(18), Sampling(16))
    assert sum(others[i].token_ids != others[i + 9].token_ids for i in range(9)) > 4


def test_an_end_token_ends_a_completion_and_belongs_to_it(engine: VLLMEngine) -> None:
    found = engine.generate([[7, 20 + i] for i in range(40)], range(40), Sampling(20))
    assert engine.end_token_ids == (1,)
    assert {c.finish_reason for c in found} == {"stop", "length"}
    for completion in found:
        assert len(completion.logprobs) == len(completion.token_ids)
        assert 1 not in completion.token_ids[:-1]
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 1)
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 20


def test_what_the_engine_holds_is_what_was_sent(engine: VLLMEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(policy.state_dict(), 1)
    assert engine.checksums() == expected(policy)
    assert len(engine.checksums()) == 29  # the output layer is tied to the embedding
    move(policy, 1e-7, seed=1, only="layers.2.mlp.up_proj")
    assert differing(expected(policy), engine.checksums()) == ["model.layers.2.mlp.up_proj.weight"]


def test_after_a_sync_the_probe_reads_its_prompt_anew(engine: VLLMEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    before = engine.probe()
    assert engine.probe().num_cached_tokens == engine.block_size
    assert engine.probe() == engine.probe()
    engine.load_weights(policy.state_dict(), 1)
    after = engine.probe()
    assert after.num_cached_tokens == 0
    assert gap(policy, after) < TOLERANCE < 0.01 < gap(policy, before)


# Faults of a sync of all weights: each is injected where vLLM is called, and must show.


def on_call(monkeypatch: pytest.MonkeyPatch, engine: VLLMEngine, change: Callable[[dict], dict]) -> None:
    """Weights on their way into vLLM are `change`d."""
    rpc = engine.llm.collective_rpc

    def changed(method: Any, *arguments: Any, **named: Any) -> Any:
        if method == "reload_weights":
            weights = change(dict(named["kwargs"]["weights_iterator"]))
            named["kwargs"] = {"weights_iterator": iter(weights.items())}
        return rpc(method, *arguments, **named)

    monkeypatch.setattr(engine.llm, "collective_rpc", changed)


def test_a_dropped_sync_shows(engine: VLLMEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "collective_rpc", lambda *arguments, **named: [None])
        engine.load_weights(policy.state_dict(), 1)
    assert engine.checksums() == expected(load_policy(SEED)[0])
    assert differing(expected(policy), engine.checksums()) == sorted(expected(policy))
    assert gap(policy, engine.probe()) > 0.01


@pytest.mark.parametrize("name", ["layers.1.self_attn.k_proj", "layers.0.mlp.down_proj", "model.norm", "embed_tokens"])
def test_one_tensor_that_was_not_copied_shows(
    engine: VLLMEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    with monkeypatch.context() as patch:
        on_call(patch, engine, lambda weights: {key: value for key, value in weights.items() if name not in key})
        engine.load_weights(policy.state_dict(), 1)
    assert differing(expected(policy), engine.checksums()) == [key for key in expected(policy) if name in key]


def test_rounding_on_the_way_shows(
    engine: VLLMEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        on_call(patch, engine, lambda weights: {key: value.bfloat16().float() for key, value in weights.items()})
        engine.load_weights(policy.state_dict(), 1)
    assert differing(expected(policy), engine.checksums()) == sorted(expected(policy))


def test_an_output_layer_left_behind_by_the_embedding_it_is_tied_to_shows(
    engine: VLLMEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM 0.32 does on a CPU by itself: the output layer goes on computing with its packed copy."""
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "repack_in_worker", lambda worker: None)
        engine.load_weights(policy.state_dict(), 1)
    assert differing(expected(policy), engine.checksums()) == ["lm_head.weight as computed with"]
    assert gap(policy, engine.probe()) > 0.01
    engine.load_weights(policy.state_dict(), 2)
    assert engine.checksums() == expected(policy)


def test_a_prefix_cache_that_was_not_dropped_shows(
    engine: VLLMEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load_weights(load_policy(SEED)[0].state_dict(), 0)
    engine.probe()
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
        engine.load_weights(policy.state_dict(), 1)
    assert engine.checksums() == expected(policy)  # the weights did arrive
    stale = engine.probe()
    assert stale.num_cached_tokens == engine.block_size
    assert gap(policy, stale) > 0.001
    assert engine.reset_prefix_cache()
    assert gap(policy, engine.probe()) < TOLERANCE


# Faults of a sync of an adapter.


def test_an_adapter_in_the_engine_is_the_one_that_was_sent(adapted: Adapted) -> None:
    for version in (1, 2, 2):  # a version may come again, after a run was resumed
        move(adapted.policy, 0.01, seed=version, only="lora")
        adapted.load(version)
        assert adapted.engine.checksums() == adapted.expected()
        assert len(adapted.expected()) == 2 * 7 * 3  # A and B of 7 layers in each of 3 blocks
        assert adapted.engine.probe().num_cached_tokens == 0
        assert gap(adapted.policy, adapted.engine.probe()) < TOLERANCE
    assert adapted.engine.base_checksums() == expected(load_policy(SEED)[0])


def test_nothing_of_a_larger_adapter_stays_behind(adapted: Adapted) -> None:
    adapted.load(1)
    wrapped, config = with_adapter(["q_proj", "down_proj"], rank=2)
    smaller = Adapted(adapted.engine, wrapped.base_model.model, config)
    smaller.load(2)
    assert adapted.engine.checksums() == smaller.expected()
    assert len(smaller.expected()) == 2 * 2 * 3
    assert gap(smaller.policy, adapted.engine.probe()) < TOLERANCE


def test_a_new_adapter_changes_nothing_and_its_zeros_are_no_difference(adapted: Adapted) -> None:
    for name, parameter in adapted.policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    adapted.load(0)
    assert adapted.engine.checksums() == adapted.expected()
    assert gap(load_policy(SEED)[0], adapted.engine.probe()) < TOLERANCE
    move(adapted.policy, 0.05, seed=9, only="lora_B")  # for the next test


def saved(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict], dict]) -> None:
    """The adapter's tensors on their way into vLLM are `change`d."""
    monkeypatch.setattr(module, "save_file", lambda tensors, path: save_file(change(tensors), path))


def test_an_adapter_of_an_older_version_shows(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: tensor.clone() for name, tensor in adapted.tensors().items()}
    move(adapted.policy, 1e-4, seed=2, only="lora")
    with monkeypatch.context() as patch:
        saved(patch, lambda tensors: old)
        adapted.load(3)
    assert differing(adapted.expected(), adapted.engine.checksums()) == sorted(adapted.expected())


def test_the_base_instead_of_the_adapter_shows(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        saved(patch, lambda tensors: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
        adapted.load(4)
    assert adapted.engine.checksums() == {}
    assert gap(adapted.policy, adapted.engine.probe()) > 0.01
    adapted.load(5)
    generate = adapted.engine.llm.generate
    with monkeypatch.context() as patch:
        patch.setattr(
            adapted.engine.llm, "generate", lambda *a, **named: generate(*a, **(named | {"lora_request": None}))
        )
        assert gap(adapted.policy, adapted.engine.probe()) > 0.01  # the right adapter, which no request goes through
    assert gap(adapted.policy, adapted.engine.probe()) < TOLERANCE


def test_one_tensor_of_an_adapter_that_was_not_copied_shows(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    with monkeypatch.context() as patch:
        saved(patch, lambda tensors: tensors | {name: torch.zeros_like(tensors[name])})
        adapted.load(6)
    assert differing(adapted.expected(), adapted.engine.checksums()) == [name]


def test_rounding_of_an_adapter_on_the_way_shows(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        saved(patch, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
        adapted.load(7)
    assert differing(adapted.expected(), adapted.engine.checksums()) == sorted(adapted.expected())


def test_a_dropped_adapter_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, config = with_adapter()
    adapted = Adapted(VLLMEngine(SEED, lora=Lora(lora_r=4, lora_alpha=9.0)), wrapped.base_model.model, config)
    with pytest.raises(RuntimeError, match="nothing can be sampled: no adapter was loaded yet"):
        adapted.engine.generate([[7]], [0], GREEDY)
    assert adapted.engine.checksums() == {}
    monkeypatch.setattr(adapted.engine.llm.llm_engine, "add_lora", lambda request: True)
    with pytest.raises(SamplerDied, match=r"loading adapter policy-v1 raised .* expected adapter 1 alone .* found"):
        adapted.load(1)
    adapted.engine.close()


# Models of other shapes.


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma3Text", "Phi3"])
def test_other_architectures_are_read_back_and_agree(architecture: str, tmp_path: Path) -> None:
    """With unequal numbers of heads, and tokens that the tokenizer does not have."""
    folder = tiny_model(tmp_path, architecture)
    policy = AutoModelForCausalLM.from_pretrained(folder).eval()
    engine = VLLMEngine(str(folder), end_token_ids=[1])
    assert engine.checksums() == expected(policy)
    move(policy, 0.05, seed=1)
    engine.load_weights(policy.state_dict(), 1)
    assert engine.checksums() == expected(policy)
    probe = engine.probe()
    assert gap(policy, probe) < TOLERANCE
    prompts = [[3 + i, 700 + i, 799] for i in range(8)]
    drawn = engine.generate(prompts, range(8), Sampling(max_completion_length=20, temperature=2.0))
    assert max(token for completion in drawn for token in completion.token_ids) >= 750
    for completion in engine.generate(prompts, range(8), Sampling(20)):
        assert gap(policy, completion) < TOLERANCE
    engine.close()


def test_an_engine_in_bfloat16_holds_the_policy_rounded(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "Qwen3")
    policy = AutoModelForCausalLM.from_pretrained(folder).eval()
    engine = VLLMEngine(str(folder), dtype=torch.bfloat16)
    move(policy, 0.05, seed=1)
    engine.load_weights(policy.state_dict(), 1)
    assert engine.checksums() == expected(policy, torch.bfloat16)
    assert engine.checksums() != expected(policy)
    engine.close()


# Death, bad input, and what an engine leaves as it was.


def failing(engine: VLLMEngine, error: BaseException) -> None:
    """The model raises from now on, as it does when memory runs out."""

    def patch(worker: Any) -> None:
        def forward(*arguments: Any, **named: Any) -> None:
            raise error

        worker.model_runner.get_model().forward = forward

    engine.llm.collective_rpc(patch)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_engine_that_failed_says_so_from_then_on(error: BaseException) -> None:
    engine = VLLMEngine(SEED)
    failing(engine, error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SamplerDied) as caught:
        engine.generate([[7, 8]], [0], GREEDY)
    what = "generating 1 completions"
    said = f"{what} was interrupted" if caught.type is KeyboardInterrupt else f"{what} raised RuntimeError: out of mem"
    for call in (engine.checksums, engine.probe, lambda: engine.load_weights({}, 1)):
        with pytest.raises(SamplerDied, match=f"cannot go on: {said}.*Make a new sampler, or resume the run"):
            call()
    engine.close()


def test_closing_frees_the_model_and_leaves_other_engines_alone(engine: VLLMEngine) -> None:
    other = VLLMEngine(SEED)
    model = weakref.ref(other.llm.collective_rpc(lambda worker: worker.model_runner.get_model())[0])
    assert model() is not None
    other.close()
    assert model() is None
    with pytest.raises(SamplerDied, match="it was closed"):
        other.probe()
    other.close()
    other = VLLMEngine(SEED)
    model = weakref.ref(other.llm.collective_rpc(lambda worker: worker.model_runner.get_model())[0])
    del other  # as a cell does that is run again
    gc.collect()
    assert model() is None
    assert engine.probe().token_ids


def test_weights_of_another_shape_end_the_engine() -> None:
    engine = VLLMEngine(SEED)
    with pytest.raises(SamplerDied, match="loading the weights of version 3 raised"):
        engine.load_weights({"model.norm.weight": torch.zeros(5)}, 3)
    engine.close()


def test_requests_still_running_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams

    engine = VLLMEngine(SEED)
    engine.llm.llm_engine.add_request("1", {"prompt_token_ids": [7, 8, 9]}, SamplingParams(max_tokens=9))
    engine.llm.llm_engine.step()
    with pytest.raises(SamplerDied, match="cached keys and values of old weights could not be dropped"):
        engine.load_weights(load_policy(SEED)[0].state_dict(), 1)
    engine.close()


def test_threads_and_random_states_are_left_as_they_were() -> None:
    torch.manual_seed(1)
    states = torch.get_rng_state(), torch.get_num_threads()
    VLLMEngine(SEED, seed=7).close()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.get_num_threads() == states[1]
    torch.set_num_threads(2)  # which vLLM switches off
    assert torch.get_num_threads() == 2
    own = random.getstate()
    with unchanged():
        random.seed(7)  # as vLLM does
    assert random.getstate() == own


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": Lora(lora_r=513)}, "expected lora_r of at most 512, the largest rank that vLLM takes, got 513"),
        ({"sleep_mode": True}, "none on a CPU: leave it off"),
        ({"quantization": "int8"}, "cannot quantize a model to int8"),
        ({"quantization": "nf4"}, "in nf4 on a GPU only"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(changes: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VLLMEngine("no/such/model", **changes)


def test_what_keeps_vllm_from_starting_is_named() -> None:
    with pytest.raises(
        SamplerDied, match=rf"(?s)vLLM could not start with {SEED}: .*4096.*Sample with transformers if"
    ):
        VLLMEngine(SEED, max_model_len=4096)  # of a model that was made for 512


def test_a_model_that_vllm_cannot_run_fails_in_its_first_probe(tiny_folder: Path) -> None:
    """Its attention on a CPU needs heads of 32 numbers; these have 8."""
    engine = VLLMEngine(str(tiny_folder))
    with pytest.raises(SamplerDied, match=r"generating 1 completions raised RuntimeError: .*head_dim=8"):
        engine.probe()
    engine.close()


def test_an_engine_in_another_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ValueError, match=r"expected VLLM_ENABLE_V1_MULTIPROCESSING=0, .* got '1': unset it"):
        VLLMEngine(SEED)


def test_ranks_are_those_of_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert set(get_args(MaxLoRARanks)) == {1, *LORA_RANKS}


@pytest.mark.parametrize(
    ("prompts", "seeds", "sampling", "reason"),
    [
        ([[7]], [0, 1], Sampling(), "one seed a prompt, came 1 prompts and 2 seeds"),
        ([[7]], [-1], Sampling(), "seeds from 0"),
        ([[7], []], [0, 1], Sampling(), "prompts of 1 to 464 tokens .*came one of 0 at 1"),
        ([[7] * 465], [0], Sampling(), "came one of 465 at 0: shorten it"),
        ([[730]], [0], Sampling(), r"token ids below 730, the model's vocabulary, came \[730\]"),
        ([[7]], [0], Sampling(temperature=0.005), "temperature of 0 or from 0.01 to 2.0, which vLLM takes, got 0.005"),
        ([[7]], [0], Sampling(temperature=2.1), "got 2.1"),
    ],
)
def test_requests_that_vllm_cannot_serve_are_refused_and_the_engine_lives(
    engine: VLLMEngine, prompts: list[list[int]], seeds: list[int], sampling: Sampling, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        engine.generate(prompts, seeds, sampling)
    assert len(engine.generate([[7] * 464], [2**63 - 1], Sampling(temperature=2.0))) == 1


def test_weights_and_adapters_go_to_engines_made_for_them(engine: VLLMEngine, adapted: Adapted) -> None:
    with pytest.raises(ValueError, match="expected all weights, because the engine was made with lora=None"):
        engine.load_adapter({}, adapted.config, 1)
    with pytest.raises(ValueError, match="expected an adapter, because the engine was made with lora"):
        adapted.engine.load_weights({}, 1)
    with pytest.raises(ValueError, match="rank at most 8, came one of 9"):
        adapted.engine.load_adapter({}, adapted.config | {"r": 9}, 1)
    with pytest.raises(ValueError, match=r"expected a plain LoRA adapter, .* came one with use_dora"):
        adapted.engine.load_adapter({}, adapted.config | {"use_dora": True}, 1)
    for call in (engine.sleep, engine.wake):
        with pytest.raises(RuntimeError, match="made with sleep_mode=True"):
            call()
