"""The example of a card is run as it stands: it loads all of the merge and does what it says."""

import ast
import json
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES, write_family
from family_road import merge_yaml
from finish_fixtures import write_tokenizer
from method_fixtures import fine_tune
from PIL import Image

from mergekit_yoyo.card import read_metadata
from mergekit_yoyo.finish import finish, plan_finish
from mergekit_yoyo.model.use import use_of

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LABELS = {"id2label": {0: "bad", 1: "good", 2: "neither"}}


def plain(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def llava_eyes(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    eyes = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    tokenizer = picture_tokenizer(folder)
    LlavaProcessor(
        eyes,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PICTURE_TEMPLATE,
    ).save_pretrained(folder)


def gemma_eyes(folder: Path) -> None:
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    eyes = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    tokenizer = picture_tokenizer(folder)
    template = PICTURE_TEMPLATE.replace("IMG", "BEGIN")  # as Gemma's own
    Gemma3Processor(eyes, tokenizer, image_seq_length=4, chat_template=template).save_pretrained(
        folder
    )


PICTURE_TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{{ 'IMG ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


def picture_tokenizer(folder: Path) -> Any:
    """The tokenizer of the families with words for a picture and its two ends."""
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    words = values["model"]["vocab"]
    for old, new in {"w60": "IMG", "w58": "BEGIN", "w59": "END"}.items():
        words[new] = words.pop(old)
    file.write_text(json.dumps(values))
    (folder / "chat_template.jinja").unlink()
    special = {"image_token": "IMG", "boi_token": "BEGIN", "eoi_token": "END"}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )


def ears(folder: Path) -> None:
    """Whisper's feature extractor for 32 frames of a second."""
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    WhisperFeatureExtractor(
        feature_size=8, hop_length=500, chunk_length=1, n_fft=1000
    ).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(folder)


def tagged(tag: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "README.md").write_text(f"---\npipeline_tag: {tag}\n---\n# Model\n")

    return write


@dataclass(frozen=True)
class Case:
    """A model to merge, what its card shall load it by, and the task that it names.

    made: a family of `families.FAMILIES`, or a model type, an architecture and its configuration.
    seed: one with which the random model does not end its text at once.
    """

    made: str | tuple[str, str, Mapping[str, Any]]
    loader: str
    task: str | None
    dress: Callable[[Path], None] = lambda folder: None
    said: str = r"."
    class_name: str = ""  # if not the architecture
    seed: int = 0


CASES = {
    "llama": Case("llama", "AutoModelForCausalLM", "text-generation", said=r"w\d|\w"),
    "no chat template": Case("qwen3", "AutoModelForCausalLM", "text-generation", plain),
    "a classifier": Case(
        ("llama", "LlamaForSequenceClassification", {**SMALL, **LABELS}),
        "AutoModelForSequenceClassification",
        "text-classification",
        said=r"^\{'bad': -?\d.*, 'good': -?\d.*, 'neither': ",
    ),
    "classes of tokens": Case(
        ("bert", "BertForTokenClassification", {**SMALL, **LABELS}),
        "AutoModelForTokenClassification",
        "token-classification",
        said=r"^\[\('<unk>', '(bad|good|neither)'\)",
    ),
    "masked": Case(
        ("bert", "BertForMaskedLM", SMALL), "AutoModelForMaskedLM", "fill-mask", said=r"^\['.+'\]$"
    ),
    "from text to text": Case("t5-gated", "AutoModelForSeq2SeqLM", None),
    "embeddings": Case(
        ("qwen3", "Qwen3Model", {**SMALL, "head_dim": 8, "num_key_value_heads": 2}),
        "AutoModel",
        "feature-extraction",
        said=r"^torch.Size\(\[1, 1, 32\]\)$",
    ),
    "embeddings of a causal model": Case(
        "qwen3",
        "AutoModel",
        "feature-extraction",
        tagged("feature-extraction"),
        said=r"^torch.Size\(\[1, 1, 32\]\)$",
        class_name="Qwen3Model",
    ),
    "pictures": Case("llava", "AutoModelForImageTextToText", "image-text-to-text", llava_eyes),
    "pictures, listed as a causal model too": Case(
        "gemma3", "AutoModelForImageTextToText", "image-text-to-text", gemma_eyes, seed=2
    ),
    "pictures without a processor": Case(
        "mistral3", "AutoModelForImageTextToText", "image-text-to-text"
    ),
    "speech": Case(
        "whisper", "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition", ears, seed=1
    ),
}

SCRIPT = r"""
import contextlib, io, json, os, sys, traceback
import torch, transformers
transformers.logging.set_verbosity_error()
for name, folder, architecture, snippet in json.load(sys.stdin):
    printed, error, differing, kind = io.StringIO(), "", [], ""
    space = {}
    try:
        with contextlib.redirect_stdout(printed):
            exec(snippet, space)
        kind = type(space["model"]).__name__
        whole, report = getattr(transformers, kind).from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
        differing = sorted(report["missing_keys"])
        theirs = space["model"].state_dict()
        differing += [k for k, v in whole.state_dict().items() if not torch.equal(v, theirs[k])]
    except Exception:
        error = traceback.format_exc()
    print("RESULT" + json.dumps([name, printed.getvalue(), error, kind, differing]))
"""


def write_model(folder: Path, case: Case) -> str:
    """Write the model of a case and return the name of its architecture."""
    import transformers

    if isinstance(case.made, str):
        write_family(folder, case.made, case.seed)
        architecture = FAMILIES[case.made].architecture
    else:
        model_type, architecture, values = case.made
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **values)
        getattr(transformers, architecture)(config).to(torch.bfloat16).save_pretrained(folder)
        write_tokenizer(folder)
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_token": "w9"}))
    case.dress(folder)
    return architecture


def card_and_snippet(folder: Path) -> tuple[dict[str, Any], str]:
    card = (folder / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return yaml.safe_load(card.split("---\n")[1]), snippet


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """Of each case: its card's front matter, its snippet, the notes, and what a run of it gave."""
    from mergekit.scripts.run_yaml import main

    root = tmp_path_factory.mktemp("use")
    jobs, known = [], {}
    for k, (name, case) in enumerate(CASES.items()):
        place = root / str(k)
        architecture = write_model(place / "a", case)
        inputs = [place / "a", fine_tune(place / "a", place / "b", seed=k)]
        (place / "merge.yml").write_text(merge_yaml(inputs))
        main([str(place / "merge.yml"), str(place / "merged")], standalone_mode=False)
        plan = plan_finish(place / "merged")
        finish(plan)
        metadata, snippet = card_and_snippet(place / "merged")
        known[name] = (place / "merged", metadata, snippet, plan.notes, architecture)
        there = snippet.replace("YOUR-NAME/merged", str(place / "merged"))
        assert there != snippet
        jobs.append((name, str(place / "merged"), architecture, there))
    Image.new("RGB", (40, 30), "red").save(root / "picture.jpg")
    with wave.open(str(root / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(range(256)) * 100)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    results = [json.loads(line[6:]) for line in done.stdout.splitlines() if line[:6] == "RESULT"]
    assert len(results) == len(jobs), done.stderr
    return {name: (*known[name], *rest) for name, *rest in results}


@pytest.mark.parametrize("name", CASES)
def test_the_cards_example_runs(ran: Mapping[str, tuple[Any, ...]], name: str) -> None:
    case = CASES[name]
    _, metadata, snippet, notes, architecture, printed, error, kind, differing = ran[name]
    assert error == "", snippet
    assert f"model = {case.loader}.from_pretrained(name" in snippet
    assert kind == (case.class_name or architecture)
    assert differing == []
    assert re.search(case.said, printed), printed
    assert metadata.get("pipeline_tag") == case.task
    told = [note for note in notes if "its example is of text alone" in note]
    assert len(told) == (name == "pictures without a processor")


def test_a_classifier_keeps_its_head(ran: Mapping[str, tuple[Any, ...]]) -> None:
    from transformers import LlamaForSequenceClassification

    folder, *_, printed, _, _, _ = ran["a classifier"]
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype="auto")
    scores = model(torch.tensor([[3]])).logits[0].tolist()  # "Hello" is no word of the tokenizer
    assert ast.literal_eval(printed) == dict(zip(("bad", "good", "neither"), scores, strict=True))


@pytest.mark.parametrize(
    ("inputs_say", "card_says", "task", "said"),
    [
        ("text-generation", None, "text-classification", "of the inputs .* text-classification is"),
        ("text-classification", None, "text-classification", None),
        ("translation", None, "translation", None),  # transformers has no such task
        (None, "text-generation", "text-generation", "of the card .* kept, since the card is you"),
        (None, "text-classification", "text-classification", None),
    ],
)
def test_pipeline_tag_agrees_with_the_architecture(
    ran: Mapping[str, tuple[Any, ...]],
    tmp_path: Path,
    inputs_say: str | None,
    card_says: str | None,
    task: str,
    said: str | None,
) -> None:
    merged, *_ = ran["a classifier"]
    for name in ("a", "b", "merged"):
        shutil.copytree(merged.parent / name, tmp_path / name)
    (tmp_path / "merged" / "README.md").unlink()
    if inputs_say:
        tagged(inputs_say)(tmp_path / "a")
    if card_says:
        tagged(card_says)(tmp_path / "merged")
    file = tmp_path / "merged" / "mergekit_config.yml"
    file.write_text(file.read_text().replace(str(merged.parent), str(tmp_path)))
    plan = plan_finish(tmp_path / "merged")
    assert read_metadata(plan.files["README.md"].decode())["pipeline_tag"] == task
    told = [note for note in plan.notes if "card: pipeline_tag" in note]
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])


@pytest.mark.parametrize(
    ("model_type", "architecture", "loader", "task"),
    [
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "ImageTextToText", "image-text-to"),
        ("glm4v", "Glm4vForConditionalGeneration", "ImageTextToText", "image-text-to-text"),
        ("llama4", "Llama4ForConditionalGeneration", "ImageTextToText", "image-text-to-text"),
        ("gemma4_text", "Gemma4ForCausalLM", "CausalLM", "text-generation"),
        ("bart", "BartForConditionalGeneration", "Seq2SeqLM", "None"),
        ("wav2vec2", "Wav2Vec2ForCTC", "CTC", "automatic-speech-recognition"),
        ("vit", "ViTForImageClassification", "ImageClassification", "image-classification"),
        ("bert", "BertForQuestionAnswering", "QuestionAnswering", "None"),
        ("gemma3", "Gemma3ForCausalLM", "Gemma3ForCausalLM", "None"),  # in no auto class
    ],
)
def test_the_class_is_the_one_that_transformers_lists(
    model_type: str, architecture: str, loader: str, task: str
) -> None:
    use = use_of({"model_type": model_type, "architectures": [architecture]})
    assert use.loader.removeprefix("AutoModelFor") == loader
    assert str(use.task).startswith(task)
