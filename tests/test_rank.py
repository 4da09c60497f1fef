"""Two ranks and four, in processes of their own, against one process: the same losses, gradients, weights, moments.

The ranks are those that actors of a cluster are, without the cluster: gloo on this machine.
"""

import multiprocessing
import socket
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Lora, RunConfig
from kit.distributed.rank import Rank
from kit.importance import M2PO, DecoupledPPO
from kit.models.policy import load_policy
from kit.objectives import DPO, GRPO, GroupDPO, Objective
from kit.reference import Reference
from kit.rollouts import totals_of
from kit.sync import Every
from kit.trainer import in_process
from kit.types import Example, Group, Totals
from tests.learning import examples_of, scored_groups

pytestmark = pytest.mark.slow  # every process imports torch and transformers

CASES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "dpo": (DPO(nll_coef=0.5, entropy_coef=0.1), {}),
    "grpo": (GRPO(kl_coef=0.1), {}),
    "grpo, bounds of the whole step": (GRPO(M2PO()), {}),
    "grpo, log-probs of before the first pass": (GRPO(DecoupledPPO()), {}),
    "group dpo with grpo": (GroupDPO(grpo_coef=0.5), {}),
    "dpo, adapters": (DPO(), {"lora": Lora(lora_r=4)}),
    "grpo, activations computed twice": (GRPO(kl_coef=0.1), {"gradient_checkpointing": True}),
}
MAKE_REFERENCE = partial(Reference, schedule=Every(2), mixup_alpha=0.5)
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What every rank, and the one process, is to do."""

    config: RunConfig
    objective: Objective
    batches: list[tuple[list[Example], Totals]]  # of each step
    groups: list[Group]  # on which drift is measured
    start: Mapping[str, Mapping[str, torch.Tensor]] | None = None  # a checkpoint's parts


def plan(folder: Path, case: str) -> Plan:
    """All examples; one, so that most ranks have none; none at all; all again."""
    objective, changes = CASES[case]
    groups = scored_groups(load_policy(str(folder))[0])
    examples = examples_of(objective, groups)
    batches = [(some, totals_of(groups, some)) for some in (examples, examples[:1], [], examples)]
    sizes: dict[str, Any] = {"adam_epsilon": 1.0, "learning_rate": 0.1, "micro_batch_size": 4, "num_threads": 1}
    return Plan(RunConfig(model_name_or_path=str(folder), **(sizes | changes)), objective, batches, groups)


def carry_out(trainer: Any, made: Plan) -> tuple[list[dict[str, float]], Any]:
    """The metrics of every step, and the drift after them, of a Rank or of a Learner."""
    do = trainer.call if isinstance(trainer, Rank) else lambda name, *arguments: getattr(trainer, name)(*arguments)
    records = []
    if made.start is not None:
        do("load", made.start, 0)
    for step, (examples, totals) in enumerate(made.batches):
        if made.objective.needs_prox_logprobs:
            examples = (trainer.learner if isinstance(trainer, Rank) else trainer).with_prox_logprobs(examples)
        version = do("follow", step, 0)
        records.append((do("update", examples, totals, step) or {}) | {"ref_version": version or 0})
    return records, do("drift", made.groups)


def work(rank: int, size: int, meeting_point: str, plans: list[Plan]) -> list[Any]:
    """One rank's process."""
    worker = Rank(rank, size)
    worker.join(meeting_point, DEADLINE_S)
    found = []
    for made in plans:
        worker.build(made.config, made.objective, MAKE_REFERENCE if made.objective.needs_reference else None)
        found.append((*carry_out(worker, made), worker.parts()))
    torch.distributed.destroy_process_group()
    return found


def of_ranks(size: int, plans: list[Plan]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting_point = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with ProcessPoolExecutor(size, multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(work, rank, size, meeting_point, plans) for rank in range(size)]
        first, *_ = [future.result(DEADLINE_S) for future in pending]
    return first


def of_one_process(made: Plan) -> Any:
    policy, _ = load_policy(made.config.model_name_or_path, lora=made.config.lora, seed=made.config.seed)
    learner = in_process(
        policy, made.objective, MAKE_REFERENCE if made.objective.needs_reference else None, made.config
    )
    return *carry_out(learner, made), learner.parts()


@pytest.fixture(scope="module")
def of_two(tiny_folder: Path) -> dict[str, Any]:
    return dict(zip(CASES, of_ranks(2, [plan(tiny_folder, case) for case in CASES]), strict=True))


@pytest.fixture(scope="module")
def of_four(tiny_folder: Path, of_two: dict[str, Any]) -> dict[str, Any]:
    """Every case, and two that go on from what two ranks saved."""
    plans = {case: plan(tiny_folder, case) for case in CASES}
    for case in ("dpo", "dpo, adapters"):
        plans[f"{case}, resumed"] = replace(plans[case], start=of_two[case][2])
    return dict(zip(plans, of_ranks(4, list(plans.values())), strict=True))


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == [pytest.approx(record, rel=2e-5, abs=2e-6) for record in expected[0]]
    assert found[1] == pytest.approx(expected[1], rel=2e-5, abs=2e-6)
    assert found[2].keys() == expected[2].keys()
    for part, tensors in expected[2].items():
        assert found[2][part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[2][part][name], tensor, rtol=1e-5, atol=1e-6, msg=f"{part}: {name}")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_ranks_do_what_one_process_does(
    case: str, size: int, of_two: dict[str, Any], of_four: dict[str, Any], tiny_folder: Path
) -> None:
    expected = of_one_process(plan(tiny_folder, case))
    assert expected[0][0]["grad_norm"] > 0 and expected[0][2]["loss"] == 0.0  # the plan trains, and has a step without
    assert_same((of_two if size == 2 else of_four)[case], expected)


@pytest.mark.parametrize("case", ["dpo", "dpo, adapters"])
def test_a_checkpoint_of_two_ranks_goes_on_with_four_and_with_one(
    case: str, of_two: dict[str, Any], of_four: dict[str, Any], tiny_folder: Path
) -> None:
    expected = of_one_process(replace(plan(tiny_folder, case), start=of_two[case][2]))
    assert_same(of_four[f"{case}, resumed"], expected)
