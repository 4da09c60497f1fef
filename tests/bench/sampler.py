"""Generation alone: the kit's sampler against transformers' `generate`.

Both go from the same 32 prompts to 8 completions each, as text: chat template, tokens, decoding. `generate` gets
every prompt 8 times, as TRL does it. The kit's sampler also returns the log-prob and the entropy of every token,
which `generate` is not asked for.
"""

import argparse
from collections.abc import Callable

from tests.bench.measure import Row, in_turns, parser, ratios, report

PROMPTS, GROUP_SIZE, LIMIT = 32, 8, 48


def measure(model: str, repeats: int, steps: int) -> list[Row]:
    """A turn is `steps` batches of one side; every batch has other prompts or another seed."""
    from kit.models.policy import load_policy
    from kit.tasks import Arithmetic

    policy, tokenizer = load_policy(model)
    prompts = Arithmetic().split("train")
    batches = [prompts[start : start + PROMPTS] for start in range(0, steps * PROMPTS, PROMPTS)]
    lengths: dict[str, list[int]] = {"kit": [], "generate": []}
    sides = {"kit": kit_sampler(policy, tokenizer), "generate": plain_generate(policy, tokenizer)}

    def turn(name: str) -> None:
        for batch in batches:
            lengths[name] += sides[name](batch)

    times = in_turns({name: lambda name=name: turn(name) for name in sides}, repeats)
    completions = PROMPTS * GROUP_SIZE * steps
    found = [Row(f"{name}: 256 completions", "s", tuple(t / steps for t in times[name])) for name in sides]
    found += [Row(name, "completions/s", tuple(completions / t for t in times[name])) for name in sides]
    found.append(ratios("generate / kit: time", times["generate"], times["kit"]))
    return found + [
        Row(f"{name}: tokens a completion", "1", (sum(lengths[name]) / len(lengths[name]),)) for name in sides
    ]


def kit_sampler(policy, tokenizer) -> Callable[[tuple], list[int]]:
    """Prompts -> tokens of each completion, by the kit."""
    from kit.config import Sampling
    from kit.samplers import TransformersSampler

    sampler, sampling, calls = TransformersSampler(policy, tokenizer), Sampling(max_completion_length=LIMIT), 0

    def generate(prompts: tuple) -> list[int]:
        nonlocal calls
        calls += 1
        groups = sampler.generate(prompts, GROUP_SIZE, seed=(0, calls), sampling=sampling)
        return [len(rollout.completion_ids) for group in groups for rollout in group.rollouts]

    return generate


def plain_generate(policy, tokenizer) -> Callable[[tuple], list[int]]:
    """The same by `generate`."""
    import torch

    options = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": LIMIT}

    @torch.inference_mode()
    def generate(prompts: tuple) -> list[int]:
        messages = [prompt.content for prompt in prompts for _ in range(GROUP_SIZE)]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = policy.generate(**encoded, **options)[:, encoded["input_ids"].shape[1] :]
        tokenizer.batch_decode(output, skip_special_tokens=True)
        ended = output == tokenizer.eos_token_id
        # The end marker counts as a token, what stands after it does not.
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, output.shape[1])
        return lengths.tolist()

    return generate


def main(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    report(measure(arguments.model, arguments.repeats, arguments.steps), arguments.json)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
