"""Loading, copying and scoring: batched scores equal those of one plain forward pass a rollout, gradients included."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from kit.models.policy import load_policy, score
from kit.models.weights import copy_weights, digest, frozen_copy, weights_of
from kit.types import Rollout
from tests.conftest import ARCHITECTURES, tiny_architecture


def rollout(prompt: list[int], completion: list[int]) -> Rollout:
    return Rollout(tuple(prompt), tuple(completion), (0.0,) * len(completion), (0.0,) * len(completion), "", "stop", 0)


A, B = [3, 21, 22, 15, 33, 1, 4], [3, 25, 1, 4]
BATCHES = {
    "one rollout": [rollout(A, [20, 21, 1])],
    "a shared prompt": [rollout(A, [20, 21, 1]), rollout(A, [23]), rollout(A, [60, 61, 62, 63, 1])],
    "different prompts": [rollout(A, [20, 21, 1]), rollout(B, [23, 1]), rollout([9, 8, 7], [1])],
    "shared and different, mixed": [
        *(rollout(A, [20, 1]), rollout(B, [23])),
        *(rollout(A, [60, 61, 62, 1]), rollout(B, [23, 24, 1])),
    ],
    "prompts of one token": [rollout([4], [20, 21]), rollout([4], [30]), rollout([7], [30, 31, 32])],
    "one token beside many": [rollout([4], [20, 21]), rollout(A, [30, 1]), rollout([4], [5, 6, 7, 8])],
    "the same rollout twice": [rollout(A, [20, 1]), rollout(A, [20, 1])],
}


def model_of(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model, _ = load_policy(str(folder))
    return model.to(dtype)


def plain_scores(model: PreTrainedModel, item: Rollout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of a completion by one forward pass over it and its prompt, without cache or padding."""
    ids = torch.tensor([item.prompt_ids + item.completion_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(item.prompt_ids) - 1 : -1] / temperature
    logprobs = logits - logits.exp().sum(-1, keepdim=True).log()
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs[torch.arange(len(item.completion_ids)), list(item.completion_ids)], entropy


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch", BATCHES)
def test_scores_equal_a_plain_forward_pass_in_values_and_gradients(
    tiny_folder: Path, batch: str, temperature: float
) -> None:
    model, rollouts = model_of(tiny_folder), BATCHES[batch]
    expected = [plain_scores(model, item, temperature) for item in rollouts]
    # Arbitrary, different weights of every token, so that no gradient can hide behind another.
    weights = [torch.linspace(0.3, 1.7, 2 * len(item.completion_ids)).double() + i for i, item in enumerate(rollouts)]
    sum((w[::2] * lp).sum() + (w[1::2] * h).sum() for w, (lp, h) in zip(weights, expected, strict=True)).backward()  # type: ignore[union-attr]
    expected_gradients = gradients(model)
    found = score(model, rollouts, temperature=temperature)
    loss = torch.zeros((), dtype=torch.float64)
    for row, (item, weight, (logprobs, entropy)) in enumerate(zip(rollouts, weights, expected, strict=True)):
        length = len(item.completion_ids)
        assert found.completion_mask[row].tolist() == [i < length for i in range(found.logprobs.shape[1])]
        torch.testing.assert_close(found.logprobs[row, :length], logprobs, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.entropy[row, :length], entropy, rtol=0, atol=1e-9)
        loss = loss + (weight[::2] * found.logprobs[row, :length] + weight[1::2] * found.entropy[row, :length]).sum()
    loss.backward()
    for name, gradient in gradients(model).items():  # Llama's norms round to float32 inside, whatever the model's type
        assert (gradient - expected_gradients[name]).norm() <= 1e-6 * expected_gradients[name].norm(), name


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_other_architectures_equal_a_plain_forward_pass(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    model = tiny_architecture(name)
    copied(tiny_folder, tmp_path)
    model.save_pretrained(tmp_path)
    try:
        loaded, _ = load_policy(str(tmp_path))
        found = score(loaded, BATCHES["shared and different, mixed"])
    except ValueError as refusal:  # the output layer is more than a matrix: to refuse such a model is right as well
        assert name.removesuffix("Text") in str(refusal)
        return
    for row, item in enumerate(BATCHES["shared and different, mixed"]):
        logprobs, entropy = plain_scores(model, item, 1.0)
        torch.testing.assert_close(found.logprobs[row, : len(logprobs)], logprobs, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.entropy[row, : len(entropy)], entropy, rtol=0, atol=1e-4)


def test_order_of_rollouts_does_not_matter(tiny_folder: Path) -> None:
    model, rollouts = model_of(tiny_folder), BATCHES["shared and different, mixed"]
    with torch.no_grad():
        forwards, backwards = score(model, rollouts).logprobs, score(model, rollouts[::-1]).logprobs
    torch.testing.assert_close(forwards, backwards.flip(0), rtol=0, atol=1e-12)


def test_padding_is_zero_and_does_not_count(tiny_folder: Path) -> None:
    with torch.no_grad():
        found = score(model_of(tiny_folder), BATCHES["a shared prompt"])
    assert found.completion_mask.sum(1).tolist() == [3, 1, 5]
    assert bool((found.logprobs[~found.completion_mask] == 0).all())


def test_temperature_one_hundred_is_nearly_uniform(tiny_folder: Path) -> None:
    with torch.no_grad():
        entropy = score(model_of(tiny_folder), BATCHES["one rollout"], temperature=1e6).entropy
    assert entropy.tolist()[0] == pytest.approx([5.564520] * 3, abs=1e-5)  # ln 261, the size of the vocabulary


def test_nothing_to_score_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="rollouts is empty"):
        score(model_of(tiny_folder), [])


def test_a_copy_is_equal_frozen_and_apart(tiny_folder: Path) -> None:
    model = model_of(tiny_folder, torch.float32)
    copy = frozen_copy(model)
    assert digest(weights_of(copy)) == digest(weights_of(model))
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert digest(weights_of(copy)) != digest(weights_of(model))


def test_copying_weights_makes_models_equal_and_measures_the_change(tiny_folder: Path) -> None:
    source, target = model_of(tiny_folder, torch.float32), model_of(tiny_folder, torch.float32)
    with torch.no_grad():
        source.get_parameter("model.layers.0.mlp.up_proj.weight").add_(0.5)  # 48 x 32 numbers
    tensors, delta_norm = copy_weights(weights_of(source), weights_of(target))
    assert digest(weights_of(source)) == digest(weights_of(target))
    assert tensors == len(source.state_dict())
    assert delta_norm == pytest.approx(0.5 * (48 * 32) ** 0.5, rel=1e-6)
    assert copy_weights(weights_of(source), weights_of(target))[1] == 0.0


def test_a_shared_tensor_counts_once_in_the_change(tiny_folder: Path) -> None:
    source, target = model_of(tiny_folder, torch.float32), model_of(tiny_folder, torch.float32)
    with torch.no_grad():
        source.get_parameter("model.embed_tokens.weight").add_(
            0.5
        )  # 261 x 32 numbers, which are also the output layer's
    assert copy_weights(weights_of(source), weights_of(target))[1] == pytest.approx(0.5 * (261 * 32) ** 0.5, rel=1e-6)


def test_copying_between_architectures_is_refused_naming_tensors() -> None:
    with pytest.raises(ValueError, match=r"one architecture; these tensors differ: \['bias'\]"):
        copy_weights(torch.nn.Linear(2, 2).state_dict(), torch.nn.Linear(2, 2, bias=False).state_dict())
    with pytest.raises(ValueError, match=r"these tensors differ: \['weight'\]"):
        copy_weights(torch.nn.Linear(2, 2, bias=False).state_dict(), torch.nn.Linear(3, 2, bias=False).state_dict())


def test_digest_changes_with_a_single_bit() -> None:
    model = torch.nn.Linear(3, 3)
    before = digest(weights_of(model))
    with torch.no_grad():
        model.weight[1, 2] = torch.nextafter(model.weight[1, 2], torch.tensor(torch.inf))
    assert digest(weights_of(model)) != before


def test_digest_distinguishes_zero_from_minus_zero_and_names_from_each_other() -> None:
    weights = {"a": torch.zeros(1), "b": torch.zeros(1)}
    digests = {digest(weights), digest({"a": -torch.zeros(1), "b": torch.zeros(1)})}
    digests.add(digest({"a": torch.zeros(1), "b": -torch.zeros(1)}))
    digests.add(digest({"a": torch.zeros(1), "c": torch.zeros(1)}))
    assert len(digests) == 4


def test_digest_reads_half_precision_and_single_numbers() -> None:
    model = torch.nn.Linear(2, 2).bfloat16()
    model.register_buffer("count", torch.tensor(3.0))
    assert len(digest(weights_of(model))) == 16


def test_loading_gives_evaluation_mode_and_all_tokens(tiny_folder: Path) -> None:
    model, tokenizer = load_policy(str(tiny_folder))
    assert not model.training
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)


def test_a_model_without_padding_token_pads_with_its_end(tiny_folder: Path, tmp_path: Path) -> None:
    copied(tiny_folder, tmp_path, pad_token=None)
    _, tokenizer = load_policy(str(tmp_path))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_a_tokenizer_without_end_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    copied(tiny_folder, tmp_path, eos_token=None)
    with pytest.raises(ValueError, match="no end-of-sequence token, so no completion could ever end"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("kept", [(), ("model.safetensors",), ("config.json",)])
def test_a_folder_without_a_model_is_refused_naming_it(
    tiny_folder: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    for name in kept:
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_policy(str(tmp_path))


def test_a_folder_that_does_not_exist_is_refused_saying_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match=r"'no/such/model'.*data/seed; `make seed` rebuilds it"):
        load_policy("no/such/model")


def test_a_tokenizer_larger_than_the_model_is_refused_saying_what_to_do(tiny_folder: Path, tmp_path: Path) -> None:
    copied(tiny_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 262 tokens and the model 261: resize .*resize_token_embeddings"):
        load_policy(str(tmp_path))


REMEDIES = r"hf download some/model --local-dir FOLDER\) and name the folder; for a gated model, accept its licence"


def test_a_name_that_cannot_be_read_from_the_hub_is_refused_saying_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match=rf"'some/model' is no folder here, and .*connect to.*{REMEDIES}"):
        load_policy("some/model")  # without network, as all tests are


class Gate(BaseHTTPRequestHandler):
    """The hub's answer about a gated model to someone without access."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model some/model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_gated_model_is_refused_saying_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint, hub = f"http://127.0.0.1:{server.server_port}", "huggingface_hub.constants"
        monkeypatch.setattr(f"{hub}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{hub}.ENDPOINT", endpoint)
        monkeypatch.setattr(f"{hub}.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        try:
            with pytest.raises(FileNotFoundError, match=rf"gated repo.*{REMEDIES} and run `hf auth login` first"):
                load_policy("some/model")
        finally:
            server.shutdown()


def copied(source: Path, target: Path, **changes: str | None) -> None:
    """The model's folder with other special tokens."""
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(target)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert all(settings.get(name) == value for name, value in changes.items())
