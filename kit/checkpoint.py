"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step_NNNNNN` of safetensors files and a `state.json` with their checksums. It is written under
another name and renamed when complete, so a killed run leaves either a whole checkpoint or none. Randomness needs no
state: every draw derives from (seed, step).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kit.models.weights import distributed_as

Tensors = Mapping[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Position:
    """Where a run stands between two steps."""

    step: int  # updates applied
    sampler_version: int  # updates in the sampler's weights
    ref_version: int  # updates in the reference's weights
    drift: tuple[float, float] | None = None  # of the policy from the sampler, if the schedule asks for it


def save_checkpoint(folder: Path, position: Position, parts: Mapping[str, Tensors], *, keep: int = 2) -> Path:
    """Write `parts` (name -> tensors) and keep the newest `keep` checkpoints of the folder.

    Raises:
        ValueError: if keep is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
    path = folder / f"step_{position.step:06d}"
    partial = folder / f"partial_{position.step:06d}"
    for leftover in (partial, path):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    checksums = {}
    for name, tensors in parts.items():
        file = partial / f"{name}.safetensors"
        save_file({key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}, file)
        checksums[name] = _checksum(file)
    state = {"position": asdict(position), "sha256": checksums}
    (partial / "state.json").write_text(json.dumps(state | {"state_sha256": _state_checksum(state)}, indent=2))
    _sync_to_disk(partial)
    os.replace(partial, path)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(path: Path) -> tuple[Position, dict[str, dict[str, torch.Tensor]]]:
    """Read a checkpoint back, checking every file against its checksum.

    Raises:
        CheckpointError: naming the file, what was expected, what came, and what to do.
    """
    remedy = f"Delete the folder {path} to go on from the checkpoint before it, or from the start if there is none."
    try:
        state = json.loads((path / "state.json").read_text())
        came, checksums = state.pop("state_sha256"), state["sha256"]
        if came != _state_checksum(state):
            raise ValueError(f"its SHA-256 is not {came}")
        found = state["position"]
        position = Position(**found | {"drift": None if found["drift"] is None else tuple(found["drift"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # ValueError: not text, or not JSON
        raise CheckpointError(f"checkpoint {path.name} has no readable state.json ({error!r}). {remedy}") from error
    parts = {}
    for name, expected in checksums.items():
        file = path / f"{name}.safetensors"
        came = _checksum(file) if file.exists() else "no file"
        if came != expected:
            raise CheckpointError(f"{file} is corrupt: expected SHA-256 {expected}, found {came}. {remedy}")
        parts[name] = load_file(file)
    return position, parts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as flat named tensors `{parameter index}/{name}`: no pickle."""
    # Not from its state_dict, in which bitsandbytes wraps what belongs to a parameter.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The inverse of `optimizer_tensors`, by copies; learning rates and other settings stay the optimizer's own."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor | int]] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        is_count = tensor.ndim == 0 and not tensor.is_floating_point()  # torch counts steps in floats, others in ints
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # a moment, which is sharded as its parameter is
            tensor = distributed_as(parameter, tensor)
        state.setdefault(int(index), {})[name] = int(tensor) if is_count else tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_checksum(state: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
