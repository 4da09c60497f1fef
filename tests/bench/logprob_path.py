"""Log-probs and entropies at a vocabulary of 128k, forward and backward: `kit.logprobs` against the plain path.

The plain path casts all logits to float32 and takes a log-softmax and a softmax of them. Two inputs: hidden states
with the output layer's weight, and ready-made logits; each in float32 and bfloat16. Extra memory is the peak of a
fresh process less what it held when the inputs were made; the gradients of the inputs are part of it on both sides.
Given logits, that gradient alone is as large as the logits, so the kit can save less there. The plain path takes 5 GB.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from tests.bench.measure import Row, in_fresh_process, in_turns, memory_bytes, parser, peak_memory_bytes, ratios, report

VOCAB, HIDDEN = 128_000, 256
TIMED_TOKENS, HELD_TOKENS = 256, 2048  # for time, which grows with them evenly; for memory, as a small batch has them
DTYPES = ("float32", "bfloat16")
INPUTS = ("hidden", "logits")
PATHS = ("plain", "kit")


def plain_token_logprobs(source: Any, labels: Any, weight: Any) -> tuple[Any, Any]:
    """What one writes first."""
    import torch

    logits = source if weight is None else torch.nn.functional.linear(source, weight)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, labels[:, None]).squeeze(-1), entropy


def forward_and_backward(path: str, inputs: str, dtype: str, tokens: int) -> Callable[[], None]:
    """One pass with gradients of all inputs, on data that is made here."""
    import torch

    from kit.logprobs import token_logprobs

    generator = torch.Generator().manual_seed(0)
    made = {"dtype": getattr(torch, dtype), "generator": generator}
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    source = torch.randn(tokens, HIDDEN if inputs == "hidden" else VOCAB, **made).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, **made).mul_(HIDDEN**-0.5).requires_grad_() if inputs == "hidden" else None

    def run() -> None:
        source.grad = None
        if weight is not None:
            weight.grad = None
        if path == "kit":
            logprobs, entropy = token_logprobs(source, labels, weight=weight)
        else:
            logprobs, entropy = plain_token_logprobs(source, labels, weight)
        (logprobs.sum() + 0.01 * entropy.sum()).backward()

    return run


def extra_memory(path: str, inputs: str, dtype: str) -> int:
    """Bytes that a pass needs beyond its inputs; libraries warm up on a single token first."""
    forward_and_backward(path, inputs, dtype, tokens=1)()
    run = forward_and_backward(path, inputs, dtype, HELD_TOKENS)
    before = memory_bytes()
    run()
    return peak_memory_bytes() - before


def measure(repeats: int, threads: int) -> list[Row]:
    """Time in turns in this process, memory in one process a path."""
    found = []
    for inputs in INPUTS:
        for dtype in DTYPES:
            name = f"{inputs}, {dtype}"
            times = in_turns({path: forward_and_backward(path, inputs, dtype, TIMED_TOKENS) for path in PATHS}, repeats)
            found += [Row(f"{name}, {path}: {TIMED_TOKENS} tokens", "s", times[path]) for path in PATHS]
            found.append(ratios(f"{name}, plain / kit: time", times["plain"], times["kit"]))
            extra = {path: _extra_in_fresh_process(path, inputs, dtype, threads) for path in PATHS}
            found += [
                Row(f"{name}, {path}: extra memory, {HELD_TOKENS} tokens", "MB", (extra[path] / 1e6,)) for path in PATHS
            ]
            found.append(ratios(f"{name}, plain / kit: extra memory", [extra["plain"]], [extra["kit"]]))
    return found


def _extra_in_fresh_process(path: str, inputs: str, dtype: str, threads: int) -> float:
    variant = ("--memory-of", path, inputs, dtype, "--threads", str(threads))
    return in_fresh_process("tests.bench.logprob_path", *variant)["bytes"]


def main(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps({"bytes": extra_memory(*arguments.memory_of)}))
    else:
        report(measure(arguments.repeats, arguments.threads), arguments.json)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--memory-of", nargs=3, metavar=("PATH", "INPUTS", "DTYPE"), help="only this, as JSON")
    main(options.parse_args())
