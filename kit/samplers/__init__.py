"""Samplers: copies of the policy that generate, kept up to date by a sync schedule."""

from kit.samplers.in_batches import InBatches
from kit.samplers.receipt import Receipt, SyncError
from kit.samplers.sampler import Sampler, SamplerFactory
from kit.samplers.transformers import TransformersSampler
from kit.samplers.vllm_sampler import VLLMSampler

SAMPLERS = {"transformers": TransformersSampler, "vllm": VLLMSampler}  # for a notebook's parameter

__all__ = [
    "SAMPLERS",
    "InBatches",
    "Receipt",
    "Sampler",
    "SamplerFactory",
    "SyncError",
    "TransformersSampler",
    "VLLMSampler",
]
