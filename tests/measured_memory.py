"""Real runs of the kit on a small model, and the memory they take, measured from outside by torch's profiler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from kit.config import RunConfig, Sampling
from kit.learner import Learner
from kit.logprobs import token_logprobs
from kit.models.policy import output_weight
from kit.models.tokenizer import build_tokenizer
from kit.objectives import Objective
from kit.reference import Reference
from kit.samplers import TransformersSampler
from kit.sync import Never
from kit.types import Example, Group, Prompt, Rollout, TokenScores, Totals

PROMPT_LENGTH = 48
# 34 million parameters: 8 layers of 512 x (512 + 256 + 256 + 512) + 3 x 512 x 1536, two matrices of 8000 x 512.
LLAMA = LlamaConfig(
    vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None,
    eos_token_id=None, pad_token_id=None,
)  # fmt: skip


def small_config(**changes: Any) -> RunConfig:
    sizes: dict[str, Any] = {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 4, "eval_prompts": 1}
    return RunConfig(**(sizes | {"eval_samples": 1, "sampling": Sampling(max_completion_length=64)} | changes))


class Meter:
    """Bytes that torch's CPU allocator has given out since the first action, kernels' scratch included."""

    def __init__(self) -> None:
        self.live = 0

    def peak(self, action: Callable[[], Any]) -> tuple[int, Any]:
        """The most that was held at any time of `action`, and its result."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = action()
        assert profiler.profiler is not None
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        most = self.live
        for event in sorted(events, key=lambda event: event.start_ns()):
            self.live += event.nbytes()
            most = max(most, self.live)
        return most, result


def examples_of(objective: Objective, config: RunConfig) -> tuple[list[Example], Totals]:
    """Every completion of full length, every group with a signal; prompts of unequal length, as prompts are."""
    limit, examples = config.sampling.max_completion_length, []
    for number in range(config.prompts_per_step):
        prompt_ids = tuple(range(100 + number, 100 + number + PROMPT_LENGTH - number % 2))
        rollouts = tuple(
            Rollout(prompt_ids, tuple(range(i, i + limit)), (-9.0,) * limit, (0.0,) * limit, "", "length", 0)
            for i in range(config.group_size)
        )
        group = Group(Prompt(str(number), "", {}), rollouts, tuple(float(i % 2) for i in range(config.group_size)))
        examples += objective.select(group, torch.Generator().manual_seed(0))
    count = config.prompts_per_step * config.group_size
    return examples, Totals(config.prompts_per_step, count, count * limit, len(examples), count * limit)


class AdapterReference(Reference):
    """The seed's adapter on the policy's own model."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.model, self.schedule, self.version = policy, Never(), 0

    def score(self, rollouts: Sequence[Rollout], *, temperature: float = 1.0) -> TokenScores:
        self.model.set_adapter("reference")
        scores = super().score(rollouts, temperature=temperature)
        self.model.set_adapter("policy")
        return scores


def load(model_config: LlamaConfig, config: RunConfig, folder: str | None) -> PreTrainedModel:
    """The policy with what the configuration asks for: adapters (three sets), a quantized base, checkpointed layers."""
    dtype = torch.bfloat16 if config.lora and config.bf16 else torch.float32
    if config.quantization:
        from transformers import BitsAndBytesConfig

        four = config.quantization == "nf4"
        how = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=dtype, device_map="cpu")
    else:
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    model.eval()
    for module in model.modules():  # for inference on some CPUs it repacks a layer, which then passes no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora:
        from peft import LoraConfig

        model.requires_grad_(False)
        lora = LoraConfig(r=config.lora.lora_r, target_modules=config.lora.lora_target_modules)
        for name in ("reference", "behavior", "policy"):
            model.add_adapter(lora, name)
        model.set_adapter("policy")
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    if config.bf16:
        compute_in_bfloat16(model, config.device)
    return model


class CheckpointedLearner(Learner):
    """Scores whole sequences, layers checkpointed; otherwise the step of `Learner`."""

    def update(self, examples: Sequence[Example], totals: Totals, step: int) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._micro_batches(examples):
            rollouts = [rollout for example in batch for rollout in example.rollouts]
            reference = self.reference.score(rollouts) if self.reference else None
            self.policy.train()
            scores = whole_sequence_scores(self.policy, rollouts)
            self.policy.eval()
            loss, _ = self.objective.loss(batch, scores, reference, totals)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return {}


def whole_sequence_scores(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> TokenScores:
    longest = max(len(rollout.prompt_ids) for rollout in rollouts)
    rows = [(0,) * (longest - len(r.prompt_ids)) + r.prompt_ids + r.completion_ids for r in rollouts]
    ids = torch.tensor(rows, device=model.device)
    starts = torch.tensor([longest - len(r.prompt_ids) for r in rollouts], device=model.device)
    mask = torch.arange(ids.shape[1] - 1, device=model.device) >= starts[:, None]
    hidden = model.get_decoder()(input_ids=ids[:, :-1], attention_mask=mask, use_cache=False).last_hidden_state
    hidden, labels = hidden[:, longest - 1 :], ids[:, longest:]
    counts = torch.ones_like(labels, dtype=torch.bool)
    logprobs, entropy = token_logprobs(hidden[counts], labels[counts], weight=output_weight(model))
    return TokenScores(logprobs.view(labels.shape), entropy.view(labels.shape), counts)


def compute_in_bfloat16(model: PreTrainedModel, device: str) -> None:
    """Every forward pass of the layers under autocast, also those of copies."""
    autocast = torch.autocast(device, torch.bfloat16)

    def enter(*_: object) -> None:
        autocast.__enter__()

    def leave(*_: object) -> None:
        autocast.__exit__(None, None, None)

    model.get_decoder().register_forward_pre_hook(enter)
    model.get_decoder().register_forward_hook(leave)


def measured(
    model_config: LlamaConfig, config: RunConfig, objective: Objective, folder: str | None = None
) -> dict[str, int]:
    """Peaks, bytes, of the training and of the generation of a second step, and of the sync before it."""
    torch.manual_seed(0)
    meter = Meter()
    policy = meter.peak(lambda: load(model_config, config, folder))[1]
    held = [*policy.parameters(), *policy.buffers(), *_quantization_constants(policy)]  # some were mapped from a file
    meter.live = sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in held)}.values())
    tokenizer = build_tokenizer()
    sampler = meter.peak(lambda: TransformersSampler(policy, tokenizer, share=config.lora is not None))[1]
    reference = None
    if objective.needs_reference:
        make = (lambda: AdapterReference(policy)) if config.lora else (lambda: Reference(policy, Never()))
        reference = meter.peak(make)[1]
    kind = CheckpointedLearner if config.gradient_checkpointing else Learner
    learner = meter.peak(lambda: kind(policy, objective, reference, config))[1]
    examples, totals = examples_of(objective, config)
    prompts = [Prompt(str(n), "1" * (PROMPT_LENGTH - n % 2), {}) for n in range(config.prompts_per_step)]
    found = {}
    meter.peak(lambda: learner.update(examples[:1], totals, 0))  # makes the optimizer's moments
    if not config.lora:
        found["sync"] = meter.peak(lambda: sampler.sync(policy, 1, step=1))[0]
    found["generate"], groups = meter.peak(
        lambda: sampler.generate(prompts, config.group_size, seed=(0,), sampling=config.sampling)
    )
    found["train"] = meter.peak(lambda: learner.update(examples, totals, 1))[0]
    lengths = {len(rollout.completion_ids) for group in groups for rollout in group.rollouts}
    assert max(lengths) == config.sampling.max_completion_length
    return found


def _quantization_constants(model: PreTrainedModel) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a layer's weight."""
    found = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
            found += [state.absmax, state.code, *nested]
        found += [t for name in ("CB", "SCB") if isinstance(t := getattr(parameter, name, None), torch.Tensor)]
    return found
