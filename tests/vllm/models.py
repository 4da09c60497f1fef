"""Two tiny models for a vLLM server: one whose answers follow from rules set by hand, and one that nobody trained."""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kit.models.tokenizer import END, build_tokenizer

CONTEXT = 4096  # tokens, nearly one a byte: a judge's question takes about 1,000
HEAD_DIM = 32  # the smallest that vLLM's attention knows on a CPU
HIDDEN = 2 * HEAD_DIM

# The rule model's answers, as tokens: what it writes first, and then. A word in the conversation decides.
WORDS = ["Score: ", "Winner: A", "Hm.", "mumble", "grade", "compare", "lovely"]
ASSISTANT, SCORE, LAST, MUMBLE, GRADE, COMPARE, LOVELY, OTHER = range(8)  # kinds of token, a dimension each
SEEN = 16  # a dimension this much further holds how often that kind came so far, as a share
GAIN = 4000.0  # so that one token of 4,000 counts 8
STATE = 1e5  # more than any share: what may come next depends on the last token, which of it on the words seen


def untrained_model(folder: Path) -> Path:
    """A model that writes noise, ending it early or late."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    return _save(LlamaForCausalLM(_config(tokenizer, initializer_range=0.3)), tokenizer, folder)


def rule_model(folder: Path) -> Path:
    """A model that has no weights but these rules.

    Asked to grade it answers `Score: 9` if the word `lovely` stands anywhere in the conversation, and else `Score: 2`;
    asked to compare, `Winner: A` whatever the answers are; if it reads `mumble`, `Hm.`; and else dots without end.
    """
    tokenizer = build_tokenizer(WORDS)
    model = LlamaForCausalLM(_config(tokenizer))
    ids = {text: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in [*WORDS, "9", "2", "."]}
    kinds = {"Score: ": SCORE, "Winner: A": LAST, "Hm.": LAST, "9": LAST, "2": LAST}
    kinds |= {"mumble": MUMBLE, "grade": GRADE, "compare": COMPARE, "lovely": LOVELY}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
        embedding[:, OTHER] = 1.0
        for token, kind in [(ids[text], kind) for text, kind in kinds.items()] + [
            ([tokenizer.convert_tokens_to_ids("<|assistant|>")], ASSISTANT)
        ]:
            embedding[token] = torch.eye(HIDDEN)[kind]
        for kind in (MUMBLE, GRADE, COMPARE, LOVELY):  # queries of zero look at every token alike
            attention.v_proj.weight[kind, kind] = 1.0
            attention.o_proj.weight[kind + SEEN, kind] = GAIN
        head = model.lm_head.weight
        for text, before, seen, weight in [
            ("Hm.", ASSISTANT, MUMBLE + SEEN, 3.0),  # once is more than a twofold `grade`
            ("Score: ", ASSISTANT, GRADE + SEEN, 1.0),
            ("Winner: A", ASSISTANT, COMPARE + SEEN, 1.0),
            (".", ASSISTANT, ASSISTANT, 0.5),
            (".", OTHER, OTHER, 0.5),
            ("9", SCORE, LOVELY + SEEN, 1.0),
            ("2", SCORE, SCORE, 0.5),
        ]:
            head[ids[text], before] += STATE
            head[ids[text], seen] += weight
        head[tokenizer.convert_tokens_to_ids(END), LAST] = STATE
    return _save(model, tokenizer, folder)


def _config(tokenizer: PreTrainedTokenizerFast, **changes: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **changes,
    )  # fmt: skip


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(folder: Path, architecture: str) -> Path:
    """An untrained model of 800 tokens, without a tokenizer, whose keys have half as many heads as its queries."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=800, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=HEAD_DIM, max_position_embeddings=256, initializer_range=0.3, eos_token_id=1,
        pad_token_id=0, bos_token_id=None, tie_word_embeddings=architecture == "Gemma3Text",
        attention_bias=architecture == "Llama",
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
