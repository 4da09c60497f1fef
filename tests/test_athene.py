"""Athene's architecture: published weight names, the score at the last CLS, and no score where there is no CLS."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from kit.models.athene import AtheneClassifier, AtheneRewardModel
from kit.models.reward_model import RewardModel
from kit.models.tokenizer import build_tokenizer

CLS = "<|system|>"  # the embedded tokenizer has no CLS of its own: one of its markers plays it here
CLS_ID = 2
USER = {"role": "user", "content": "Hi"}
PAIRS: list[tuple[Any, Any]] = [
    ([USER], [{"role": "assistant", "content": "Hello there."}]),
    ([USER], [{"role": "assistant", "content": ""}]),
    ([{"role": "user", "content": "A longer question?"}], [{"role": "assistant", "content": "Yes. " * 7}]),
]


def tokenizer_with(**tokens: str | None) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, positions: int = 256) -> Path:
    """A random Llama with a value head, saved as the published model is: by weight names, without the kit's class."""
    config = LlamaConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.3, pad_token_id=None,
        architectures=["CustomAutoModelForSequenceClassification"],
    )  # fmt: skip
    torch.manual_seed(0)
    weights = {f"model.{name}": tensor for name, tensor in LlamaModel(config).state_dict().items()}
    weights["v_head.weight"] = torch.randn(1, 32)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("athene"), tokenizer_with(cls_token=CLS))


def by_hand(folder: Path, ids: list[int], position: int) -> float:
    """`v_head` of the body's last hidden state at one position, from the files alone."""
    weights = load_file(folder / "model.safetensors")
    body = LlamaModel(LlamaConfig.from_pretrained(folder)).eval()
    body.load_state_dict({name[6:]: tensor for name, tensor in weights.items() if name.startswith("model.")})
    with torch.no_grad():
        hidden = body(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return (hidden[0, position] @ weights["v_head.weight"][0]).item()


def ids_of(prompt: list[dict[str, str]], completion: list[dict[str, str]]) -> list[int]:
    """The template written out, and the CLS behind it."""
    text = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in [*prompt, *completion])
    return [*build_tokenizer()(text)["input_ids"], CLS_ID]


def test_the_score_is_that_of_a_plain_forward_pass_at_the_cls(folder: Path) -> None:
    reward = AtheneRewardModel(str(folder), batch_size=2)
    expected = [by_hand(folder, ids_of(*pair), -1) for pair in PAIRS]
    prompts, completions = [p for p, _ in PAIRS], [c for _, c in PAIRS]
    assert reward(prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert [reward([p], [c])[0] for p, c in PAIRS] == pytest.approx(expected, abs=1e-5)  # alone as in a batch
    assert len({round(value, 3) for value in expected}) == len(expected)


def test_the_weights_have_the_published_names(folder: Path) -> None:
    names = set(AtheneRewardModel(str(folder)).model.state_dict())
    assert names == set(load_file(folder / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"model", "v_head"}


def test_the_last_of_several_cls_tokens_is_read(folder: Path) -> None:
    completion = [{"role": "assistant", "content": f"good{CLS}bad"}]  # a completion that spells the token out
    ids = ids_of([USER], completion)
    assert ids.count(CLS_ID) == 2
    assert AtheneRewardModel(str(folder))([[USER]], [completion]) == pytest.approx([by_hand(folder, ids, -1)], abs=1e-5)


def test_the_cls_is_found_where_other_tokens_follow_it(folder: Path) -> None:
    model = AtheneRewardModel(str(folder)).model
    ids = [5, CLS_ID, 6, CLS_ID, 7, 8]
    assert model(torch.tensor([ids])).logits.tolist() == [[pytest.approx(by_hand(folder, ids, 3), abs=1e-5)]]


def test_a_plain_prompt_is_the_users_only_message(folder: Path) -> None:
    reward = AtheneRewardModel(str(folder))
    assert reward(["Hi"], ["Hello there."]) == reward([[USER]], [[{"role": "assistant", "content": "Hello there."}]])


def test_a_text_that_is_cut_keeps_its_cls_and_gets_a_score(folder: Path) -> None:
    reward = AtheneRewardModel(str(folder), max_length=10)
    ids = ids_of(*PAIRS[2])
    expected = by_hand(folder, ids[:1] + ids[-9:], -1)
    assert reward([PAIRS[2][0]], [PAIRS[2][1]]) == pytest.approx([expected], abs=1e-5)
    assert reward.metrics() == {"scored": 1, "truncated": 1}


def test_the_published_limit_is_the_default(tmp_path: Path, folder: Path) -> None:
    assert AtheneRewardModel(str(folder)).max_length == 256  # all that this model can take
    assert AtheneRewardModel(str(save(tmp_path, tokenizer_with(cls_token=CLS), positions=8192))).max_length == 4096


@pytest.mark.parametrize("pad", [None, CLS, "<|end|>"])
def test_padding_that_looks_like_a_cls_or_is_missing_changes_nothing(tmp_path: Path, pad: str | None) -> None:
    save(tmp_path, tokenizer_with(cls_token=CLS, pad_token=pad))
    reward = AtheneRewardModel(str(tmp_path))
    expected = [by_hand(tmp_path, ids_of(*pair), -1) for pair in PAIRS]
    assert reward([p for p, _ in PAIRS], [c for _, c in PAIRS]) == pytest.approx(expected, abs=1e-5)


def test_the_tokenizers_start_token_comes_before_the_templates_as_in_the_published_pipeline(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(cls_token=CLS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 1)]
    )
    save(tmp_path, tokenizer)
    expected = by_hand(tmp_path, [1, *ids_of(*PAIRS[0])], -1)
    assert AtheneRewardModel(str(tmp_path))([PAIRS[0][0]], [PAIRS[0][1]]) == pytest.approx([expected], abs=1e-5)


def test_an_input_without_a_cls_is_an_error_and_not_zero(folder: Path) -> None:
    model = AtheneRewardModel(str(folder)).model
    assert isinstance(model, AtheneClassifier)
    with pytest.raises(ValueError, match=r"expected the CLS token 2, .*, got none in rows \[1\]"):
        model(torch.tensor([[5, CLS_ID], [5, 6]]))
    with pytest.raises(ValueError, match=r"got none in rows \[0\]"):  # masked, it is padding
        model(torch.tensor([[5, CLS_ID]]), torch.tensor([[1, 0]]))


def test_a_tokenizer_without_a_cls_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a tokenizer with a CLS token"):
        AtheneRewardModel(str(save(tmp_path, tokenizer_with())))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    reward = AtheneRewardModel(str(save(tmp_path, tokenizer_with(cls_token=CLS, chat_template=None))))
    with pytest.raises(ValueError, match="expected the tokenizer of athene_reward to have a chat template"):
        reward([[USER]], ["ok"])


def test_weights_without_a_value_head_are_refused(tmp_path: Path) -> None:
    weights = load_file(save(tmp_path, tokenizer_with(cls_token=CLS)) / "model.safetensors")
    del weights["v_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got none for \['v_head.weight'\]"):
        AtheneRewardModel(str(tmp_path))


def test_the_general_reward_model_refuses_athenes_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or AtheneRewardModel for Athene's"):
        RewardModel(str(folder))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "LABEL_0"}, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(ValueError, match=r"got none for \['score.weight'\]"):
        RewardModel(str(tmp_path))


def test_scores_are_finite_numbers_under_their_own_name(folder: Path) -> None:
    reward = AtheneRewardModel(str(folder))
    assert reward.__name__ == "athene_reward"
    assert all(type(value) is float and math.isfinite(value) for value in reward(["a", "b"], ["c", "d"]))
