"""The reward model: the score of a plain forward pass, whatever shares the batch; refusals instead of silent zeros."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kit.models.reward_model import RewardModel
from kit.models.tokenizer import build_tokenizer
from kit.rewards import score

TINY: dict[str, Any] = {
    "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0, "num_labels": 1,
}  # fmt: skip
USER = {"role": "user", "content": "Hi"}
CONVERSATIONS = [
    ([USER], [{"role": "assistant", "content": "Hello there."}]),
    ([USER], [{"role": "assistant", "content": ""}]),
    ([{"role": "system", "content": "Be short."}, USER], [{"role": "assistant", "content": "Yes? " * 9}]),
    ([USER], [{"role": "assistant", "content": "ok"}]),
    ([{"role": "user", "content": "A longer question, is it not?"}], [{"role": "assistant", "content": "ok"}]),
]
PLAIN = [("25+39=", "64"), ("1+1=", ""), ("25+39+15=", "25+39=64;64+15=79;79"), ("a", "b"), ("7", "8")]


def save(folder: Path, architecture: str = "Llama", tokenizer: dict[str, Any] | None = None, **changes: Any) -> Path:
    """An untrained classifier and the embedded models' tokenizer, whose attributes `tokenizer` overrides."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**(TINY | changes))
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(folder)
    built = build_tokenizer()
    for name, value in (tokenizer or {}).items():
        setattr(built, name, value)
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reward"))


def by_hand(model: PreTrainedModel, ids: list[int]) -> float:
    """The score of a decoder's classifier: its head's output at the last token, by one pass over this text alone."""
    hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return (hidden[0, -1] @ model.score.weight[0]).item()


def columns_of(pairs: list[tuple[Any, Any]]) -> dict[str, list[Any]]:
    return {"prompts": [prompt for prompt, _ in pairs], "completions": [completion for _, completion in pairs]}


def test_scores_equal_a_forward_pass_by_hand_over_the_templated_conversation(folder: Path) -> None:
    reward = RewardModel(str(folder), batch_size=2)
    tokenizer = build_tokenizer()
    expected = []
    for prompt, completion in CONVERSATIONS:  # the template written out: <|role|>content<|end|>
        text = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in [*prompt, *completion])
        expected.append(by_hand(reward.model, tokenizer(text)["input_ids"]))
    assert reward(**columns_of(CONVERSATIONS)) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == len(expected)  # so a wrong order would show


def test_scores_of_plain_prompts_are_those_of_prompt_and_completion_joined(folder: Path) -> None:
    reward = RewardModel(str(folder), batch_size=3)
    expected = [by_hand(reward.model, build_tokenizer()(prompt + text)["input_ids"]) for prompt, text in PLAIN]
    assert reward(**columns_of(PLAIN)) == pytest.approx(expected, abs=1e-5)


def test_a_string_completion_of_a_conversation_is_the_assistants_message(folder: Path) -> None:
    reward = RewardModel(str(folder))
    as_messages = reward(**columns_of(CONVERSATIONS))
    as_strings = reward(**columns_of([(prompt, completion[0]["content"]) for prompt, completion in CONVERSATIONS]))
    assert as_strings == as_messages


@pytest.mark.parametrize(
    "architecture, changes",
    [
        ("Llama", {}),
        ("Llama", {"pad_token_id": None}),  # then the tokenizer's is used
        ("Llama", {"pad_token_id": 7}),  # the model looks for another padding token than its tokenizer's
        ("GPT2", {"n_positions": 128}),  # learned positions: padding on the left would shift them
        ("Bert", {}),  # attends to both sides: padding must be masked
    ],
)
def test_score_does_not_depend_on_the_batch(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    model = str(save(tmp_path, architecture, **changes))
    alone, pairs = RewardModel(model, batch_size=1), RewardModel(model, batch_size=2)
    together = RewardModel(model, batch_size=16)
    for examples in (CONVERSATIONS, PLAIN):
        expected = [value for pair in examples for value in alone(**columns_of([pair]))]
        assert alone(**columns_of(examples)) == pytest.approx(expected, abs=1e-5)
        assert pairs(**columns_of(examples)) == pytest.approx(expected, abs=1e-5)
        assert together(**columns_of(examples)) == pytest.approx(expected, abs=1e-5)
        assert together(**columns_of(examples[::-1])) == pytest.approx(expected[::-1], abs=1e-5)


def test_plain_text_gets_the_special_tokens_that_the_tokenizer_adds_and_a_template_none(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    save(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 1)]
    )
    tokenizer.save_pretrained(tmp_path)
    reward = RewardModel(str(tmp_path))
    inner = build_tokenizer()
    assert reward(["a"], ["b"]) == pytest.approx([by_hand(reward.model, [1, *inner("ab")["input_ids"]])], abs=1e-5)
    templated = inner("<|user|>Hi<|end|><|assistant|>ok<|end|>")["input_ids"]
    assert reward([[USER]], ["ok"]) == pytest.approx([by_hand(reward.model, templated)], abs=1e-5)


def test_the_kit_combines_it_and_hears_how_much_was_cut(folder: Path) -> None:
    reward, logged = RewardModel(str(folder), max_length=12, name="tiny_judge"), {}
    totals, by_function = score(
        [reward], [2.0], **columns_of(PLAIN), completion_ids=[[1]] * 5, columns={"task": ["chat"] * 5},
        log_metric=lambda name, value: logged.update({name: value}),
    )  # fmt: skip
    assert list(by_function) == ["tiny_judge"]
    assert totals == pytest.approx([2 * value for value in by_function["tiny_judge"] if value is not None])
    assert logged == {"tiny_judge/truncated": 0.2}  # one of five has more than 12 characters, a token each
    assert reward.metrics() == {"scored": 5, "truncated": 1}


def test_what_is_too_long_loses_the_tokens_after_its_first(folder: Path) -> None:
    reward = RewardModel(str(folder), max_length=6)
    ids = build_tokenizer()("abcdefghij")["input_ids"]
    expected = by_hand(reward.model, [ids[0], *ids[-5:]])
    assert reward(["abcd"], ["efghij"]) == pytest.approx([expected], abs=1e-5)
    assert expected != 0.0
    assert reward.metrics() == {"scored": 1, "truncated": 1}
    assert reward(["abc"], ["def"]) == pytest.approx([by_hand(reward.model, ids[:6])], abs=1e-5)
    assert reward.metrics() == {"scored": 2, "truncated": 1}  # six tokens are not too many


def test_the_default_limit_is_the_least_that_model_and_tokenizer_take(tmp_path: Path, folder: Path) -> None:
    assert RewardModel(str(folder)).max_length == 128
    assert RewardModel(str(save(tmp_path, tokenizer={"model_max_length": 20}))).max_length == 20


def test_no_dropout_no_gradients_and_the_dtype_asked_for(tmp_path: Path) -> None:
    reward = RewardModel(str(save(tmp_path, "GPT2", embd_pdrop=0.9, resid_pdrop=0.9)), dtype="bfloat16")
    assert {p.dtype for p in reward.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in reward.model.parameters())
    assert reward(**columns_of(PLAIN)) == reward(**columns_of(PLAIN))


def test_nothing_to_score_is_an_empty_list(folder: Path) -> None:
    assert RewardModel(str(folder))([], [], log_metric=lambda name, value: pytest.fail("nothing to log")) == []


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_safetensors(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def without_tokenizer(folder: Path) -> Path:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


def cut_short(folder: Path) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return folder


def without_head(folder: Path) -> Path:
    change_weights(folder, lambda weights: weights.pop("score.weight"))
    return folder


def with_remote_code(folder: Path) -> Path:
    change_config(folder, model_type="custom", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('this must not run')")
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], type[Exception], str]] = {
    "no such folder": (lambda f: f / "none", {}, FileNotFoundError, "correct the name, or download it"),
    "a name that is not in the cache": (lambda f: Path("nobody/nothing"), {}, FileNotFoundError, "name on the hub"),
    "no tokenizer": (lambda f: without_tokenizer(save(f)), {}, FileNotFoundError, "expected a tokenizer beside"),
    "half a file": (lambda f: cut_short(save(f)), {}, ValueError, "expected whole safetensors"),
    "no safetensors": (lambda f: without_safetensors(save(f)), {}, FileNotFoundError, "safetensors"),
    "three labels": (lambda f: save(f, num_labels=3), {}, ValueError, "one output, got .* with num_labels=3"),
    "two labels, as by default": (lambda f: save(f, num_labels=2), {}, ValueError, "an absent setting counts as 2"),
    "no head": (lambda f: without_head(save(f)), {}, ValueError, r"got none for \['score.weight'\]"),
    "no padding token": (
        lambda f: save(f, pad_token_id=None, tokenizer={"pad_token": None}), {}, ValueError, "expected a padding token"
    ),
    "an unknown padding token": (save, {"pad_token": "<none>"}, ValueError, "name another"),
    "an empty batch size": (save, {"batch_size": 0}, ValueError, "batch_size of at least 1, got 0"),
    "too many tokens": (save, {"max_length": 129}, ValueError, "from 2 to the model's 128 positions, got 129"),
    "too few tokens": (save, {"max_length": 1}, ValueError, "got 1"),
    "code from the hub": (lambda f: with_remote_code(save(f)), {}, ValueError, "contains custom code"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_or_setting_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks whether to run a model's code may do so
    make, settings, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        RewardModel(str(make(tmp_path)), **settings)


def test_a_padding_token_can_be_named_where_there_is_none(tmp_path: Path) -> None:
    model = str(save(tmp_path, pad_token_id=None, tokenizer={"pad_token": None}))
    reward = RewardModel(model, pad_token="<|system|>")
    expected = [by_hand(reward.model, build_tokenizer()(prompt + text)["input_ids"]) for prompt, text in PLAIN]
    assert reward(**columns_of(PLAIN)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="does not end in the padding token, got one at index 1"):
        reward(["a", "b"], ["c", "d<|system|>"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path, value: float) -> None:
    change_weights(save(tmp_path), lambda weights: weights["score.weight"].fill_(value))
    with pytest.raises(ValueError, match=r"expected finite scores from reward_model, got (nan|-?inf) for completion 0"):
        RewardModel(str(tmp_path))(["a"], ["b"])


def test_messages_without_a_chat_template_are_refused_and_plain_text_is_not(tmp_path: Path) -> None:
    reward = RewardModel(str(save(tmp_path, tokenizer={"chat_template": None})))
    with pytest.raises(ValueError, match="to have a chat template, because the prompts are messages"):
        reward([[USER]], ["ok"])
    assert len(reward(["a"], ["b"])) == 1


TEMPLATES = {  # template -> what is said of it
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}": (
        "to render what the assistant said, got .*Is it so.* for any answer"  # an instruction template
    ),
    "{{ raise_exception('Roles must alternate.') }}": (
        r"to render a conversation of the roles \['user', 'assistant'\], got TemplateError: Roles must alternate"
    ),
    "{% for m in messages %}{{ m['content'] }": "got TemplateSyntaxError",
    "{% for m in messages %}{{ m['text'] | upper }}{{ m['no']['such'] }}{% endfor %}": "got UndefinedError",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_cannot_render_the_completion_is_refused(tmp_path: Path, template: str) -> None:
    reward = RewardModel(str(save(tmp_path, tokenizer={"chat_template": template})))
    with pytest.raises(ValueError, match="expected the chat template of reward_model") as caught:
        reward([[USER]], ["ok"])
    assert re.search(TEMPLATES[template], str(caught.value)), caught.value
    assert len(reward(["a"], ["b"])) == 1  # plain text asks for no template


def test_roles_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    """As Gemma's does with a system message; the template itself is right."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    )
    reward = RewardModel(str(save(tmp_path, tokenizer={"chat_template": template})))
    assert len(reward([[USER]], ["ok"])) == 1
    with pytest.raises(ValueError, match=r"roles \['system', 'user', 'assistant'\], got TemplateError: No system role"):
        reward([[{"role": "system", "content": "Be short."}, USER]], ["ok"])


def test_a_template_is_tried_again_once_it_is_another(tmp_path: Path) -> None:
    reward = RewardModel(str(save(tmp_path)))
    reward([[USER]], ["ok"])
    reward.tokenizer.chat_template = "one text for all"
    with pytest.raises(ValueError, match="for any answer"):
        reward([[USER]], ["ok"])


def test_rows_that_make_no_sense_are_refused(folder: Path) -> None:
    reward = RewardModel(str(folder))
    with pytest.raises(ValueError, match="got 1 for 2 completions"):
        reward(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="empty prompt and completion at index 1"):
        reward(["a", ""], ["b", ""])
    with pytest.raises(TypeError, match="got a string and messages"):
        reward(["a"], [[{"role": "assistant", "content": "b"}]])
    with pytest.raises(TypeError, match="expected a completion as a string or as"):
        reward([[USER]], [[{"role": "assistant", "content": None}]])
    assert reward.metrics() == {"scored": 0, "truncated": 0}
