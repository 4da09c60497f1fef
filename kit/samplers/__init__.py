"""Samplers: copies of the policy that generate, kept up to date by a sync schedule."""

from kit.samplers.receipt import Receipt, SyncError
from kit.samplers.sampler import Sampler, SamplerFactory
from kit.samplers.transformers import TransformersSampler

__all__ = ["Receipt", "Sampler", "SamplerFactory", "SyncError", "TransformersSampler"]
