"""Runs on several processes: sharded trainers and replicated samplers, as actors of a Ray cluster."""

from kit.distributed.cluster import ActorFailed
from kit.distributed.launch import launch

__all__ = ["ActorFailed", "launch"]
