"""The policy: load it, copy it, and score rollouts under it."""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kit.logprobs import token_logprobs
from kit.masking import right_pad
from kit.types import Rollout, TokenScores

ROOT = Path(__file__).resolve().parents[2]


def load_policy(model_name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode (so without dropout) and its tokenizer, from a local folder.

    A relative path is looked up from the working directory, then from the folder that holds `kit`.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no model.
    """
    folder = next(
        (f for f in (Path(model_name_or_path), ROOT / model_name_or_path) if f.is_dir()), Path(model_name_or_path)
    )
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"model_name_or_path must be a folder with config.json and safetensors, got {model_name_or_path!r}: "
            f"{folder.resolve()} is none. The embedded model is data/seed; `make seed` rebuilds it."
        )
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no end-of-sequence token, so no completion could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is always masked, so any token will do
    _require_plain_logits(model.eval())
    return model, tokenizer


@torch.no_grad()
def _require_plain_logits(model: PreTrainedModel) -> None:
    """Raise ValueError if the logits are more than `output_weight` says: scaled, say, as Granite's and Cohere's are."""
    tokens = torch.arange(4, device=model.device)[None]
    expected = model(input_ids=tokens, use_cache=False).logits
    found = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state @ output_weight(model).T
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise ValueError(
            f"expected a language model whose logits are hidden states times a matrix, came {type(model).__name__}, "
            "whose logits differ from that: choose another model"
        )


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A second model with the same weights that no gradient reaches: a sampler or a reference."""
    return deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> tuple[int, float]:
    """Copy every parameter and buffer by name; returns (how many tensors, 2-norm of the change).

    Raises:
        ValueError: if the names or shapes of the two models differ.
    """
    new, old = source.state_dict(), target.state_dict()
    if {k: v.shape for k, v in new.items()} != {k: v.shape for k, v in old.items()}:
        odd = sorted(set(new) ^ set(old)) or sorted(k for k in new if new[k].shape != old[k].shape)
        raise ValueError(
            f"weights can only be copied between models of one architecture; these tensors differ: {odd[:5]}"
        )
    distinct = {tensor.data_ptr(): name for name, tensor in old.items()}.values()  # tied tensors count once
    squared = sum((old[name].double() - new[name].double()).square().sum().item() for name in distinct)
    for name, tensor in new.items():
        old[name].copy_(tensor)
    return len(new), squared**0.5


@torch.no_grad()
def mix_weights(source: nn.Module, target: nn.Module, alpha: float) -> None:
    """Move every parameter of `target` the share `alpha` of the way to `source`; both are of one architecture."""
    new = dict(source.named_parameters())
    for name, parameter in target.named_parameters():  # tied parameters are named once
        parameter.lerp_(new[name], alpha)


def digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of a model's tensors, the first 16 hex digits."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def score(model: PreTrainedModel, rollouts: Sequence[Rollout], *, temperature: float = 1.0) -> TokenScores:
    """Log-probs and entropies of the completions' tokens under `model`; gradients flow unless switched off.

    A prompt that several rollouts share is read once: its keys and values serve all of them, with gradients.

    Args:
        rollouts: at least one; a completion has at least one token.
        temperature: the sampling temperature, > 0, so that policy and sampler speak of the same distribution.
    """
    if not rollouts:
        raise ValueError("there is nothing to score: rollouts is empty")
    prompts = list(dict.fromkeys(rollout.prompt_ids for rollout in rollouts))
    rows = [prompts.index(rollout.prompt_ids) for rollout in rollouts]
    # Position p predicts token p + 1: the last prompt token goes with the completion, whose own last predicts nothing.
    cache, context = _read_prompts(model, [prompt[:-1] for prompt in prompts], torch.tensor(rows, device=model.device))
    inputs, mask = right_pad([r.prompt_ids[-1:] + r.completion_ids[:-1] for r in rollouts], 0)
    labels, _ = right_pad([r.completion_ids for r in rollouts], 0)
    inputs, mask, labels = (tensor.to(model.device) for tensor in (inputs, mask, labels))
    start = context.sum(1, keepdim=True)
    positions = start + torch.arange(inputs.shape[1], device=model.device)
    output = model.get_decoder()(
        input_ids=inputs,
        attention_mask=torch.cat([context, mask], dim=1),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden = output.last_hidden_state[mask]
    logprobs, entropy = token_logprobs(hidden, labels[mask], weight=output_weight(model), temperature=temperature)
    return TokenScores(_unflatten(logprobs, mask), _unflatten(entropy, mask), mask)


def output_weight(model: PreTrainedModel) -> torch.Tensor:
    """The output layer's matrix (vocab, hidden), which turns hidden states into logits.

    Raises:
        ValueError: if the model's logits are more than that product, so that they would come out wrong.
    """
    head = model.get_output_embeddings()
    if (
        head is None
        or getattr(head, "bias", None) is not None
        or getattr(model.config, "final_logit_softcapping", None)
    ):
        raise ValueError(
            f"expected a language model whose logits are hidden states times a matrix, came {type(model).__name__} "
            "with another output layer (none, one with a bias, or soft-capped logits): choose another model"
        )
    return head.weight


def _read_prompts(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], rows: torch.Tensor
) -> tuple[DynamicCache | None, torch.Tensor]:
    """Keys and values of left-padded prompts, a row for each entry of `rows`, and which columns count."""
    flipped, mask = right_pad([prompt[::-1] for prompt in prompts], 0)
    tokens, mask = flipped.flip(1).to(model.device), mask.flip(1).to(model.device)
    if not tokens.shape[1]:
        return None, mask[rows]
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model.get_decoder()(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    cache.batch_select_indices(rows)
    return cache, mask[rows]


def _unflatten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
