"""What a run cost: wall-clock, completions, tokens, floating-point operations, peak memory.

Operations are counted after Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361), section 2.1, for each completion
token and each weight that it is multiplied with: 2 to draw or to score it, and in training 2 forward, 2 back to the
activations, and 2 for the gradient of a weight that trains. Prompts and attention are left out: where completions are
long against their prompts, and shorter than the model is wide, they are the smaller part.
"""

import json
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.progress import spent
from kit.runlog import RunDirectoryError, read_jsonl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DRAWN = SCORED = 2


@dataclass(frozen=True)
class Costs:
    """Of one run directory; what was not recorded is None.

    Attributes:
        seconds: wall-clock of each part of its steps, evaluations among them (`eval`), pauses not.
        completions: generated for training.
        tokens: of these completions.
        trained_tokens: of those that an update was made from, as often as it was.
        syncs: copies of the policy into the sampler.
        flops: estimated, of generating and training; evaluations left out.
        peak_memory: bytes; see `peak_memory`.
        sync_bytes: that these copies moved, to all samplers.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    completions: int = 0
    tokens: int = 0
    trained_tokens: int | None = None
    syncs: int = 0
    flops: float | None = None
    peak_memory: int | None = None
    sync_bytes: int | None = None

    @staticmethod
    def read(run_dir: str | Path) -> "Costs":
        """Of a run that is finished or not.

        Raises:
            RunDirectoryError: if there is no run.
        """
        path = Path(run_dir)
        if not (path / "config.json").is_file():
            raise RunDirectoryError(f"expected a run directory, with a config.json, came {path}")
        records, events = read_jsonl(path / "metrics.jsonl"), read_jsonl(path / "events.jsonl")
        seconds: dict[str, float] = {}
        for record in records:
            for name, value in record.items():
                if name.startswith("time/"):
                    part = name.removeprefix("time/")
                    seconds[part] = seconds.get(part, 0.0) + value
        end = spent(records)
        tokens = int(end["tokens"])
        trained = [record["num_trained_tokens"] for record in records if "num_trained_tokens" in record]
        receipts = read_jsonl(path / "receipts.jsonl")
        peaks = [record["memory/peak"] for record in records if "memory/peak" in record]
        weights = next((event["weights"] for event in events if "weights" in event), None)
        return Costs(
            seconds,
            int(end["completions"]),
            tokens,
            sum(trained) if trained else None,
            int(end["syncs"]),
            None if weights is None or not trained else _flops(path, weights, tokens, sum(trained)),
            max(peaks, default=None),
            sum(receipt["bytes"] for receipt in receipts) if all("bytes" in receipt for receipt in receipts) else None,
        )

    @property
    def training_seconds(self) -> float:
        """Without evaluations."""
        return sum(value for part, value in self.seconds.items() if part != "eval")


def _flops(path: Path, weights: dict[str, int], tokens: int, trained_tokens: int) -> float:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    has_reference = config["objective"]["type"] in ("DPO", "GroupDPO") or bool(config["objective"].get("kl_coef"))
    multiplied, trained = weights["multiplied"], weights["trained"]
    each = 4.0 * multiplied + 2.0 * min(trained, multiplied) + SCORED * multiplied * has_reference
    return float(DRAWN * multiplied * tokens + each * trained_tokens)


def weight_counts(policy: "PreTrainedModel") -> dict[str, int]:
    """How many weights a token is multiplied with, and how many of all train.

    An embedding is looked up; where it is tied to the output layer it is multiplied with there.
    """
    total, trained = policy.num_parameters(), policy.num_parameters(only_trainable=True)
    is_tied = bool(getattr(policy.config.get_text_config(), "tie_word_embeddings", False))
    looked_up = 0 if is_tied else policy.get_input_embeddings().weight.numel()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return {"multiplied": total - looked_up, "trained": trained}


def peak_memory(device: "torch.device") -> int:
    """Bytes, so far, in this process: resident on a CPU, all its libraries included; allocated by torch on a GPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
