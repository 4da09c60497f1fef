"""A model without weights, on which the kit's own passes run to count bytes: no formula a family, no byte allocated.

Every tensor is fake: a shape and a type without content. So what passes hold is what torch and transformers would
allocate, whatever the family. They run through two layers and three: the difference counts for each further layer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from kit.config import RunConfig, Sampling
from kit.models.policy import output_weight
from kit.samplers.kv_cache import PreallocatedCache, PreallocatedLayer
from kit.samplers.transformers import draw

# Bytes a weight: 4 bits, an 8-bit constant a block of 64, and a 32-bit one for 256 of those (QLoRA, arXiv 2305.14314);
# or 8 bits, and a float32 a row, which is counted apart.
QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch: distinct prompts, their completions in all, and the tokens of each."""

    prompts: int
    rollouts: int
    prompt_length: int
    completion_length: int


@dataclass(frozen=True)
class Passes:
    """Bytes beyond the weights and the gradients that were there before.

    kept: what the forward pass leaves for the backward pass, or the keys and values of all completions.
    workspace: at most beyond that.
    halfway: between the completions' backward pass and the prompts'. A weight's gradient waits for both.
    a_layer: the part of `kept` of a layer, the largest.
    """

    kept: int
    workspace: int
    halfway: int
    a_layer: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active, now and at most; not those of `old`."""

    def __init__(self, old: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakKeyDictionary({tensor.untyped_storage(): None for tensor in old})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen[storage] = None
                self._add(storage.nbytes())
                finalize(storage, self._add, -storage.nbytes()).atexit = False
        return output

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class _Frozen(torch.autograd.Function):
    """x W^T where W is quantized: it is restored for as long as the product takes; int8 keeps x as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, keeps_input: bool) -> Tensor:
        ctx.weight, ctx.kept = weight, x if keeps_input else None
        return x @ torch.empty_like(weight, dtype=x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] @ torch.empty_like(ctx.weight, dtype=grads[0].dtype), None, None


class _Adapted(nn.Module):
    """A frozen linear layer as peft runs it: with its adapter (rank 0: none) in float32 beside it."""

    def __init__(self, base: nn.Linear, rank: int, quantization: str | None) -> None:
        super().__init__()
        self.base, self.rank, self.quantization = base, rank, quantization
        if rank:
            self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
            self.lora_b = nn.Parameter(torch.empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        kind = self.quantization
        result = _Frozen.apply(x, self.base.weight, kind == "int8") if kind else self.base(x)
        if not self.rank:
            return result
        update = nn.functional.linear(nn.functional.linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b) * 2.0
        return (result + update).to(result.dtype)


class DryModel:
    """The policy of a run as it would be in memory, without its content.

    Raises:
        ValueError: if the kit cannot train a model of this kind, or no layer has a name of `lora_target_modules`.
    """

    def __init__(self, model_config: PreTrainedConfig, config: RunConfig) -> None:
        self.config = config
        self._fake = FakeTensorMode()
        kinds = Counter(getattr(model_config, "layer_types", None) or [None] * model_config.num_hidden_layers)
        two = [next(iter(kinds))] * 2  # the first layer's input may need no gradient, so one would not speak for others
        self._two_layers = self._built(model_config, two)[0]
        # Each kind of layer: a model that has one more of it, and how many more the whole model has.
        self._further = [(self._built(model_config, [k, *two])[0], n - two.count(k)) for k, n in kinds.items()]
        model, quantized = self._built(model_config, None)
        own = [p for name, p in model.named_parameters() if ".lora_" not in name]
        self.parameters = sum(p.numel() for p in own)
        self.is_tied = model.get_input_embeddings().weight is output_weight(model)
        self.largest = max(p.numel() for p in own)
        self.weight_bytes = _bytes([*own, *model.buffers()]) - round(quantized)
        self.trained = [p.numel() for p in model.parameters() if p.requires_grad]
        self.vocab_size, self.hidden_size = output_weight(model).shape
        self.element_size = output_weight(model).element_size()
        self.num_layers, heads = model_config.num_hidden_layers, model_config.num_attention_heads
        self.attention_width = heads * (getattr(model_config, "head_dim", None) or self.hidden_size // heads)
        products = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        self.matmul_parameters = sum({id(w): w.numel() for w in [*products, output_weight(model)]}.values())

    @cache  # noqa: B019 - as long as the model
    def train(self, shape: Shape) -> Passes:
        """One micro-batch through the layers, as `kit.models.policy.score` sends it, and back, adding to gradients."""

        def passes(model: PreTrainedModel) -> tuple[int, int, int]:
            model.train(self.config.gradient_checkpointing)  # otherwise transformers does not checkpoint
            halfway = [0]
            with self._counting(model) as live:
                embedded, hidden = self._hidden_states(model, shape)
                kept = live.peak = live.now
                if embedded.requires_grad:
                    embedded.register_hook(lambda _: halfway.append(live.now))
                del embedded
                hidden.backward(torch.empty_like(hidden))
                return kept, halfway[-1], live.peak

        return self._of_all_layers(passes)

    @cache  # noqa: B019
    def generate(self, shape: Shape, sampling: Sampling) -> Passes:
        """Prompts are read, then the last token of each completion is drawn."""
        times, length = shape.rollouts // shape.prompts, shape.prompt_length + shape.completion_length

        def passes(model: PreTrainedModel) -> tuple[int, int, int]:
            model.eval()
            with self._counting(model) as live, torch.no_grad():
                cache = PreallocatedCache(model.config.num_hidden_layers, length)
                logits = _next_logits(model, shape.prompts, shape.prompt_length, cache)
                cache.repeat_rows(times)
                logits = logits.repeat_interleave(times, 0)
                for layer in _layers(cache):
                    layer.length = length - 1
                draw(logits, torch.empty(shape.rollouts), sampling)
                logits = _next_logits(model, shape.rollouts, 1, cache)
                draw(logits, torch.empty(shape.rollouts), sampling)
                return _bytes(_cached(cache)), 0, live.peak

        return self._of_all_layers(passes)

    @cache  # noqa: B019
    def cached_numbers(self) -> int:
        """Keys and values of one token, in numbers."""

        def passes(model: PreTrainedModel) -> tuple[int, int, int]:
            model.eval()
            with self._counting(model), torch.no_grad():
                cache = PreallocatedCache(model.config.num_hidden_layers, 1)
                _next_logits(model, 1, 1, cache)
                return sum(tensor.numel() for tensor in _cached(cache)), 0, 0

        return self._of_all_layers(passes).kept

    def _of_all_layers(self, passes: Callable[[PreTrainedModel], tuple[int, int, int]]) -> Passes:
        """From kept, halfway and most of shallow models; the last is a workspace beyond the larger of the others."""
        of_two = passes(self._two_layers)
        further = [(passes(model), count) for model, count in self._further]
        kept, halfway = (of_two[i] + sum(count * (more[i] - of_two[i]) for more, count in further) for i in (0, 1))
        workspace = max(most - max(others) for *others, most in (of_two, *(more for more, _ in further)))
        return Passes(kept, max(workspace, 0), max(halfway, 0), max(more[0] - of_two[0] for more, _ in further))

    def _built(self, model_config: PreTrainedConfig, kinds: list[Any] | None) -> tuple[PreTrainedModel, float]:
        """The model, of layers of these kinds instead of its own; and by how many bytes quantization shrinks it."""
        config, model_config = self.config, deepcopy(model_config)
        model_config.num_hidden_layers = model_config.num_hidden_layers if kinds is None else len(kinds)
        if kinds and kinds[0]:
            model_config.layer_types = kinds
        with self._fake:
            dtype = torch.bfloat16 if config.lora and config.bf16 else torch.float32
            model = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
            output_weight(model)
            odd = next((name for name, p in model.named_parameters() if p.dim() > 2), None)
            if odd:
                raise ValueError(
                    f"expected a dense transformer, came {type(model).__name__} with {odd} (a mixture of experts, "
                    "say), whose memory depends on the text: measure it on a few steps instead"
                )
            if config.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            if config.lora is None:
                return model, 0.0
            model.requires_grad_(False)
            return model, self._adapt(model, config.lora.lora_r, config.lora.lora_target_modules)

    def _adapt(self, model: PreTrainedModel, rank: int, targets: str | tuple[str, ...]) -> float:
        """Put adapters beside the layers that `targets` names and quantize all but the output layer; bytes it saves."""
        names, quantization, saved = (targets,) if isinstance(targets, str) else targets, self.config.quantization, 0.0
        head = model.get_output_embeddings()
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        chosen = {n for n in layers if targets == "all-linear" or any(f".{n}".endswith(f".{t}") for t in names)}
        if not chosen:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(f"expected lora_target_modules among this model's linear layers {known}, came {targets!r}")
        for name, layer in layers.items():
            if quantization:
                saved += layer.weight.numel() * (layer.weight.element_size() - QUANTIZED_BYTES[quantization])
                saved -= 4 * layer.out_features if quantization == "int8" else 0
            model.set_submodule(name, _Adapted(layer, rank if name in chosen else 0, quantization))
        return saved

    def _hidden_states(self, model: PreTrainedModel, shape: Shape) -> tuple[Tensor, Tensor]:
        """Embedded completions, and hidden states (rollouts * completion_length, hidden).

        A prompt is read once for its rollouts, unless layers are checkpointed: then whole sequences are read.
        """
        rows, context, length = shape.rollouts, shape.prompt_length - 1, shape.completion_length
        if self.config.gradient_checkpointing:
            embedded, hidden = self._decoded(model, rows, context + length, None, context + length)
            hidden = hidden[:, context:]
        else:
            cache = DynamicCache(config=model.config) if context else None
            if cache is not None:
                self._decoded(model, shape.prompts, context, cache, context)
                cache.batch_select_indices(torch.empty(rows, dtype=torch.long))
            embedded, hidden = self._decoded(model, rows, length, cache, context + length)
        return embedded, hidden.reshape(-1, hidden.shape[-1]).clone()  # the positions that count are copied out

    def _decoded(
        self, model: PreTrainedModel, rows: int, new: int, cache: DynamicCache | None, seen: int
    ) -> tuple[Tensor, Tensor]:
        embedded = torch.empty(rows, new, self.hidden_size, dtype=model.dtype, requires_grad=self.config.lora is None)
        output = model.get_decoder()(
            inputs_embeds=embedded, attention_mask=torch.empty(rows, seen, dtype=torch.bool),
            position_ids=torch.empty(rows, new, dtype=torch.long), past_key_values=cache, use_cache=cache is not None,
        )  # fmt: skip
        return embedded, output.last_hidden_state

    @contextmanager
    def _counting(self, model: PreTrainedModel) -> Iterator[LiveBytes]:
        """Fake tensors are computed with, as the run would, and counted, gradients apart."""
        with self._fake:
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        old = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16)
        with self._fake, autocast, LiveBytes(old) as live:
            yield live


def _next_logits(model: PreTrainedModel, rows: int, new: int, cache: PreallocatedCache) -> Tensor:
    ids = torch.empty(rows, new, dtype=torch.long)
    output = model(
        input_ids=ids, attention_mask=torch.empty(rows, cache.get_seq_length() + new, dtype=torch.bool),
        position_ids=torch.empty_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return output.logits[:, -1].float()


def _layers(cache: PreallocatedCache) -> list[PreallocatedLayer]:
    return [layer for layer in cache.layers if isinstance(layer, PreallocatedLayer)]


def _cached(cache: PreallocatedCache) -> list[Tensor]:
    return [tensor for layer in _layers(cache) for tensor in (layer.keys, layer.values) if tensor is not None]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages: tied tensors count once."""
    return sum({id(s): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())
