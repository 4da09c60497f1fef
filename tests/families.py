"""Tiny untrained models of the families that people train, each with a chat template in its family's own form."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

ROWS = 320  # of the embedding: more than any of the tokenizers has tokens, as in Qwen's and Phi's models
SIZES: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PHI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """Names as on the hub. `ends` are the tokens that end a completion, the tokenizer's end of text first."""

    architecture: str
    template: str
    special: tuple[str, ...]  # all special tokens, ends included
    ends: tuple[str, ...]
    begin: str | None = None
    pad: str | None = None  # None: as on the hub, there is none
    settings: dict[str, Any] = field(default_factory=dict)  # what sets its architecture apart from Llama 1


FAMILIES = {
    "Llama 3": Family(
        "Llama", LLAMA_TEMPLATE,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ends=("<|eot_id|>", "<|end_of_text|>"), begin="<|begin_of_text|>",
        settings={"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }},
    ),
    "Qwen3": Family(  # norms of queries and keys; the embedding is the output layer
        "Qwen3", QWEN_TEMPLATE, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ends=("<|im_end|>", "<|endoftext|>"), pad="<|endoftext|>",
        settings={"head_dim": 32, "tie_word_embeddings": True},
    ),
    "Gemma 3": Family(  # local and global layers with rotary embeddings of their own, scaled and tied embeddings
        "Gemma3Text", GEMMA_TEMPLATE, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        ends=("<eos>", "<end_of_turn>"), begin="<bos>", pad="<pad>",
        settings={"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 3,
                  "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "Mistral": Family(  # every layer looks back over fewer tokens than a prompt has
        "Mistral", MISTRAL_TEMPLATE, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        ends=("</s>",), begin="<s>", settings={"sliding_window": 8},
    ),
    "Phi-3": Family(  # one layer for queries, keys and values, one for gate and up; a rotary part of each head
        "Phi3", PHI_TEMPLATE, ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ends=("<|endoftext|>", "<|end|>"), pad="<|endoftext|>", settings={"partial_rotary_factor": 0.5},
    ),
}  # fmt: skip


def family_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Bytes and the family's special tokens."""
    backend = Tokenizer(Unigram([(piece, -1.0) for piece in sorted(ByteLevel.alphabet())]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.begin, eos_token=family.ends[0], pad_token=family.pad,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = family.template
    return tokenizer


def write_family(name: str, folder: Path, **settings: Any) -> Path:
    """A folder as the hub has it, the model's weights random; `settings` are of its configuration."""
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    ends = [tokenizer.convert_tokens_to_ids(end) for end in family.ends]
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{family.architecture}Config")(**(SIZES | special | family.settings | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # zero until it is trained
                torch.nn.init.normal_(parameter)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
