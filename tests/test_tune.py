"""`mergekit-yoyo tune` from YAML to YAML, on the shipped experts."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.progress import Silent
from mergekit_yoyo.text import Window, Writing, halves
from mergekit_yoyo.tuning import Search, Texts, tune

EXPERTS = Path(__file__).parents[1] / "examples" / "experts"
HELD_OUT = Path(__file__).parents[1] / "examples" / "held_out"
NAMES = ("code", "german", "manual")


def write_yaml(file: Path, *, names: tuple[str, ...] = NAMES, **data: object) -> Path:
    models = [{"model": str(EXPERTS / name)} for name in names]
    file.write_text(yaml.safe_dump({"models": models, "dtype": "bfloat16", **data}))
    return file


def task_arithmetic(file: Path, factor: float = 1.0) -> Path:
    parameters = {"weight": 1.0, "lambda": factor}
    base = str(EXPERTS / "base")
    return write_yaml(file, merge_method="task_arithmetic", base_model=base, parameters=parameters)


def merge(file: Path, folder: Path) -> None:
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(folder), MergeOptions(quiet=True, random_seed=3))


def texts(folder: Path, **files: Path) -> Texts:
    return Texts(files, folder, Writing(samples=20, tokens=40), length=40, most=20)


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with what the experts wrote: once for all tests."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, written):
    """Task arithmetic with a factor that is far too large, tuned by the command."""
    folder = tmp_path_factory.mktemp("tuned")
    file = task_arithmetic(folder / "merge.yml")
    arguments = ["tune", str(file), "-o", str(folder / "tuned.yml"), "--move", "lambda"]
    arguments += ["--samples", "20", "--tokens", "40", "--texts-folder", str(written)]
    run = CliRunner().invoke(main, [*arguments, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    return folder, run


def literal_figure(folder: Path, written: Path) -> tuple[float, float]:
    """Mean over models of KL(model, merge) on the half that reports, in float64, every word."""
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    means, errors = [], []
    for name in NAMES:
        lines = (written / f"{name}.jsonl").read_text().splitlines()[1:]
        windows = [
            Window(tuple(v["tokens"]), tuple(map(tuple, v["counted"])), v["document"])
            for v in map(json.loads, lines)
        ]
        _, reporting = halves(windows, 0)
        assert len(reporting) == 10
        model = AutoModelForCausalLM.from_pretrained(EXPERTS / name, dtype=torch.float64)
        of_samples = []
        for window in reporting:
            ids = torch.tensor([window.tokens])
            with torch.no_grad():
                p, q = (m(ids).logits[0].double().log_softmax(-1) for m in (model, merged))
            kl = (p.exp() * (p - q)).sum(-1)
            of_samples.append(float(np.mean([float(kl[i - 1]) for i in window.positions])))
        means.append(np.mean(of_samples))
        errors.append(np.var(of_samples, ddof=1) / len(of_samples))
    return float(np.mean(means)), math.sqrt(sum(errors)) / len(means)


def test_what_is_reported_is_true_of_mergekits_own_merge(tuned, written, tmp_path):
    folder, run = tuned
    for file, label in (("merge.yml", "as given"), ("tuned.yml", "tuned")):
        merge(folder / file, tmp_path / label)
        mean, error = literal_figure(tmp_path / label, written)
        assert f"{mean:.4f} ± {error:.4f}" in run.stdout
        assert f"  {label:<8}" in (folder / "tuned.yml").read_text()


def test_the_tuned_yaml_has_another_factor_and_says_why(tuned):
    folder, run = tuned
    text = (folder / "tuned.yml").read_text()
    found, given = yaml.safe_load(text), yaml.safe_load((folder / "merge.yml").read_text())
    factor = found["parameters"].pop("lambda")
    given["parameters"].pop("lambda")
    assert found == given
    assert 0.2 < factor < 0.6  # of three models, the mean is at a third
    assert text.startswith(f"# mergekit-yoyo tune\n# Better: lambda: {factor:g} (was 1): KL")
    assert f"Better: lambda: {factor:g} (was 1)" in run.stdout
    assert "more than noise" in run.stdout
    assert "nearness to the models on text of their own. Real text may like" in run.stdout
    for label in ("linear", "tukey", "recall", "recall, base as anchor", "task_arithmetic at"):
        assert label in run.stdout
    assert "at most 40 candidates" in run.stderr


def test_there_is_a_picture_and_nothing_is_left_behind(tuned):
    folder, _ = tuned
    assert (folder / "tuned.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == ["merge.yml", "tuned.png", "tuned.yml"]


def test_a_yaml_that_cannot_be_beaten_is_kept(tuned, written, tmp_path):
    folder, _ = tuned
    best = yaml.safe_load((folder / "tuned.yml").read_text())["parameters"]["lambda"]
    file = task_arithmetic(tmp_path / "merge.yml", factor=best)
    done = tune(
        file,
        tmp_path / "tuned.yml",
        merge,
        texts(written),
        Search(move=["lambda"], beside=False),
    )
    assert not done.outcome.is_better
    assert "The YAML stays as it is" in done.outcome.sentences()[0]
    text = (tmp_path / "tuned.yml").read_text()
    assert text.endswith(file.read_text())
    assert "The YAML stays as it is" in text


class Interrupted:
    """Merges until it has merged so often."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.merged: list[str] = []

    def __call__(self, file: Path, folder: Path) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.merged.append(folder.name)
        merge(file, folder)


def test_an_interrupted_search_goes_on(tmp_path, written):
    file = task_arithmetic(tmp_path / "merge.yml")
    how = Search(move=["density"], candidates=6, beside=False)  # a merge a candidate
    whole = Interrupted(100)
    tune(file, tmp_path / "whole.yml", whole, texts(written), how)

    some = Interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        tune(file, tmp_path / "tuned.yml", some, texts(written), how)
    assert not (tmp_path / "tuned.yml").exists()
    work = tmp_path / ".tuned.yml.tuning"
    with (work / "journal.jsonl").open("a") as journal:
        journal.write('{"key": "torn')  # as a kill leaves it
    told, rest = Told(), Interrupted(100)
    tune(file, tmp_path / "tuned.yml", rest, texts(written), how, progress=told)
    assert "going on: 3 merges were measured before" in told.lines
    assert some.merged + rest.merged == whole.merged
    assert (tmp_path / "tuned.yml").read_text() == (tmp_path / "whole.yml").read_text()
    assert not work.exists()


def test_another_search_is_not_gone_on_with(tmp_path, written):
    file = task_arithmetic(tmp_path / "merge.yml")
    how = Search(move=["density"], beside=False)
    with pytest.raises(KeyboardInterrupt):
        tune(file, tmp_path / "tuned.yml", Interrupted(1), texts(written), how)
    task_arithmetic(file, factor=0.5)
    with pytest.raises(YoyoError, match=r"another search; changed: YAML\. Undo that"):
        tune(file, tmp_path / "tuned.yml", Interrupted(1), texts(written), how)
    fresh = Search(move=["density"], candidates=3, beside=False, fresh=True)
    tune(file, tmp_path / "tuned.yml", merge, texts(written), fresh)


def test_a_budget_is_kept_and_said(tmp_path, written):
    file = task_arithmetic(tmp_path / "merge.yml")
    how = Search(candidates=3, beside=False)
    done = tune(file, tmp_path / "tuned.yml", merge, texts(written), how)
    assert done.outcome.candidates == 3
    assert "ended by its budget (3 candidates)" in " ".join(done.outcome.sentences())
    how = Search(candidates=30, minutes=1e-9, beside=False, fresh=True)
    done = tune(file, tmp_path / "tuned.yml", merge, texts(written), how)
    assert done.outcome.candidates == 1
    assert "ended by its budget (the time given)" in " ".join(done.outcome.sentences())


def test_text_of_the_users_own_is_measured_by_its_loss(tmp_path, written):
    file = task_arithmetic(tmp_path / "merge.yml")
    own = {"code": HELD_OUT / "code.txt", "prose": HELD_OUT / "german.txt"}
    how = Search(move=["lambda"], candidates=8, beside=False)
    done = tune(file, tmp_path / "tuned.yml", merge, texts(written, **own), how)
    outcome = done.outcome
    assert not outcome.by_divergence
    assert list(outcome.given.values) == ["code", "prose"]
    assert outcome.measure == "loss, nats a token"
    assert "give it with --text" not in " ".join(outcome.sentences())
    assert 1.0 < outcome.given.figure.value < 3.0
    assert outcome.best.figure.value <= outcome.given.figure.value


def with_another_tokenizer(folder: Path) -> Path:
    """The German expert, two words of whose vocabulary have changed places."""
    shutil.copytree(EXPERTS / "german", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[70:72]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_different_tokenizers_fall_back_to_the_loss_and_say_so(tmp_path):
    other = with_another_tokenizer(tmp_path / "other")
    file = write_yaml(
        tmp_path / "merge.yml",
        names=("code", str(other)),
        merge_method="linear",
        parameters={"weight": 1.0},
        base_model=str(EXPERTS / "code"),
    )
    told = Told()
    done = tune(
        file,
        tmp_path / "tuned.yml",
        merge,
        texts(tmp_path / "texts"),
        Search(candidates=5, beside=False),
        progress=told,
    )
    assert not done.outcome.by_divergence
    said = "other and code have different tokenizers: a divergence needs one vocabulary"
    assert any(said in line for line in told.lines)
    assert "have different tokenizers" in " ".join((tmp_path / "tuned.yml").read_text().split())


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (
            {"names": ("code",), "merge_method": "yoyo_fusion"},
            [],
            "one model only: there is nothing to weigh against another",
        ),
        (
            {"names": ("code",), "merge_method": "linear", "parameters": {"weight": 1.0}},
            [],
            "linear has nothing to tune here",
        ),
        ({"merge_method": "karcher"}, [], "karcher has nothing to tune here: no option"),
        (
            {"merge_method": "yoyo_fusion"},
            ["--move", "recal_strength"],
            "no option recal_strength that can be moved. Did you mean recall_strength",
        ),
        (
            {"merge_method": "yoyo_fusion"},
            ["--text", "code=words.txt"],
            "words.txt: 11 characters are too few to measure a model on",
        ),
        (
            {"merge_method": "yoyo_fusion"},
            ["--text", "code=short.txt", "--tokens", "400"],
            "code: this text is too short: 1 windows of 400 tokens",
        ),
        ({"merge_method": "yoyo_fusion"}, ["--text", "code"], "expected NAME=PATH"),
        ({"merge_method": "yoyo_fusion"}, ["-o", "merge.yml"], "that is the merge YAML itself"),
        ({"merge_method": "yoyo_fusion"}, ["-o", "words.txt"], "no search of ours wrote it"),
        ({"merge_method": "yoyo_fusion"}, ["-o", "none/x.yml"], "no folder none"),
        ({"merge_method": "yoyo_fusion"}, ["-o", "photo.yml"], "photo.png, which is taken"),
        ({"merge_method": "yoyo_fusion"}, ["-o", "x.png"], "x.png, which is taken"),
        ({"merge_method": "linear"}, ["--by", "layer"], "linear has no strength here"),
        ({"merge_method": "yoyo_fusion"}, ["--device", "cuda:9"], "torch cannot use it here"),
        ({"merge_method": "yoyo_fusion"}, ["--device", "quantum"], "torch cannot use it here"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, monkeypatch, data, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "merge.yml", **data)
    (tmp_path / "words.txt").write_text("a few words")
    (tmp_path / "photo.png").write_bytes(b"mine")
    (tmp_path / "short.txt").write_text("All is well that ends well. " * 9)
    before = sorted(tmp_path.iterdir())
    run = CliRunner().invoke(main, ["tune", "merge.yml", "--quiet", *arguments])
    assert run.exit_code == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(p for p in tmp_path.iterdir() if p.name[0] != ".") == before


def test_an_adapter_is_refused(tmp_path):
    models = [{"model": f"{EXPERTS / 'code'}+{EXPERTS / 'german'}"}, {"model": str(EXPERTS)}]
    file = tmp_path / "merge.yml"
    file.write_text(
        yaml.safe_dump({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    )
    with pytest.raises(YoyoError, match="this is one with a LoRA adapter"):
        tune(file, tmp_path / "t.yml", merge, texts(tmp_path), Search())


def test_two_runs_on_one_file_are_refused(tmp_path, written):
    file = task_arithmetic(tmp_path / "merge.yml")
    how = Search(move=["lambda"], candidates=3, beside=False)

    def meanwhile(_: Path, __: Path) -> None:
        tune(file, tmp_path / "tuned.yml", merge, texts(written), how)

    with pytest.raises(YoyoError, match="another run is searching for this file"):
        tune(file, tmp_path / "tuned.yml", meanwhile, texts(written), how)
