"""Texts to measure on: what users name, cut into windows, and what models write themselves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.text import (
    Text,
    Window,
    Writing,
    halves,
    parse_texts,
    read_texts,
    token_windows,
    written_text,
)

EXPERTS = Path(__file__).parents[1] / "examples" / "experts"
PROSE = "All is well that ends well, said the miller. " * 40
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EXPERTS / "code")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.txt"], "expected NAME=PATH, such as code=examples.py; got 'a.txt'"),
        (["=a.txt"], "expected NAME=PATH"),
        (["a= "], "expected NAME=PATH"),
        (["a=1.txt", "a=2.txt"], "two texts have the name a. Rename one"),
    ],
)
def test_texts_are_named(options, message):
    with pytest.raises(YoyoError, match=message):
        parse_texts(options)


def test_names_keep_their_order_and_paths_their_signs():
    assert parse_texts(["b=x=1.txt", " a = y.txt "]) == {"b": Path("x=1.txt"), "a": Path("y.txt")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a few words", "11 characters are too few to measure a model on"),
        ("a.txt", b"\xff" * 500, "expected a text in UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r'line 2: expected an object with "text"'),
        ("a.jsonl", b"{}\n", r'line 1: expected an object with "text"'),
        ("a.jsonl", b"{\n", "line 1: cannot be read: not JSON"),
    ],
)
def test_unusable_texts_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(YoyoError, match=message):
        read_texts({"a": tmp_path / name})


def test_a_text_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(YoyoError, match=r"none\.txt: cannot be read: No such file"):
        read_texts({"a": tmp_path / "none.txt"})


def test_json_lines_are_documents(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": PROSE}) + "\n\n" + json.dumps({"text": "short"}) + "\n")
    assert read_texts({"a": file}) == [Text("a", (PROSE, "short"))]


def test_windows_hold_all_of_the_text_once(tokenizer):
    windows = token_windows(Text("a", (PROSE, PROSE[:100])), tokenizer, 64)
    for number, document in enumerate((PROSE, PROSE[:100])):
        mine = [w for w in windows if w.document == number]
        assert all(w.tokens[0] == tokenizer.bos_token_id for w in mine)
        counted = [w.tokens[position] for w in mine for position in w.positions]
        assert counted == tokenizer(document, add_special_tokens=False)["input_ids"]


def test_as_many_windows_as_wanted_come_from_everywhere(tokenizer):
    text = Text("a", (PROSE,))
    all_of_them = token_windows(text, tokenizer, 64)
    some = token_windows(text, tokenizer, 64, most=4)
    places = [all_of_them.index(window) for window in some]
    assert len(all_of_them) == 29
    assert len(places) == 4
    assert places[0] == 0
    assert places[-1] > len(all_of_them) * 2 // 3


def test_a_text_of_one_window_is_refused(tokenizer):
    with pytest.raises(YoyoError, match=r"a: this text is too short: 1 windows of 4096 tokens"):
        token_windows(Text("a", (PROSE,)), tokenizer, 4096)


def _windows(documents: int, each: int) -> list[Window]:
    return [Window((d, k, 0), ((1, 3),), d) for d in range(documents) for k in range(each)]


def test_halves_are_of_one_size_and_follow_the_seed():
    windows = _windows(1, 21)
    one, other = halves(windows, 3)
    assert sorted([*one, *other], key=windows.index) == windows
    assert abs(len(one) - len(other)) == 1
    assert halves(windows, 3) == (one, other)
    assert halves(windows, 4) != (one, other)


def test_no_document_is_on_both_sides():
    one, other = halves(_windows(9, 5), 0)
    assert not {w.document for w in one} & {w.document for w in other}
    assert min(len(one), len(other)) >= 20
    with pytest.raises(YoyoError, match="one window cannot be split"):
        halves(_windows(1, 1), 0)


def _entropy_and_loss(folder: Path, windows: tuple[Window, ...]) -> tuple[list[float], list[float]]:
    """Mean entropy of the model's next token, and mean loss of the token there, by window."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    entropies, losses = [], []
    for window in windows:
        with torch.no_grad():
            logp = model(torch.tensor([window.tokens])).logits[0].double().log_softmax(-1)
        before = [position - 1 for position in window.positions]
        wanted = [window.tokens[position] for position in window.positions]
        entropies.append(float(-(logp.exp() * logp)[before].sum(-1).mean()))
        losses.append(float(-logp[before, wanted].mean()))
    return entropies, losses


def test_a_model_writes_a_fair_sample_of_itself(tmp_path):
    """At temperature 1, the mean loss of what is written is the mean entropy."""
    model = tmp_path / "code"
    shutil.copytree(EXPERTS / "code", model)
    # a folder's own way of sampling is another distribution
    (model / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "top_k": 2, "temperature": 0.1, "repetition_penalty": 2.0})
    )
    written = written_text(model, tmp_path / "a.jsonl", Writing(samples=40, tokens=96))
    assert len(written.windows) == 40
    assert not written.kept
    assert not written.chat
    entropies, losses = _entropy_and_loss(EXPERTS / "code", written.windows)
    differences = torch.tensor(losses) - torch.tensor(entropies)
    error = float(differences.std() / len(differences) ** 0.5)
    assert error < 0.04
    assert abs(float(differences.mean())) < 4 * error


def test_what_was_written_is_used_again_unless_anything_differs(tmp_path):
    file, model = tmp_path / "deep" / "a.jsonl", tmp_path / "code"
    shutil.copytree(EXPERTS / "code", model)
    writing = Writing(samples=6, tokens=24)
    first = written_text(model, file, writing)
    before = file.read_bytes()
    again = written_text(model, file, writing)
    assert again.kept
    assert again.windows == first.windows
    assert file.read_bytes() == before

    other_seed = written_text(model, file, Writing(samples=6, tokens=24, seed=1))
    assert not other_seed.kept
    assert other_seed.windows != first.windows

    assert written_text(model, file, writing).windows == first.windows
    file.write_bytes(before[: len(before) // 2])  # torn
    assert not written_text(model, file, writing).kept
    assert file.read_bytes() == before

    shutil.copy(EXPERTS / "german" / "model.safetensors", model)  # another model
    assert written_text(model, file, writing).windows != first.windows


def test_a_chat_model_asks_itself_and_answers(tmp_path, tokenizer):
    model = tmp_path / "chat"
    shutil.copytree(EXPERTS / "manual", model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    written = written_text(model, tmp_path / "a.jsonl", Writing(samples=6, tokens=64))
    assert written.chat
    assert len(written.windows) == 6
    for window in written.windows:
        ((begin, end),) = window.counted
        assert end == len(window.tokens)
        asked = tokenizer.decode(window.tokens[:begin])
        assert asked.startswith("<user>")
        assert asked.endswith("</user><assistant>")
        assert len(asked) > len("<user></user><assistant>")


def test_a_template_that_hides_the_user_is_refused(tmp_path):
    model = tmp_path / "chat"
    shutil.copytree(EXPERTS / "manual", model)
    (model / "chat_template.jinja").write_text("{{ messages | length }}")
    with pytest.raises(YoyoError, match="does not show what the user says"):
        written_text(model, tmp_path / "a.jsonl", Writing(samples=2, tokens=16))


def test_a_model_that_says_nothing_is_refused(tmp_path):
    """One whose every token ends the text."""
    model = tmp_path / "mute"
    shutil.copytree(EXPERTS / "manual", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": list(range(258))}))
    with pytest.raises(YoyoError, match="writes nothing by itself: 0 of 4 samples"):
        written_text(model, tmp_path / "a.jsonl", Writing(samples=4, tokens=16))
    assert not (tmp_path / "a.jsonl").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(YoyoError, match="transformers cannot load this causal model"):
        written_text(tmp_path, tmp_path / "a.jsonl", Writing(samples=2, tokens=16))
