"""A checkpoint comes back to the bit, or is refused: it is never half read."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kit.checkpoint import (
    CheckpointError,
    Position,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)

POSITION = Position(step=12, sampler_version=9, ref_version=4, drift=(0.1, 1 / 3))
PARTS = {
    "policy": {
        "a.weight": torch.tensor([[0.1, -0.0], [torch.nan, torch.inf]]),
        "b": torch.tensor(3, dtype=torch.int64),
    },
    "sampler": {"a.weight": torch.arange(6.0).view(2, 3).T},  # not contiguous
    "half": {"c": torch.tensor([1.0, 1 / 3], dtype=torch.bfloat16), "empty": torch.zeros(0, 4)},
    "optimizer": {},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, POSITION, PARTS)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_a_checkpoint_comes_back_to_the_bit(saved: Path) -> None:
    position, parts = load_checkpoint(saved)
    assert position == POSITION
    assert parts.keys() == PARTS.keys()
    for name, tensors in PARTS.items():
        assert {k: bits(t) for k, t in parts[name].items()} == {k: bits(t) for k, t in tensors.items()}


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    _, parts = load_checkpoint(save_checkpoint(tmp_path, POSITION, {"policy": {"head": shared, "embedding": shared}}))
    assert parts["policy"]["head"].tolist() == parts["policy"]["embedding"].tolist() == [0, 1, 2, 3]


def test_names_sort_by_step(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        save_checkpoint(tmp_path, Position(step, 0, 0), {}, keep=9)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000003", "step_000020", "step_000100"]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, Position(step, 0, 0), PARTS, keep=2)
        expected = [f"step_{n:06d}" for n in range(max(1, step - 1), step + 1)]
        assert [path.name for path in list_checkpoints(tmp_path)] == expected
    save_checkpoint(tmp_path, Position(6, 0, 0), PARTS, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000006"]


def test_keeping_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        save_checkpoint(tmp_path, POSITION, PARTS, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_not_completed_is_ignored_and_replaced(saved: Path) -> None:
    shutil.copytree(saved, saved.parent / "partial_000015")
    (saved.parent / "partial_000015" / "state.json").unlink()
    assert list_checkpoints(saved.parent) == [saved]
    position, _ = load_checkpoint(save_checkpoint(saved.parent, Position(15, 15, 0), PARTS))
    assert position.step == 15
    assert not list(saved.parent.glob("partial_*"))


def test_saving_a_step_again_replaces_it(saved: Path) -> None:
    save_checkpoint(saved.parent, POSITION, {"policy": {"a": torch.ones(1)}})
    assert load_checkpoint(saved)[1].keys() == {"policy"}


def test_a_folder_without_checkpoints_lists_none(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("name", ["policy", "sampler", "half", "optimizer"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "extended", "empty", "missing"])
def test_a_damaged_tensor_file_is_refused_naming_it(saved: Path, name: str, damage: str) -> None:
    file = saved / f"{name}.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(
            {"flipped": flipped, "truncated": content[:-1], "extended": content + b"x", "empty": b""}[damage]
        )
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(saved)
    assert file.name in str(raised.value) and "expected SHA-256" in str(raised.value)
    assert f"Delete the folder {saved}" in str(raised.value)


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe\x00", b'{"position": {}, "sha256": {}}',
    b'{"position": {"step": 1}, "sha256": {}}', b'{"position": null, "sha256": {}}',
    b'{"position": {"step": 12, "sampler_version": 9, "ref_version": 4}}',
    b'{"position": {"step": 12, "sampler_version": 9, "ref_version": 4}, "sha256": []}',
    b'{"position": {"step": "12", "sampler_version": 9, "ref_version": 4}, "sha256": {}}',
])  # fmt: skip
def test_a_state_that_is_not_what_was_written_is_refused_naming_it(saved: Path, content: bytes) -> None:
    (saved / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_000012.*state\.json.*Delete the folder"):
        load_checkpoint(saved)


def test_a_missing_state_is_refused_naming_it(saved: Path) -> None:
    (saved / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step_000012 has no readable state\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_no_flipped_bit_of_the_state_is_read_as_something_else(saved: Path, bit: int) -> None:
    content = (saved / "state.json").read_bytes()
    expected, parts = load_checkpoint(saved)
    for place in range(len(content)):
        flipped = bytes([content[place] ^ 1 << bit])
        (saved / "state.json").write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            position, found = load_checkpoint(saved)
        except CheckpointError:
            continue
        assert (position, found.keys()) == (expected, parts.keys()), f"byte {place} of {content!r}"


@pytest.mark.parametrize("bit", [0, 7])
def test_no_flipped_bit_of_a_tensor_file_passes(saved: Path, bit: int) -> None:
    file = saved / "half.safetensors"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"half\.safetensors is corrupt"):
            load_checkpoint(saved)


def quadratic(optimizer: torch.optim.Optimizer, weight: torch.Tensor, step: int) -> None:
    """A step on a loss whose gradient changes with the step."""
    optimizer.zero_grad()
    (weight * torch.linspace(-1, 1 + step, weight.numel()).view_as(weight)).sum().backward()
    optimizer.step()


def adam(weights: list[torch.Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights, lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)


def test_an_optimizer_goes_on_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, other = (torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(2))
    optimizer = adam([weight, other])  # `other` gets no gradient, so it has no state
    for step in range(3):
        quadratic(optimizer, weight, step)
    parts = {"optimizer": optimizer_tensors(optimizer), "policy": {"weight": weight, "other": other}}
    _, loaded = load_checkpoint(save_checkpoint(tmp_path, POSITION, parts))
    again = [loaded["policy"][name].requires_grad_() for name in ("weight", "other")]
    resumed = adam(again)
    load_optimizer_tensors(resumed, loaded["optimizer"])
    for step in range(3, 6):
        quadratic(optimizer, weight, step)
        quadratic(resumed, again[0], step)
        assert torch.equal(again[0], weight)


def test_an_optimizer_keeps_its_own_settings(tmp_path: Path) -> None:
    weight = torch.ones(2).requires_grad_()
    optimizer = adam([weight])
    quadratic(optimizer, weight, 0)
    resumed = torch.optim.AdamW([weight], lr=0.7, weight_decay=0.5)
    load_optimizer_tensors(resumed, optimizer_tensors(optimizer))
    assert (resumed.param_groups[0]["lr"], resumed.param_groups[0]["weight_decay"]) == (0.7, 0.5)


def test_an_optimizer_that_never_stepped_has_nothing_to_save(tmp_path: Path) -> None:
    weight = torch.ones(2).requires_grad_()
    assert optimizer_tensors(adam([weight])) == {}
    fresh = adam([weight])
    load_optimizer_tensors(fresh, {})
    quadratic(fresh, weight, 0)
    assert not torch.equal(weight, torch.ones(2))


def test_the_state_can_be_read_by_a_person(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    assert state["position"] == {"step": 12, "sampler_version": 9, "ref_version": 4, "drift": [0.1, 1 / 3]}
    assert state["sha256"].keys() == PARTS.keys()
