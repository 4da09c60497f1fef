"""Samplers: copies of the policy that generate, kept up to date by a sync schedule."""

from kit.samplers.in_batches import InBatches
from kit.samplers.overlapped import Overlapped
from kit.samplers.receipt import Receipt, SyncError
from kit.samplers.sampler import Request, Sampler, SamplerAhead, SamplerFactory, Upcoming
from kit.samplers.transformers import TransformersSampler
from kit.samplers.vllm_sampler import VLLMSampler

# For a notebook's parameter.
SAMPLERS = {"transformers": TransformersSampler, "overlapped": Overlapped, "vllm": VLLMSampler}

__all__ = [
    "SAMPLERS",
    "InBatches",
    "Overlapped",
    "Receipt",
    "Request",
    "Sampler",
    "SamplerAhead",
    "SamplerFactory",
    "SyncError",
    "TransformersSampler",
    "Upcoming",
    "VLLMSampler",
]
