"""A vLLM engine inside this process: takes tensors, generates, and says what it holds. It knows nothing of a run.

One request a completion, each with its own seed. Chunked prefill is off: with it a seeded request fails on a CPU, and
a long prompt would be cut at a place that depends on its neighbours. Written for vLLM 0.32.
"""

import gc
import json
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import save_file

from kit.config import Lora, Sampling
from kit.samplers.checksum import adapter_scale, distinct
from kit.samplers.vllm_readback import adapter_checksums_in_worker, repack_in_worker, weight_checksums_in_worker
from kit.samplers.vllm_requests import Completion, check_requests, run_requests
from kit.samplers.vllm_start import SamplerDied, end_tokens, engine_settings, lora_rank, prepare, shut_down, start

PROBE_TOKENS = 4  # that a probe generates
T = TypeVar("T")


class VLLMEngine:
    """Generates with vLLM from weights or adapters that `load_weights` and `load_adapter` replace.

    Args:
        model_name_or_path: folder or name of a Hugging Face causal language model.
        end_token_ids: tokens that end a completion; None = those of the model's own settings.
        dtype: of the weights and of everything computed; None = float32 on a CPU, bfloat16 on a GPU.
        max_model_len: tokens of a prompt with its completion; None = the model's context.
        gpu_memory_utilization: share of the GPU's memory for weights and cache; 1 GiB of cache on a CPU, or
            VLLM_CPU_KVCACHE_SPACE.
        sleep_mode: whether `sleep` can give the GPU's memory to the trainer.
        lora: adapters will be loaded, of this rank; None = all weights will.
        quantization: of the frozen model, "nf4" only; on a GPU, by the package vllm-bnb-plugin.
        enforce_eager: no compiled graphs; None = on a CPU.

    Raises:
        ImportError, ValueError: if vLLM is missing, or cannot do what was asked for; before anything is loaded.
        SamplerDied: if vLLM cannot load the model.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        seed: int = 0,
        end_token_ids: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        sleep_mode: bool = False,
        lora: Lora | None = None,
        quantization: Literal["nf4", "int8"] | None = None,
        enforce_eager: bool | None = None,
    ) -> None:
        is_cpu = prepare(lora, quantization, sleep_mode=sleep_mode)
        self.dtype = dtype or (torch.float32 if is_cpu else torch.bfloat16)
        self.end_token_ids = tuple(end_token_ids) if end_token_ids else end_tokens(model_name_or_path)
        self._sleep_mode, self._quantization = sleep_mode, quantization
        self._lora_rank = lora_rank(lora.lora_r) if lora else None
        self._adapter: Any = None
        self._loads = 0  # adapters so far: their ids
        self._death: str | None = None  # why the engine cannot go on
        self.is_asleep = False
        self._missing = "no adapter was loaded yet, call load_adapter" if lora else None  # before it may sample
        settings = engine_settings(is_cpu, self._lora_rank, quantization, enforce_eager) | {
            "model": model_name_or_path, "seed": seed, "dtype": self.dtype, "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization, "enable_prefix_caching": enable_prefix_caching,
            "enable_sleep_mode": sleep_mode,
        }  # fmt: skip
        self.llm: Any = start(settings)
        self._shut_down = weakref.finalize(self, shut_down, self.llm)
        config = self.llm.llm_engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self.block_size: int = config.cache_config.block_size
        self.vocab_size: int = config.model_config.get_vocab_size()

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], version: int) -> None:
        """Replace the adapter by this one, under the name `policy-v{version}` and a fresh id; drop cached prefixes.

        Args:
            tensors: named as `peft.get_peft_model_state_dict` names them.
            config: the content of an adapter_config.json, as `LoraConfig.to_dict` gives it; a plain LoRA.

        Raises:
            ValueError: if the engine was not made for such an adapter.
            SamplerDied: if vLLM fails in it.
        """
        if self._lora_rank is None:
            raise ValueError("expected all weights, because the engine was made with lora=None, came an adapter")
        adapter_scale(config)
        if config["r"] > self._lora_rank:
            raise ValueError(f"expected an adapter of rank at most {self._lora_rank}, came one of {config['r']}")
        from vllm.lora.request import LoRARequest

        self._loads += 1
        with tempfile.TemporaryDirectory(prefix="kit-adapter-") as folder:
            held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            save_file(held, Path(folder, "adapter_model.safetensors"))
            Path(folder, "adapter_config.json").write_text(json.dumps(dict(config), default=sorted))
            request = LoRARequest(f"policy-v{version}", self._loads, folder)
            self._guarded(f"loading adapter policy-v{version}", lambda: self._swap_adapter(request))
        self._loaded()

    def _swap_adapter(self, request: Any) -> None:
        if self._adapter is not None:
            self.llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = request
        self.llm.llm_engine.add_lora(request)
        held = self.llm.llm_engine.list_loras()
        if held != {request.lora_int_id}:
            raise RuntimeError(f"expected adapter {request.lora_int_id} alone in the engine, found {sorted(held)}")

    def load_weights(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Replace all weights, named as in the Hugging Face state dict, tied ones once or twice; drop cached prefixes.

        Raises:
            ValueError: if the engine was made for adapters.
            SamplerDied: if vLLM fails in it, as it does if a tensor has another shape.
        """
        if self._lora_rank is not None:
            raise ValueError("expected an adapter, because the engine was made with lora, came all weights")
        weights = {name: tensor.detach() for name, tensor in distinct(tensors).items()}

        def load() -> None:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
            self.llm.collective_rpc(repack_in_worker)

        self._guarded(f"loading the weights of version {version}", load)
        self._loaded()

    def _loaded(self) -> None:
        self._missing = None
        if not self._guarded("dropping cached prefixes", self.reset_prefix_cache):
            self._death = "cached keys and values of old weights could not be dropped, as requests are still running"
            raise self._died()

    def reset_prefix_cache(self) -> bool:
        """Forget keys and values of prompts; False if vLLM could not."""
        return self.llm.reset_prefix_cache()

    def checksums(self) -> dict[str, str]:
        """What the engine computes with: of the adapter's tensors if it was made for adapters, else of all weights.

        To compare with `adapter_checksums` or `weight_checksums` of what was sent, at `dtype`.
        """
        if self._lora_rank is None:
            return self.base_checksums()
        if self._adapter is None:
            return {}
        arguments = (self._adapter.lora_int_id, self.dtype)
        return self._guarded(
            "reading back the adapter",
            lambda: self.llm.collective_rpc(adapter_checksums_in_worker, args=arguments)[0],
        )

    def base_checksums(self) -> dict[str, str]:
        """Of the model's own weights, adapters aside."""
        if self._quantization:
            raise ValueError("expected weights that can be compared bit by bit, came quantized ones: check the adapter")
        return self._guarded(
            "reading back the weights",
            lambda: self.llm.collective_rpc(weight_checksums_in_worker, args=(self.dtype,))[0],
        )

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Completion]:
        """One completion a prompt, drawn with the seed at the same place, in that order.

        A greedy completion (temperature 0) reports log-probs of the untempered, untruncated distribution.

        Raises:
            ValueError: if a prompt is empty or too long, or vLLM cannot sample like that.
            SamplerDied: if vLLM fails in it.
        """
        if self._missing:
            raise RuntimeError(f"nothing can be sampled: {self._missing}")
        return self._request(prompt_ids, seeds, sampling, self.end_token_ids)

    def probe(self) -> Completion:
        """A few greedy tokens after a fixed prompt that fills a block of the cache, whatever the engine holds.

        Run before and after a sync: `num_cached_tokens` must be 0 after it, and the log-probs the policy's own.
        """
        limit = min(PROBE_TOKENS, self.max_model_len - 1)
        length = min(self.block_size + 8, self.max_model_len - limit)
        prompt = [(2654435761 * (i + 1) >> 7) % self.vocab_size for i in range(length)]  # arbitrary and fixed
        return self._request([prompt], [0], Sampling(max_completion_length=limit, temperature=0.0), ())[0]

    def _request(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, ends: Sequence[int]
    ) -> list[Completion]:
        if self.is_asleep:
            raise RuntimeError("expected an engine that is awake, came one that sleeps: call wake")
        check_requests(prompt_ids, seeds, sampling, self.max_model_len, self.vocab_size)
        return self._guarded(
            f"generating {len(prompt_ids)} completions",
            lambda: run_requests(self.llm, self._adapter, prompt_ids, seeds, sampling, ends),
        )

    def sleep(self) -> None:
        """Give the GPU's memory back: the cache is dropped, and the weights too, unless adapters need them."""
        self._require_sleep_mode()
        level = 2 if self._lora_rank is None else 1  # 1 keeps a copy of the weights in the computer's memory
        self._guarded("going to sleep", lambda: self.llm.sleep(level=level))
        self.is_asleep, self._missing = True, "the engine sleeps: call wake, then load the policy"

    def wake(self) -> None:
        """Take the memory again. What was loaded before may be gone, so the policy must be loaded and checked anew."""
        self._require_sleep_mode()
        self._guarded("waking up", self.llm.wake_up)
        self.is_asleep, self._missing = False, "the engine slept, and what it holds now is not the policy: load it"

    def close(self) -> None:
        """Free what the engine holds; it cannot be used any more."""
        self._shut_down()
        self.llm, self._adapter, self._death = None, None, "it was closed"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _require_sleep_mode(self) -> None:
        if not self._sleep_mode:
            raise RuntimeError("expected an engine made with sleep_mode=True, came one that cannot sleep")

    def _died(self) -> SamplerDied:
        return SamplerDied(
            f"the vLLM engine cannot go on: {self._death}. Make a new sampler, or resume the run from its last "
            "checkpoint; if memory ran out, lower gpu_memory_utilization or the number of completions before, and if "
            "vLLM cannot run this model, sample with transformers."
        )

    def _guarded(self, what: str, call: Callable[[], T]) -> T:
        """`call()`, after whose failure nothing that the engine would still answer could be trusted."""
        if self._death:
            raise self._died()
        try:
            return call()
        except Exception as error:
            self._death = f"{what} raised {type(error).__name__}: {error}"
            raise self._died() from error
        except BaseException:
            self._death = f"{what} was interrupted"
            raise
