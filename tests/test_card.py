"""Model cards: marked sections, front matter changed key by key, the schema, what inputs carry."""

import re
from pathlib import Path

import pytest

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError

CARD = """---
# mine
license: apache-2.0   # as the base
my_key: {a: [1, 2]}
tags:
- mine
- "2"
language:
  - en
---
# Title

Text of the user.  
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["", "# Title", "# Title\n", CARD])
def test_a_section_is_appended_then_replaced_and_all_else_kept(text: str, newline: str) -> None:
    text = text.replace("\n", newline)
    once = cards.write_section(text, "scores", "| a |\n| 1 |")
    assert once.startswith(text)
    assert cards.write_section(once, "scores", "| a |\n| 1 |\n") == once
    twice = cards.write_section(once + "after", "scores", "new")
    assert cards.read_section(twice, "scores") == "new"
    start, end = once.index("| a |"), once.index("| 1 |") + len("| 1 |")
    assert twice == once[:start] + "new" + once[end:] + "after"
    assert cards.read_section(twice, "other") is None


@pytest.mark.parametrize(
    "broken",
    [
        "<!-- mergekit-yoyo:x -->\nopen",
        "<!-- /mergekit-yoyo:x -->\n<!-- mergekit-yoyo:x -->",
        "<!-- mergekit-yoyo:x -->a<!-- /mergekit-yoyo:x -->" * 2,
    ],
)
def test_broken_markers_are_refused(broken: str) -> None:
    with pytest.raises(YoyoError, match="expected one <!-- mergekit-yoyo:x --> followed by one"):
        cards.write_section(broken, "x", "new")


def test_only_the_lines_of_changed_keys_are_rewritten() -> None:
    updated = cards.update_metadata(
        CARD, {"tags": ["mine", "merge"], "license": "apache-2.0", "base_model": ["a/b"]}
    )
    assert updated == CARD.replace('- mine\n- "2"\n', "- mine\n- merge\n").replace(
        "  - en\n", "  - en\nbase_model:\n- a/b\n"
    )
    assert cards.update_metadata(updated, {"base_model": ["a/b"]}) == updated
    assert cards.update_metadata(
        updated, {"base_model": None, "tags": ["mine", "2"]}
    ) == CARD.replace('"2"', "'2'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# T\n", "---\nlicense: mit\n---\n# T\n"),
        ("---\n{a: 1}\n---\n", "---\na: 1\nlicense: mit\n---\n"),
        ("---\n# only a comment\n---\n", "---\n# only a comment\nlicense: mit\n---\n"),
        ("---\nlicense: other\n---\n", "---\nlicense: mit\n---\n"),
        ("---\na: 1\r\nb: 2\r\n---\r\nx", "---\r\na: 1\r\nb: 2\r\nlicense: mit\r\n---\r\nx"),
    ],
)
def test_front_matter_of_any_shape_is_updated(text: str, expected: str) -> None:
    assert cards.update_metadata(text, {"license": "mit"}) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("license: Apache 2.0", "license: expected an identifier in small letters"),
        ("license: [mit, MIT]", "license.1: expected an identifier in small letters.*'MIT'"),
        ("license: other", "license_name: expected a name"),
        ("license: 3", "license.*valid string"),
        ("license_name: Qwen License", "license_name"),
        ("base_model: ./models/a", "base_model.*expected a name on the Hub"),
        ("base_model: [https://huggingface.co/a/b]", "base_model.*expected a name on the Hub"),
        ("base_model_relation: merged", "base_model_relation.*'merge'"),
        ("language: english", "language.*ISO 639"),
        ("language: [de, German]", "language.1.*ISO 639"),
        ("language: no", 'write "no" for Norwegian'),
        ("language: [en, no]", 'write "no" for Norwegian'),
        ("pipeline_tag: Text Generation", "pipeline_tag: expected an identifier in small letters"),
        ("tags: [1]", "tags"),
        ("datasets: [./data/x]", "datasets"),
        ("library_name: [mlx]", "library_name"),
        ("model-index: [{name: x}]", "model-index.0.results"),
        (
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {type: d, name: d}, "
            "metrics: [{type: acc, value: }]}]}]",
            "model-index.*expected a value",
        ),
        ("a: [", "not valid YAML"),
        ("- a", "expected `key: value`"),
    ],
)
def test_each_key_is_checked_offline(line: str, message: str) -> None:
    with pytest.raises(YoyoError, match=message):
        cards.check_card(f"---\n{line}\n---\n# T\n")


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        ("license: llama5", ["license: .*no llama5 .*may refuse it. Did you mean llama4, "]),
        ("license: [mit, x-1.0]", ["license: .*no x-1.0 "]),
        ("pipeline_tag: text-generate", ["pipeline_tag: .*no text-generate .*text-generation"]),
        ("license: new\npipeline_tag: newer", ["license: .*no new ", "pipeline_tag: .*no newer "]),
        ("language: [de, pt-BR, zh-Hans, yue, code]", []),
        ("license: mit\npipeline_tag: text-generation", []),
    ],
)
def test_a_word_that_the_hub_may_know_by_now_is_a_note(line: str, notes: list[str]) -> None:
    said = cards.check_card(f"---\n{line}\n---\n# T\n")
    assert len(said) == len(notes)
    for text, pattern in zip(said, notes, strict=True):
        assert re.match(pattern, text), text


def test_a_refused_key_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(YoyoError) as caught:
        cards.check_card("---\nbase_model: [a/b, ./models/a]\n---\n")
    assert "front matter: base_model.1: expected a name on the Hub" in str(caught.value)
    assert "[" not in str(caught.value).split("(got")[0]
    with pytest.raises(YoyoError, match="front matter: base_model: expected a name"):
        cards.check_card("---\nbase_model: ./models/a\n---\n")


@pytest.mark.parametrize("card", ["", "# T\n", "---\n---\n# T\n"])
def test_a_card_without_front_matter_passes_in_silence(
    card: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cards.check_card(card)
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_a_card_file_is_read_as_it_is_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    assert cards.read_card(file) == ""
    file.write_bytes(b"# T\r\n\xc3\xa9")
    assert cards.read_card(file) == "# T\r\né"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(YoyoError, match=r"README\.md: expected a text in UTF-8"):
        cards.read_card(file)


def test_a_full_card_passes_and_keeps_its_users_keys() -> None:
    cards.check_card(CARD)
    cards.check_card(
        "---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\nbase_model: [a/b, c]\n"
        "base_model_relation: merge\nlanguage: [en, zh]\npipeline_tag: text-generation\n"
        "library_name: transformers\ninference: false\nmine: {deep: [1]}\nmodel-index:\n"
        "- name: x\n  results:\n  - task: {type: text-generation}\n"
        "    dataset: {type: a/b, name: b}\n"
        "    metrics: [{type: acc, value: 0.5, name: acc}]\n---\n# T\n"
    )


def test_the_license_is_carried_only_where_the_inputs_agree() -> None:
    apache = {"license": "apache-2.0", "language": ["en"], "pipeline_tag": "text-generation"}
    own = {"license": "other", "license_name": "qwen", "license_link": "LICENSE", "language": "zh"}
    alike = cards.carry({"a": apache, "b": apache})
    assert alike.metadata == apache
    assert cards.carry({"a": own}).metadata == {**own, "language": ["zh"]}
    differ = cards.carry({"a": apache, "b": own})
    assert differ.metadata == {
        "license": "other",
        "license_name": "apache-2.0-and-qwen",
        "language": ["en", "zh"],
        "pipeline_tag": "text-generation",
    }
    assert differ.licenses == {"a": "apache-2.0", "b": "qwen"}
    unknown = cards.carry({"a": apache, "b": None})
    assert "license" not in unknown.metadata
    assert unknown.notes == ["license not set: none is known for b"]
