"""The policy: load it, and score rollouts under it."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from kit.config import Lora
from kit.logprobs import token_logprobs
from kit.masking import right_pad
from kit.models.adapters import Quantization, add_adapter, quantization_config, save_adapter, settle_quantized
from kit.models.weights import POLICY, has_adapter, weights_of
from kit.types import Rollout, TokenScores

ROOT = Path(__file__).resolve().parents[2]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_policy(
    model_name_or_path: str, *, lora: Lora | None = None, quantization: Quantization | None = None, bf16: bool = False,
    device: str = "cpu", seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """A causal language model in evaluation mode (so without dropout) and its tokenizer.

    Weights that are trained are float32. A frozen model under an adapter is bfloat16 with `bf16`, or quantized.

    Args:
        model_name_or_path: a folder, looked up from the working directory, then from the folder that holds `kit`; else
            a name on the Hugging Face hub. Only safetensors are read, and no code of the model's.
        lora: adapters to train instead of all weights.
        quantization: of the frozen model; needs lora.
        device: torch's name of it.
        seed: of a new adapter.

    Raises:
        FileNotFoundError: if the folder holds no model, or the hub cannot be read, or not by this user.
        ValueError: if the kit could not train or sample from this model.
    """
    source, is_local = _find(model_name_or_path)
    dtype = torch.bfloat16 if bf16 and lora else torch.float32
    placed: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        placed |= {"quantization_config": quantization_config(quantization, dtype), "device_map": {"": device}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=is_local)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, local_files_only=is_local, **placed)
    except OSError as error:
        if is_local:
            raise
        raise FileNotFoundError(
            f"model_name_or_path: {model_name_or_path!r} is no folder here, and could not be read from the Hugging "
            f"Face hub ({str(error).splitlines()[0]}). Without network, download it elsewhere (hf download "
            f"{model_name_or_path} --local-dir FOLDER) and name the folder; for a gated model, accept its licence and "
            "run `hf auth login` first."
        ) from error
    if quantization is None:
        model.to(torch.device(device))  # pyright: ignore[reportArgumentType]
        _leave_file(model)
    model.eval()
    if quantization is not None:
        settle_quantized(model, quantization)
    _require_usable_tokens(model, tokenizer, model_name_or_path)
    _require_plain_logits(model)
    if lora is not None:
        add_adapter(model, lora, seed=seed)
    return model, tokenizer


def _find(model_name_or_path: str) -> tuple[str, bool]:
    """Where to load from, and whether that is a folder."""
    paths = (Path(model_name_or_path), ROOT / model_name_or_path)
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is None and HUB_NAME.fullmatch(model_name_or_path):
        return model_name_or_path, False
    folder = paths[0] if folder is None else folder
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"model_name_or_path must be a folder with config.json and safetensors, or a name on the hub, got "
            f"{model_name_or_path!r}: {folder.resolve()} is none. The embedded model is data/seed; `make seed` "
            "rebuilds it."
        )
    return str(folder), True


def _leave_file(model: PreTrainedModel) -> None:
    """Copy every weight out of the mapped file: where in it a matrix begins would decide the last bits of products."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":  # elsewhere it is a copy already
            parameter.data = parameter.data.clone()


def _require_usable_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError without an end token or with tokens that the model does not know; a missing pad is filled in."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token, so no completion could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is always masked, so any token will do
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens and the model {rows}: resize the model's embeddings "
            "(model.resize_token_embeddings) and save it, or take the tokenizer that belongs to it"
        )


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


def score(model: PreTrainedModel, rollouts: Sequence[Rollout], *, temperature: float = 1.0) -> TokenScores:
    """Log-probs and entropies of the completions' tokens under `model`; gradients flow unless switched off.

    A prompt that several rollouts share is read once: its keys and values serve all of them, with gradients. Not so
    inside `recomputing`, where a layer keeps no keys and values.

    Args:
        rollouts: at least one; a completion has at least one token.
        temperature: the sampling temperature, > 0, so that policy and sampler speak of the same distribution.
    """
    if not rollouts:
        raise ValueError("there is nothing to score: rollouts is empty")
    if isinstance(model, FSDPModule):  # whose hooks a gradient through keys and values would pass by
        sharded: Any = model
        return TokenScores(*sharded.score_whole(rollouts, temperature))
    if model.training:
        return score_whole(model, rollouts, temperature)
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
    return _read_out(model, output.last_hidden_state[mask], labels, mask, temperature)


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a forward pass keeps only each layer's input; the backward pass computes the rest again.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174. The layers are told that they train only until they have started
    to keep nothing, and not what is in them: dropout stays off.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        checkpoint: Any = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = partial(_evaluated, layer, checkpoint)  # pyright: ignore[reportArgumentType]
    for module in (model, *layers):
        module.training = True
    try:
        yield
    finally:
        for module in (model, *layers):
            module.training = False


def _evaluated(layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *inputs: Any) -> Any:
    """`checkpoint(forward, *inputs)` with the layer in evaluation mode, in the forward pass and when it is repeated."""

    def evaluated(*inputs: Any) -> Any:
        was, layer.training = layer.training, False
        try:
            return forward(*inputs)
        finally:
            layer.training = was

    return checkpoint(evaluated, *inputs)


def score_whole(model: PreTrainedModel, rollouts: Sequence[Rollout], temperature: float) -> TokenScores:
    """`score` by one pass over whole sequences."""
    tokens, attended = right_pad([r.prompt_ids + r.completion_ids for r in rollouts], 0)
    labels, mask = right_pad([r.completion_ids for r in rollouts], 0)
    tokens, attended, labels, mask = (tensor.to(model.device) for tensor in (tokens, attended, labels, mask))
    output = model.get_decoder()(input_ids=tokens, attention_mask=attended, use_cache=False)
    first = torch.tensor([len(r.prompt_ids) for r in rollouts], device=model.device)[:, None] - 1
    columns = (first + torch.arange(mask.shape[1], device=model.device)).clamp(max=tokens.shape[1] - 1)
    rows = torch.arange(len(rollouts), device=model.device)[:, None]
    return _read_out(model, output.last_hidden_state[rows, columns][mask], labels, mask, temperature)


def _read_out(
    model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, temperature: float
) -> TokenScores:
    """Scores from the hidden states that predict the tokens which `mask` counts."""
    weight = output_weight(model)
    logprobs, entropy = token_logprobs(hidden.to(weight.dtype), labels[mask], weight=weight, temperature=temperature)
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


def precision(policy: PreTrainedModel, *, bf16: bool) -> torch.autocast:
    """With bf16 and all weights in training, these stay float32 and are rounded for each product."""
    is_mixed = bf16 and not has_adapter(policy)
    # Without the cache, which would outlive an update and give the next pass the weights of before it.
    return torch.autocast(policy.device.type, torch.bfloat16, enabled=is_mixed, cache_enabled=False)


def save_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a policy and its tokenizer as a folder that transformers, and another run, can load.

    With adapters in training it is a PEFT folder: of the adapter alone, and the name of the model it belongs to.
    """
    if has_adapter(policy):
        save_adapter(weights_of(policy), policy.peft_config[POLICY], folder)
    else:
        policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
