"""The doctor before a run: from its parts alone, nothing is generated."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kit.config import Lora, RunConfig
from kit.doctor import ending, model, prompts, reward_model, sampling
from kit.doctor.finding import Finding
from kit.doctor.parts import Parts
from kit.types import Prompt

Check = Callable[[Parts], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    prompts.form, prompts.doubled_start, ending.end_token, ending.end_of_turn, ending.padding, model.dropout,
    model.vocabulary, model.tied_weights, model.small_updates, sampling.cut_distribution, sampling.generation_defaults,
    reward_model.template,
)  # fmt: skip


class UnreadableModelError(RuntimeError):
    """A model folder's configuration or tokenizer is not what transformers can read."""


def check_parts(parts: Parts) -> list[Finding]:
    """Every finding about what is given."""
    return [finding for check in CHECKS for finding in check(parts)]


def model_parts(folder: str | Path, prompts: Sequence[Prompt] = (), lora: Lora | None = None) -> Parts:
    """The parts that a model folder holds, weights aside, so that a large model is checked as fast as a small one.

    A relative path is looked up as by `load_policy`: from the working directory, then beside `kit`.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no configuration or no tokenizer.
        UnreadableModelError: if these cannot be read, or need code of their own.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # seconds, which only a model is worth

    from kit.models.policy import ROOT

    path = next((path for path in (Path(folder), ROOT / folder) if (path / "config.json").is_file()), None)
    if path is None:
        raise FileNotFoundError(f"expected a model folder with config.json, came {str(folder)!r}: correct the path")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise FileNotFoundError(f"expected a tokenizer in {path}, came none: put back the one it was trained with")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **local)
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
        if (path / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(path, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableModelError(
            f"expected a model folder that transformers can read, came {path}: {type(error).__name__}: {error}. "
            "Download or save it again"
        ) from error
    run = None if lora is None else RunConfig(lora=lora)
    return Parts(tokenizer, config, generation, prompts=prompts, config=run)


def read_prompts(file: str | Path) -> list[Prompt]:
    """The column `prompt` of JSON lines, in TRL's format: a string, or messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no object with such a prompt; it says which.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a file of JSON lines, came {str(file)!r}: correct the path")
    found = []
    for number, line in enumerate(Path(file).read_text().splitlines(), start=1):
        advice = f"expected a JSON object with a prompt (a string or messages) in line {number} of {file}"
        try:
            content = json.loads(line).get("prompt")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{advice}, came {line[:80]!r}: one object a line") from error
        is_messages = isinstance(content, list) and all(isinstance(m, dict) and "role" in m for m in content)
        if not isinstance(content, str) and not (content and is_messages):
            raise ValueError(f"{advice}, came {content!r:.80}: see TRL's prompt-only format")
        found.append(Prompt(str(number), content, {}))
    return found
