"""A reward from a model: a sequence classifier with one output, read with its own tokenizer and chat template.

The tokens are those of TRL 1.16 (`GRPOTrainer._calculate_rewards`): a conversation goes through the reward model's chat
template and gets no further special tokens; padding is on the right. Different on purpose: plain text gets the start
and end tokens that the tokenizer adds by itself, a head without weights is an error, and no end-of-sequence token
stands in for a missing padding token (a classifier on a decoder reads the last token that is no padding).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kit.masking import right_pad
from kit.models.policy import ROOT
from kit.models.weights import digest
from kit.rewards.completion import Completion, completion_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
Prompt = str | Sequence[dict[str, Any]]


class RewardModel:
    """Reward function on TRL's contract: the score of a sequence classifier, higher is better.

    What is longer than `max_length` tokens is cut and counted: its first token and its last ones stay, because there
    the score is read. A score does not depend on what else is in the batch, up to rounding.

    Args:
        model_name_or_path: a folder, looked up from the working directory and then beside `kit`, or a name on the hub.
        max_length: tokens of prompt and completion together; by default what model and tokenizer can take.
        batch_size: texts a forward pass, > 0.
        dtype: of the weights, such as "float32" or "bfloat16".
        device: such as "cpu" or "cuda".
        pad_token: for a model and a tokenizer without one; a token that no text holds.
        name: under which metrics report it.

    Raises:
        FileNotFoundError: if there is no config.json, tokenizer or safetensors under that name.
        ValueError: if the model has not exactly one output, lacks weights or padding, or a setting is out of range.
    """

    usual_max_length: int | None = None

    def __init__(
        self,
        model_name_or_path: str,
        *,
        max_length: int | None = None,
        batch_size: int = 16,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        pad_token: str | None = None,
        name: str = "reward_model",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
        self.__name__ = name
        self.model, self.tokenizer = self._load(model_name_or_path, dtype)
        self.model.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
        self.max_length = _length_limit(max_length, self.usual_max_length, self.model.config, self.tokenizer)
        self.batch_size = batch_size
        self._set_padding(pad_token)
        self._counts = {"scored": 0, "truncated": 0}
        self._checked_template: str | dict[str, str] | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One score a completion; TRL's `log_metric` hears of the fraction that was cut.

        Raises:
            ValueError: if there are not as many prompts as completions, a score is not finite, a text has no tokens,
                or the prompts are messages and the tokenizer has no chat template, or one that cannot render them.
            TypeError: if a prompt is text where its completion is messages, or a completion has no text.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"expected one prompt a completion, got {len(prompts)} for {len(completions)} completions")
        rows = [self._encode(*pair) for pair in zip(prompts, completions, strict=True)]
        cut = sum(len(row) > self.max_length for row in rows)
        scores = self._score([_shortened(row, self.max_length) for row in rows])
        self._counts["scored"] += len(rows)
        self._counts["truncated"] += cut
        if log_metric and rows:
            log_metric(f"{self.__name__}/truncated", cut / len(rows))
        return scores

    def metrics(self) -> dict[str, int]:
        """Counts of completions since construction: `scored`, and of these `truncated`."""
        return dict(self._counts)

    def describe(self) -> dict[str, Any]:
        """For the configuration of a run: which weights, and how much of a text they see."""
        return {"name": self.__name__, "model_digest": digest(self.model.state_dict()), "max_length": self.max_length}

    def _load(self, name: str, dtype: str | torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load(name, AutoModelForSequenceClassification, dtype)

    def _encode(self, prompt: Prompt, completion: Completion) -> list[int]:
        """Token ids of prompt and completion, before any cut."""
        messages = conversation(prompt, completion)
        if messages is None:
            return self.tokenizer(f"{prompt}{completion}", verbose=False)["input_ids"]
        return self.tokenizer(self._render(messages), add_special_tokens=False, verbose=False)["input_ids"]

    def _render(self, messages: list[dict[str, Any]]) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"expected the tokenizer of {self.__name__} to have a chat template, because the prompts are messages; "
                "it has none: set reward_model.tokenizer.chat_template to the one the model was trained with, or give "
                "prompts and completions as strings"
            )
        if self.tokenizer.chat_template != self._checked_template:
            self._check_template()
        return self._rendered(messages)

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError as error:
            raise ValueError(
                f"expected the chat template of {self.__name__} to render a conversation of the roles "
                f"{[message.get('role') for message in messages]}, got {type(error).__name__}: {error}. See that it is "
                "the template the model was trained with, and that the prompts use its roles"
            ) from error

    def _check_template(self) -> None:
        """Raise ValueError if the template drops the completion, so that all scores of a prompt would be equal."""
        question = {"role": "user", "content": "Is it so?"}
        yes, no = (self._rendered([question, {"role": "assistant", "content": text}]) for text in ("Yes.", "No."))
        if yes == no:
            raise ValueError(
                f"expected the chat template of {self.__name__} to render what the assistant said, got {yes!r} for any "
                "answer: set reward_model.tokenizer.chat_template to the one the model was trained with"
            )
        self._checked_template = self.tokenizer.chat_template

    @torch.no_grad()
    def _score(self, rows: Sequence[list[int]]) -> list[float]:
        """The model's output for every row, in the order of `rows`; the longest are scored first, beside their like."""
        self._check(rows)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            tokens, mask = right_pad([tuple(rows[index]) for index in batch], self._pad_id)
            device = self.model.device
            logits = self.model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
            for index, value in zip(batch, logits[:, 0].float().tolist(), strict=True):
                scores[index] = value
        for index, value in enumerate(scores):
            if not math.isfinite(value):
                raise ValueError(
                    f"expected finite scores from {self.__name__}, got {value} for completion {index} of "
                    f"{len(rows[index])} tokens in {self.model.dtype}: load it with dtype='float32' or 'bfloat16' "
                    "(float16 overflows), or look for damaged weights"
                )
        return scores

    def _check(self, rows: Sequence[list[int]]) -> None:
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"expected text to score, got an empty prompt and completion at index {index}")
            if self._pad_must_not_end and row[-1] == self._pad_id:
                raise ValueError(
                    f"expected a text that does not end in the padding token, got one at index {index}: the model says "
                    "nothing of padding, and would read the score one token early; choose another pad_token"
                )

    def _set_padding(self, pad_token: str | None) -> None:
        """Which token pads: the one that the model looks for, or else the tokenizer's, made known to the model."""
        config = self.model.config.get_text_config()
        configured = getattr(config, "pad_token_id", None)
        chosen = self.tokenizer.pad_token if pad_token is None else pad_token
        if pad_token is not None and pad_token not in self.tokenizer.get_vocab():
            raise ValueError(f"expected pad_token to be one of the tokenizer's tokens, got {pad_token!r}: name another")
        if configured is None and chosen is None:
            raise ValueError(
                f"expected a padding token in the tokenizer or the configuration of {self.__name__}, got none: pass "
                "pad_token='<a token that no text holds>' (not the end-of-sequence token: the score is read there)"
            )
        self._pad_must_not_end = configured is None or pad_token is not None
        if self._pad_must_not_end:
            configured = self.tokenizer.get_vocab()[str(chosen)]
        self._pad_id: int = configured  # pyright: ignore[reportAttributeAccessIssue]
        config.pad_token_id = self._pad_id


def conversation(prompt: Prompt, completion: Completion) -> list[dict[str, Any]] | None:
    """Prompt and completion as the messages of one conversation, or `None` if both are plain text.

    Raises:
        TypeError: if the prompt is text and the completion is messages, or the completion has no text.

    >>> conversation([{"role": "user", "content": "Hi"}], "Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    text = completion_text(completion)
    if isinstance(completion, str):
        return None if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": text}]
    if isinstance(prompt, str):
        raise TypeError("expected prompt and completion in one form, got a string and messages: make both messages")
    return [*prompt, *completion]


def load(
    name: str, architecture: Any, dtype: str | torch.dtype, *, outputs_from_config: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the class `architecture` and its own tokenizer: safetensors only, no code from the hub.

    Raises:
        FileNotFoundError: if there is no config.json, tokenizer or safetensors under that name.
        ValueError: if the configuration does not say one output, weights are missing or damaged, or it needs code of
            its own.
    """
    folder = next((path for path in (Path(name), ROOT / name) if path.is_dir()), None)
    if folder and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"expected a tokenizer beside the model in {folder}, got no {' or '.join(TOKENIZER_FILES)}: put back "
            "the one the model was trained with"
        )
    source, options = str(folder or name), {"local_files_only": folder is not None, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if outputs_from_config:
            _require_one_output(name, config)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, report = architecture.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except OSError as error:
        raise FileNotFoundError(
            f"expected {name!r} to be a folder, or a name on the hub, with config.json, a tokenizer and safetensors, "
            f"got {error}: correct the name, or download it first if this machine is offline"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"expected whole safetensors in {name!r}, got {error}: download them again") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"expected weights for the whole of {type(model).__name__}, got none for {missing[:5]} in {name!r}: it is "
            "no reward model of this architecture, and these would be random numbers"
        )
    return model, tokenizer


def _require_one_output(name: str, config: PreTrainedConfig) -> None:
    if config.num_labels != 1:
        raise ValueError(
            f"expected a reward model with one output, got {name!r} with num_labels={config.num_labels}: choose a "
            "model with a scalar head, or AtheneRewardModel for Athene's (an absent setting counts as 2)"
        )


def _length_limit(
    asked: int | None, usual: int | None, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Most tokens a text may have: what was asked for, or else the least of what the parts can take."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    limit = min(usual or math.inf, tokenizer.model_max_length, positions) if asked is None else asked
    if not 2 <= limit <= positions:
        raise ValueError(f"expected max_length from 2 to the model's {positions} positions, got {limit}")
    return int(limit) if math.isfinite(limit) else 1 << 30


def _shortened(row: list[int], limit: int) -> list[int]:
    """`row` without the tokens after its first, as many as there are too many.

    >>> _shortened([1, 2, 3, 4, 5], 3)
    [1, 4, 5]
    """
    return row if len(row) <= limit else row[:1] + row[len(row) - limit + 1 :]
