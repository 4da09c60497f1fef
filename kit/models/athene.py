"""Athene-RM-8B, the paper's reward model: a Llama body and one number, read at the CLS token that ends the text.

Source: Frick et al. 2024, the model card of Nexusflow/Athene-RM-8B: the chat-templated conversation, then the
tokenizer's CLS token, tokenized as plain text is (so a start token may come from the template and again from the
tokenizer), at most 4096 tokens; the score is `v_head` of the last hidden state at the last CLS. There a text that was
cut loses its CLS, and the paper's code then scores it 0. Here the cut leaves the CLS in place, and a text without one
is an error.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from kit.models.reward_model import Prompt, RewardModel, conversation, load
from kit.rewards.completion import Completion


class AtheneClassifier(LlamaPreTrainedModel):
    """The architecture, with the names of the published weights: `model.*` and `v_head.weight`."""

    cls_token_id = 128003  # in the published tokenizer

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> SequenceClassifierOutput:
        """Scores as logits of shape (row, 1).

        Raises:
            ValueError: if a row of `input_ids` holds no CLS token.
        """
        is_cls = input_ids == self.cls_token_id
        if attention_mask is not None:  # padding may be that token too
            is_cls = is_cls & attention_mask.bool()
        if not is_cls.any(1).all():
            raise ValueError(
                f"expected the CLS token {self.cls_token_id}, where the score is read, in every row, got none in rows "
                f"{(~is_cls.any(1)).nonzero().flatten().tolist()}: append the tokenizer's cls_token to the text"
            )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (positions * is_cls).argmax(1)
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return SequenceClassifierOutput(logits=self.v_head(hidden.last_hidden_state[rows, last]))  # type: ignore[arg-type]


class AtheneRewardModel(RewardModel):
    """Reward function on TRL's contract: the raw score of Athene-RM-8B, or of a model of its architecture.

    A plain prompt is taken as the user's only message. Arguments and errors are those of `RewardModel`; besides, a
    tokenizer without a chat template or CLS token is a `ValueError`.
    """

    usual_max_length = 4096

    def __init__(
        self, model_name_or_path: str = "Nexusflow/Athene-RM-8B", *, name: str = "athene_reward", **settings: Any
    ) -> None:
        super().__init__(model_name_or_path, name=name, **settings)
        self._pad_must_not_end = False  # the score is read at the CLS, wherever padding begins

    def _load(self, name: str, dtype: str | torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = load(name, AtheneClassifier, dtype, outputs_from_config=False)
        if tokenizer.cls_token_id is None:
            raise ValueError(
                f"expected a tokenizer with a CLS token, where Athene's score is read, got none in {name!r}: use "
                "the tokenizer that was published with the model, or RewardModel for another kind of model"
            )
        model.cls_token_id = tokenizer.cls_token_id  # pyright: ignore[reportArgumentType]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked, and the score is not read by it: any token will do
        return model, tokenizer

    def _encode(self, prompt: Prompt, completion: Completion) -> list[int]:
        messages = conversation(
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, completion
        )
        text = self._render(messages or []) + str(self.tokenizer.cls_token)
        return self.tokenizer(text, verbose=False)["input_ids"]
