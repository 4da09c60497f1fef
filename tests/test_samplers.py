"""The sampler draws from the policy it was given, whole and independent of the batch, and proves what it holds."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TopPLogitsWarper

from kit.config import Sampling
from kit.models.policy import load_policy
from kit.models.tokenizer import build_tokenizer
from kit.models.weights import copy_weights, digest, weights_of
from kit.samplers import SyncError, TransformersSampler
from kit.samplers.checksum import summary, weight_checksums
from kit.samplers.prompts import prompt_ids
from kit.samplers.transformers import draw
from kit.tasks import Arithmetic
from kit.types import Group, Prompt, Rollout
from tests.conftest import ARCHITECTURES, tiny_architecture

LENGTHS = (1, 9, 4, 30, 2)
LAST_BEFORE_ONE = 1 - 2**-24  # the largest number that torch.rand returns


def prompts_of(lengths: Sequence[int] = LENGTHS) -> list[Prompt]:
    """One prompt of each length in tokens."""
    return [Prompt(f"p{i}", ("47+3" * 9)[:length], {}) for i, length in enumerate(lengths)]


@pytest.fixture
def tiny(tiny_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_policy(str(tiny_folder))


@pytest.fixture
def sampler(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> TransformersSampler:
    return TransformersSampler(*tiny)


def move(model: PreTrainedModel, scale: float = 1.2) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)


def constant_model(logits: Sequence[float]) -> PreTrainedModel:
    """A model whose next token has these logits, whatever came before: attention and layers add nothing."""
    config = LlamaConfig(
        vocab_size=len(logits), hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.norm.weight.fill_(1.0)  # turns (1, 0, 0, 0) into (2, 0, 0, 0): its root mean square is 1/2
        model.lm_head.weight[:, 0] = torch.tensor(logits) / 2
    model.generation_config.eos_token_id = 1  # pyright: ignore[reportOptionalMemberAccess]
    return model


def ids_of(groups: Sequence[Group]) -> dict[str, list[tuple[int, ...]]]:
    return {group.prompt.id: [rollout.completion_ids for rollout in group.rollouts] for group in groups}


def distribution(logits: torch.Tensor, temperature: float, top_p: float) -> list[float]:
    """Softmax, then the smallest set of most likely tokens that reaches `top_p`, renormalised; in plain Python."""
    weights = [math.exp(logit / temperature) for logit in logits.double().tolist()]
    probabilities = [weight / sum(weights) for weight in weights]
    kept, total = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= top_p:
            break
        kept.add(token)
        total += probabilities[token]
    return [p / total if token in kept else 0.0 for token, p in enumerate(probabilities)]


@torch.no_grad()
def plain_scores(
    model: PreTrainedModel, rollout: Rollout, temperature: float, top_p: float
) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of a rollout's tokens from one forward pass over prompt and completion."""
    logits = model(input_ids=torch.tensor([rollout.prompt_ids + rollout.completion_ids]), use_cache=False).logits[0]
    logprobs, entropies = [], []
    for token, row in zip(rollout.completion_ids, logits[len(rollout.prompt_ids) - 1 : -1], strict=True):
        probabilities = distribution(row, temperature, top_p)
        logprobs.append(math.log(probabilities[token]))
        entropies.append(-sum(p * math.log(p) for p in probabilities if p))
    return logprobs, entropies


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (0.7, 0.9)])
@pytest.mark.parametrize("lengths", [LENGTHS, (7, 7, 7)], ids=["padded", "equal"])
def test_logprobs_and_entropies_agree_with_a_separate_forward_pass(
    sampler: TransformersSampler, lengths: tuple[int, ...], temperature: float, top_p: float
) -> None:
    sampling = Sampling(max_completion_length=12, temperature=temperature, top_p=top_p)
    for group in sampler.generate(prompts_of(lengths), 3, seed=(0, 1), sampling=sampling):
        for rollout in group.rollouts:
            logprobs, entropies = plain_scores(sampler.weights.model, rollout, temperature, top_p)
            assert rollout.old_logprobs == pytest.approx(logprobs, abs=1e-4)
            assert rollout.entropies == pytest.approx(entropies, abs=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_of_other_architectures_agree_with_a_separate_forward_pass(name: str) -> None:
    sampler = TransformersSampler(tiny_architecture(name), build_tokenizer(), share=True)
    for group in sampler.generate(prompts_of(), 2, seed=(0,), sampling=Sampling(max_completion_length=9)):
        for rollout in group.rollouts:
            logprobs, _ = plain_scores(sampler.weights.model, rollout, 1.0, 1.0)
            assert rollout.old_logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_logprobs_of_the_seed_model_agree_with_a_separate_forward_pass(
    seed_folder: Path, temperature: float, top_p: float
) -> None:
    sampler = TransformersSampler(*load_policy(str(seed_folder)), share=True)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    prompts = [Prompt(text, [{"role": "user", "content": text}], {}) for text in ("25+39-15=", "7+5=", "99-12+34-56=")]
    for group in sampler.generate(prompts, 4, seed=(0,), sampling=sampling):
        for rollout in group.rollouts:
            logprobs, entropies = plain_scores(sampler.weights.model, rollout, temperature, top_p)
            assert rollout.old_logprobs == pytest.approx(logprobs, abs=1e-4)
            assert rollout.entropies == pytest.approx(entropies, abs=1e-4)


def test_greedy_output_equals_generate_on_200_prompts(seed_folder: Path) -> None:
    policy, tokenizer = load_policy(str(seed_folder))
    problems = [*islice(Arithmetic().problems(), 150), *islice(Arithmetic(terms=5).problems(), 50)]
    prompts = [Prompt(text, [{"role": "user", "content": f"{text}="}], {}) for text, _ in problems]
    sampling = Sampling(temperature=0.0, max_completion_length=22)
    found = TransformersSampler(policy, tokenizer, share=True).generate(prompts, 1, seed=(0,), sampling=sampling)
    encoded = tokenizer.apply_chat_template(
        [prompt.content for prompt in prompts], add_generation_prompt=True, return_dict=True, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    expected = policy.generate(**encoded, do_sample=False, max_new_tokens=22)[:, encoded["input_ids"].shape[1] :]
    for group, row in zip(found, expected.tolist(), strict=True):
        until = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        assert list(group.rollouts[0].completion_ids) == row[:until]
    assert len({group.rollouts[0].finish_reason for group in found}) == 2  # both ways to end were compared


def test_tokens_outside_the_top_50_come_as_often_as_their_probability_says() -> None:
    logits = [2 * token / 267 for token in range(267)]
    logits[1] = -1e4  # no completion ends early
    sampler = TransformersSampler(constant_model(logits), build_tokenizer([r"\boxed{"]))
    groups = sampler.generate(prompts_of((3, 1)), 2000, seed=(0,), sampling=Sampling(max_completion_length=5))
    drawn = Counter(token for group in groups for rollout in group.rollouts for token in rollout.completion_ids)
    assert drawn.total() == 20_000
    probabilities = distribution(torch.tensor(logits), 1.0, 1.0)
    tail = sum(sorted(probabilities)[:-50])
    in_tail = sum(count for token, count in drawn.items() if token < 267 - 50)
    assert 0.6 < tail < 0.8
    assert abs(in_tail / 20_000 - tail) <= 5 * math.sqrt(tail * (1 - tail) / 20_000)


def test_generate_of_transformers_would_cut_to_the_top_50() -> None:
    logits = [2 * token / 267 for token in range(267)]
    torch.manual_seed(0)
    with torch.inference_mode():
        drawn = constant_model(logits).generate(
            torch.full((2000, 1), 3), attention_mask=torch.ones(2000, 1), do_sample=True, max_new_tokens=1
        )
    assert set(drawn[:, 1].tolist()) == set(range(267 - 50, 267))


@pytest.mark.parametrize("size", [3, 267])
def test_frequencies_of_draws_match_their_probabilities(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator) * 1.5
    count = 200_000
    token, _, _ = draw(logits.expand(count, -1), torch.rand(count, generator=generator), Sampling())
    drawn = torch.bincount(token, minlength=size).double() / count
    p = torch.tensor(distribution(logits, 1.0, 1.0), dtype=torch.float64)
    assert bool(((drawn - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all())
    chi_squared = (count * (drawn - p) ** 2 / p).sum().item()  # mean size - 1, variance 2 (size - 1)
    assert abs(chi_squared - (size - 1)) <= 5 * math.sqrt(2 * (size - 1))


def test_uniform_logits_give_every_token_of_the_vocabulary_its_share() -> None:
    uniform = torch.arange(267 * 40) / (267 * 40)  # evenly spaced: every token must come 40 times, but for rounding
    token, logprob, entropy = draw(torch.zeros(267 * 40, 267), uniform, Sampling())
    counts = torch.bincount(token, minlength=267)
    assert int(counts.min()) >= 39 and int(counts.max()) <= 41
    assert logprob[0].item() == pytest.approx(-math.log(267), abs=1e-5)
    assert entropy[0].item() == pytest.approx(math.log(267), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, LAST_BEFORE_ONE])
def test_the_ends_of_the_unit_interval_never_pick_a_token_of_probability_zero(uniform: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 50, generator=generator) * 3
    logits[:, [0, 1, 20, 48, 49]] = -torch.inf
    token, logprob, _ = draw(logits, torch.full((4000,), uniform), Sampling())
    assert bool(logits.gather(1, token[:, None]).isfinite().all())
    assert bool(logprob.isfinite().all())


@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST_BEFORE_ONE])
def test_top_p_never_picks_a_token_that_it_dropped(uniform: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 50, generator=generator) * 3
    token, logprob, _ = draw(logits, torch.full((4000,), uniform), Sampling(top_p=0.8))
    kept = TopPLogitsWarper(0.8)(None, logits).isfinite()  # pyright: ignore[reportArgumentType]
    assert bool(kept.gather(1, token[:, None]).all())
    assert bool(logprob.isfinite().all())


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),  # of probabilities 1/2, 3/10, 1/5
    [
        (1.0, 1.0, [0.5, 0.3, 0.2]),
        (0.5, 1.0, [25 / 38, 9 / 38, 4 / 38]),  # squares: 25, 9 and 4 hundredths
        (1.0, 0.7, [5 / 8, 3 / 8, 0.0]),  # 0.5 does not reach 0.7, 0.8 does
        (1.0, 0.45, [1.0, 0.0, 0.0]),  # the first token reaches it alone
        (1.0, 1e-9, [1.0, 0.0, 0.0]),  # and always stays
        (0.5, 0.7, [25 / 34, 9 / 34, 0.0]),  # 25/38 = .66 does not reach 0.7
    ],
)
def test_distribution_of_a_draw_by_hand(temperature: float, top_p: float, expected: list[float]) -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    uniform = (torch.arange(1000) + 0.5) / 1000
    sampling = Sampling(temperature=temperature, top_p=top_p)
    token, logprob, entropy = draw(logits.expand(1000, -1), uniform, sampling)
    assert (torch.bincount(token, minlength=3) / 1000).tolist() == pytest.approx(expected, abs=1.1e-3)
    assert logprob.exp().tolist() == pytest.approx([expected[t] for t in token.tolist()], abs=1e-6)
    assert entropy[0].item() == pytest.approx(-sum(p * math.log(p) for p in expected if p), abs=1e-6)


def test_a_greedy_draw_takes_the_most_likely_token_and_reports_the_untempered_distribution() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    for uniform in (0.0, 0.6, LAST_BEFORE_ONE):
        token, logprob, entropy = draw(logits, torch.tensor([uniform]), Sampling(temperature=0.0))
        assert token.item() == 1
        assert logprob.item() == pytest.approx(math.log(0.5), abs=1e-6)
        assert entropy.item() == pytest.approx(1.029653, abs=1e-6)  # .2 ln 5 + .5 ln 2 + .3 ln(10/3)


def test_a_completion_does_not_depend_on_the_other_prompts_of_the_batch(sampler: TransformersSampler) -> None:
    prompts, sampling = prompts_of(), Sampling(max_completion_length=12)
    together = ids_of(sampler.generate(prompts, 3, seed=(5, 2), sampling=sampling))
    for subset in ([prompts[3]], [prompts[0]], [prompts[4], prompts[1]], prompts[::-1]):
        alone = ids_of(sampler.generate(subset, 3, seed=(5, 2), sampling=sampling))
        assert alone == {prompt.id: together[prompt.id] for prompt in subset}


def test_a_larger_group_begins_with_the_smaller_one(sampler: TransformersSampler) -> None:
    prompts, sampling = prompts_of(), Sampling(max_completion_length=12)
    small, large = (ids_of(sampler.generate(prompts, size, seed=(5,), sampling=sampling)) for size in (2, 5))
    assert small == {name: rows[:2] for name, rows in large.items()}


def test_seed_step_prompt_and_place_in_the_group_give_different_completions(sampler: TransformersSampler) -> None:
    prompts = [Prompt("a", "1+1", {}), Prompt("b", "1+1", {})]
    sampling = Sampling(max_completion_length=12)
    found = [
        completion
        for seed in ((0, 0), (0, 1), (1, 0), (0, 0, 1))
        for completions in ids_of(sampler.generate(prompts, 3, seed=seed, sampling=sampling)).values()
        for completion in completions
    ]
    assert len(set(found)) == len(found) == 24


def test_the_same_seed_gives_the_same_rollouts_whatever_torch_drew_meanwhile(sampler: TransformersSampler) -> None:
    sampling = Sampling(max_completion_length=12)
    first = sampler.generate(prompts_of(), 2, seed=(0, 4), sampling=sampling)
    torch.manual_seed(123)
    assert sampler.generate(prompts_of(), 2, seed=(0, 4), sampling=sampling) == first


def test_a_completion_ends_with_its_end_token_or_at_the_limit() -> None:
    logits = [0.0] * 261
    logits[1] = math.log(0.3 / 0.7 * 260)  # the end has probability .3
    sampler = TransformersSampler(constant_model(logits), build_tokenizer())
    groups = sampler.generate(prompts_of((2, 5)), 1000, seed=(0,), sampling=Sampling(max_completion_length=6))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for rollout in rollouts:
        assert 1 <= len(rollout.completion_ids) <= 6
        assert len(rollout.old_logprobs) == len(rollout.entropies) == len(rollout.completion_ids)
        assert 1 not in rollout.completion_ids[:-1]
        assert rollout.finish_reason == ("stop" if rollout.completion_ids[-1] == 1 else "length")
        assert rollout.finish_reason == "stop" or len(rollout.completion_ids) == 6
    lengths = Counter(len(rollout.completion_ids) for rollout in rollouts)
    for length in range(1, 6):  # geometric: the end comes after length - 1 other tokens
        p = 0.3 * 0.7 ** (length - 1)
        assert abs(lengths[length] / 2000 - p) <= 5 * math.sqrt(p * (1 - p) / 2000)


def test_every_end_token_of_the_model_ends_a_completion() -> None:
    model = constant_model([5.0 if token in (1, 30) else 0.0 for token in range(261)])
    model.generation_config.eos_token_id = [1, 30]  # pyright: ignore[reportOptionalMemberAccess]
    groups = TransformersSampler(model, build_tokenizer()).generate(
        prompts_of((2,)), 200, seed=(0,), sampling=Sampling(max_completion_length=9)
    )
    stopped = [r for r in groups[0].rollouts if r.finish_reason == "stop"]
    assert {r.completion_ids[-1] for r in stopped} == {1, 30}
    assert not any({1, 30} & set(r.completion_ids[:-1]) for r in groups[0].rollouts)


@pytest.mark.parametrize("limit", [1, 3])
def test_max_completion_length_cuts(sampler: TransformersSampler, limit: int) -> None:
    groups = sampler.generate(prompts_of(), 4, seed=(0,), sampling=Sampling(max_completion_length=limit))
    assert {len(r.completion_ids) for group in groups for r in group.rollouts} == {limit}
    assert {r.finish_reason for group in groups for r in group.rollouts} == {"length"}


def test_a_longer_limit_continues_the_same_completions() -> None:
    # Not promised between runs, but a cut completion must be a prefix of what greedy decoding goes on to write.
    model = constant_model([float(token) for token in range(261)])
    sampler = TransformersSampler(model, build_tokenizer())
    greedy = [Sampling(max_completion_length=n, temperature=0.0) for n in (2, 5)]
    short, long = (sampler.generate(prompts_of((3,)), 1, seed=(0,), sampling=s)[0].rollouts[0] for s in greedy)
    assert long.completion_ids[:2] == short.completion_ids == (260, 260)


def test_text_is_the_decoded_completion_without_markers() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("7")["input_ids"]
    sampler = TransformersSampler(constant_model([50.0 if token in ids else 0.0 for token in range(261)]), tokenizer)
    rollout = sampler.generate(prompts_of((1,)), 1, seed=(0,), sampling=Sampling(max_completion_length=3))[0].rollouts[
        0
    ]
    assert (rollout.completion_ids, rollout.text) == ((27, 27, 27), "777")
    sampler = TransformersSampler(constant_model([50.0 if token == 1 else 0.0 for token in range(261)]), tokenizer)
    rollout = sampler.generate(prompts_of((1,)), 1, seed=(0,), sampling=Sampling())[0].rollouts[0]
    assert (rollout.completion_ids, rollout.text, rollout.finish_reason) == ((1,), "", "stop")


def test_chat_prompts_go_through_the_template_and_strings_as_they_are(sampler: TransformersSampler) -> None:
    chat = Prompt("a", [{"role": "user", "content": "1+2="}], {})
    assert prompt_ids(sampler.tokenizer, chat) == [3, 21, 15, 22, 33, 1, 4]
    assert prompt_ids(sampler.tokenizer, Prompt("b", "1+2=", {})) == [21, 15, 22, 33]


def test_a_prompt_too_long_for_the_context_is_refused_naming_it(sampler: TransformersSampler) -> None:
    prompts = [Prompt("short", "1", {}), Prompt("the long one", "1" * 60, {}), Prompt("p", "22", {})]
    sampler.check_lengths(prompts, Sampling(max_completion_length=4))  # 60 + 4 = 64 fits
    with pytest.raises(
        ValueError, match=r"'the long one' .*\b60 tokens.*max_completion_length=5\b.*context of 64 tokens"
    ):
        sampler.check_lengths(prompts, Sampling(max_completion_length=5))


def test_a_prompt_without_tokens_is_refused_naming_it(sampler: TransformersSampler) -> None:
    with pytest.raises(ValueError, match="the empty one"):
        sampler.check_lengths([Prompt("a", "1", {}), Prompt("the empty one", "", {})], Sampling())


def test_without_sync_the_sampler_does_not_follow_the_policy(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler
) -> None:
    sampling = Sampling(max_completion_length=12)
    before = sampler.generate(prompts_of(), 2, seed=(0,), sampling=sampling)
    move(tiny[0])
    assert sampler.generate(prompts_of(), 2, seed=(0,), sampling=sampling) == before
    assert {rollout.version for group in before for rollout in group.rollouts} == {0}


def test_sync_makes_the_sampler_generate_as_the_policy_does(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler
) -> None:
    sampling = Sampling(max_completion_length=12)
    before = sampler.generate(prompts_of(), 2, seed=(0,), sampling=sampling)
    move(tiny[0])
    sampler.sync(tiny[0], 7, step=7)
    after = sampler.generate(prompts_of(), 2, seed=(0,), sampling=sampling)
    fresh = TransformersSampler(tiny[0], tiny[1]).generate(prompts_of(), 2, seed=(0,), sampling=sampling)
    assert ids_of(after) == ids_of(fresh) != ids_of(before)
    assert {rollout.version for group in after for rollout in group.rollouts} == {7}
    assert digest(sampler.weights.tensors()) == digest(weights_of(tiny[0]))


def test_a_sampler_that_shares_the_policy_follows_it_without_sync(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    sampling = Sampling(max_completion_length=12)
    fresh = TransformersSampler(*tiny, share=True)
    before = fresh.generate(prompts_of(), 2, seed=(0,), sampling=sampling)
    move(tiny[0])
    assert ids_of(fresh.generate(prompts_of(), 2, seed=(0,), sampling=sampling)) != ids_of(before)


def test_receipt_of_a_sync_says_what_it_did(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler
) -> None:
    policy = tiny[0]
    with torch.no_grad():
        policy.get_parameter("model.layers.1.mlp.down_proj.weight").add_(0.25)  # 32 x 48 numbers
    receipt = sampler.sync(policy, 3, step=5)
    assert (receipt.step, receipt.version, receipt.tensors) == (5, 3, len(policy.state_dict()))
    assert receipt.delta_norm == pytest.approx(0.25 * math.sqrt(32 * 48), rel=1e-6)
    assert receipt.digest == receipt.sampler_digest == summary(weight_checksums(weights_of(policy)))
    assert receipt.probe_parity <= 1e-4 < receipt.probe_moved
    assert receipt.seconds > 0
    again = sampler.sync(policy, 4, step=6)
    assert (again.delta_norm, again.probe_moved, again.version) == (0.0, 0.0, 4)


def test_a_sync_that_loses_a_tensor_fails(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> tuple[int, float]:
        kept = target["model.layers.1.mlp.up_proj.weight"].clone()
        copied = copy_weights(source, target)
        target["model.layers.1.mlp.up_proj.weight"].copy_(kept)
        return copied

    monkeypatch.setattr("kit.samplers.transformers.copy_weights", faulty)
    move(tiny[0])
    with pytest.raises(SyncError, match=r"before step 9 .*policy's weights hash to \w+, the sampler's to \w+"):
        sampler.sync(tiny[0], 9, step=9)


def test_a_sampler_that_computes_with_something_else_fails(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler
) -> None:
    # The right weights, but a layer whose output an engine would have cached or fused wrongly.
    layer = sampler.weights.model.get_submodule("model.layers.0.mlp")
    layer.register_forward_hook(lambda module, inputs, output: output * 1.01)
    move(tiny[0])
    with pytest.raises(SyncError, match=r"log-probs on the probe differ by .* nats, allowed are 1e-04"):
        sampler.sync(tiny[0], 1, step=1)


def test_a_policy_with_not_a_number_in_its_weights_cannot_be_synced(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampler: TransformersSampler
) -> None:
    with torch.no_grad():
        tiny[0].get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = torch.nan
    with pytest.raises(SyncError, match="nan nats"):
        sampler.sync(tiny[0], 1, step=1)
