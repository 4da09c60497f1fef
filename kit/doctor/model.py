"""Is the model such that what is trained is what was sampled, and can it learn?"""

from collections.abc import Iterator

import torch
from torch import nn

from kit.doctor.finding import Finding
from kit.doctor.parts import Parts

PADDED = 1024  # rows: output layers are padded to multiples of 64 to 512 for speed; more than this is another tokenizer
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
OTHER_HEADS = ("summary_", "classifier_")  # of classifiers, which share a configuration with language models
OUTER_LAYERS = ("lm_head", "embed_tokens")
SOME = 100_000  # weights of a tensor that are looked at, evenly spaced
HALF = 0.5  # of the weights that cannot move


def dropout(parts: Parts) -> Iterator[Finding]:
    """`dropout_on` (error): the model is in training mode and has a dropout probability above 0, in its configuration
    or in a dropout module; or such a module by itself is. `dropout_configured` (note): the configuration has one; it
    acts only in training mode, in which the kit never puts a policy.

    Source: trl#3500 (KL in the thousands at step 1 with GPT-2's dropout), trl#3000 (rollouts in training mode),
    trl PR#3234.
    """
    configured: dict[str, float] = {}
    if parts.model_config is not None:
        settings = parts.model_config.get_text_config().to_dict()
        configured = {name: value for name, value in settings.items() if _is_dropout(name, value)}
    modules = [] if parts.model is None else list(parts.model.named_modules())
    names = [name for name, module in modules if isinstance(module, DROPOUT) and module.p > 0 and module.training]
    said = ", ".join(f"{name}={value:g}" for name, value in configured.items())
    if names or (configured and parts.model is not None and parts.model.training):
        active = f"{len(names)} dropout modules in training mode, such as {names[0]}" if names else "training mode"
        yield Finding(
            "dropout_on",
            "error",
            f"dropout is on ({active}{', ' if said else ''}{said}): policy and sampler are different functions",
            "call model.eval() before training, which switches dropout off and nothing else here; lora_dropout=0",
        )
    elif configured:
        remedy = "nothing to do here: the kit trains in evaluation mode. Other trainers may switch it on"
        yield Finding("dropout_configured", "note", f"the configuration has {said}", remedy)


def vocabulary(parts: Parts) -> Iterator[Finding]:
    """`tokens_without_row` (error): the tokenizer has more tokens than the model has rows. `rows_without_token` (note;
    warning above 1,024): the model has rows that are no token; if one is drawn it decodes to nothing.

    Source: output layers are padded for speed (Qwen2.5: 151,936 rows for 151,665 tokens).
    """
    if parts.tokenizer is None or parts.model_config is None:
        return
    rows, tokens = parts.model_config.get_text_config().vocab_size, len(parts.tokenizer)
    seen = f"{rows} rows in the model for {tokens} tokens"
    if rows < tokens:
        remedy = "take the tokenizer that the model was trained with, or resize its embeddings"
        yield Finding("tokens_without_row", "error", seen, remedy)
    elif rows > tokens:
        remedy = "padding is usual; such a token has next to no probability unless training raises it"
        if rows - tokens <= PADDED:
            yield Finding("rows_without_token", "note", seen, remedy)
        else:
            remedy = "take the tokenizer that the model was trained with: this is more than padding"
            yield Finding("rows_without_token", "warning", seen, remedy)


def tied_weights(parts: Parts) -> Iterator[Finding]:
    """`tied_weights_adapted` (warning): input and output embeddings are one tensor, and LoRA is put on one of them.
    Merged or exported, the adapter changes both, or none.

    Source: peft 0.21 warns of it (`tuners/tuners_utils.py`).
    """
    lora = None if parts.config is None else parts.config.lora
    if lora is None or parts.model_config is None or not parts.model_config.get_text_config().tie_word_embeddings:
        return
    targets = [lora.lora_target_modules] if isinstance(lora.lora_target_modules, str) else lora.lora_target_modules
    outer = [name for name in targets if name.rpartition(".")[2] in OUTER_LAYERS]
    if outer:
        yield Finding(
            "tied_weights_adapted",
            "warning",
            f"lora_target_modules holds {', '.join(outer)}, and the model ties its input and output embeddings",
            "leave these out: lora_target_modules='all-linear' does",
        )


def small_updates(parts: Parts) -> Iterator[Finding]:
    """`updates_too_small` (error): more than half of the trained bfloat16 (float16) weights are so large that a change
    by learning_rate rounds back: it is less than half the distance to the next number. Adam moves a weight by about
    learning_rate. bfloat16 keeps 8 bits: near 0.02 its numbers are 1.2e-4 apart, and 1e-6 changes nothing.

    Source: Zamirai et al. 2020, Revisiting BFloat16 Training (arXiv 2010.06192); trl#2872 (LoRA "does not learn").
    """
    if parts.model is None or parts.config is None:
        return
    stuck = looked_at = 0
    kind = ""
    for parameter in parts.model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            weights = parameter.detach().flatten()
            weights = weights[:: max(1, len(weights) // SOME)].abs().float()
            _, exponent = torch.frexp(weights)  # weight in [2^(e-1), 2^e)
            spacing = torch.finfo(parameter.dtype).eps * torch.ldexp(torch.ones_like(weights), exponent - 1)
            stuck += int((parts.config.learning_rate < spacing / 2).sum())
            looked_at += len(weights)
            kind = str(parameter.dtype).removeprefix("torch.")
    if looked_at and stuck > HALF * looked_at:
        yield Finding(
            "updates_too_small",
            "error",
            f"{stuck / looked_at:.0%} of the trained {kind} weights round back after a change by learning_rate "
            f"{parts.config.learning_rate:g}",
            "keep the trained weights in float32 (RunConfig.bf16 computes in bfloat16 and does that), or train LoRA "
            "adapters in float32",
        )


def _is_dropout(name: str, value: object) -> bool:
    is_named = ("dropout" in name or "pdrop" in name) and not name.startswith(OTHER_HEADS)
    return is_named and isinstance(value, int | float) and not isinstance(value, bool) and value > 0
