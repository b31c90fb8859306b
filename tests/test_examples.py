"""The recipes in examples/: mergekit reads them all, and the ones on shipped models run."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from finish_fixtures import run_mergekit
from mergekit.config import MergeConfiguration, evaluate_setting
from mergekit.merge_methods import get
from mergekit.scripts.multimerge import load_config
from method_fixtures import ROUNDED_TWICE, Tensors, assert_is_merge, tensors_of
from recall_reference import recall

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yml"))
EXPERTS = ("code", "german", "manual")
SOME_TENSORS = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")


def parse(example: Path) -> dict[str | None, MergeConfiguration]:
    """The merges of a file by name, read with the parser of the command it is for."""
    text = example.read_text()
    if "mergekit-multi" in text:
        return load_config(text, "./stages")[0]
    return {None: MergeConfiguration.model_validate(yaml.safe_load(text))}


def inputs_of(*models: str) -> list[Tensors]:
    folders = (ROOT / "examples" / "experts" / model for model in models)
    return [
        {name: t.to(torch.bfloat16) for name, t in tensors_of(folder).items()} for folder in folders
    ]


def test_the_promised_examples_are_there() -> None:
    names = {example.stem for example in EXAMPLES}
    assert names >= {"quickstart", "anchored", "gradients", "recall", "two-stage", "yoyo-v5"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_mergekit_reads_it_and_drops_no_option(example: Path) -> None:
    for merge in parse(example).values():
        known = {parameter.name: parameter for parameter in get(merge.merge_method).spec.parameters}
        listed = [*(merge.models or []), *(merge.slices or [])]
        for settings in (merge.parameters, *(entry.parameters for entry in listed)):
            for name, setting in (settings or {}).items():
                assert name in known, "mergekit drops unknown options without a word"
                for tensor in SOME_TENSORS:
                    evaluate_setting(tensor, setting, 0.5, validate=known[name].validate)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_local_paths_cannot_be_taken_for_names_on_the_hub(example: Path) -> None:
    for merge in parse(example).values():
        for model in merge.referenced_models():
            path = model.model.path
            if path.startswith("./stages/"):
                continue
            if path.startswith((".", "/")):
                assert path.startswith("./")
                assert (ROOT / path / "config.json").is_file()
            else:
                assert re.fullmatch(r"[\w.-]+/[\w.-]+", path)
                assert not (ROOT / path).exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_says_how_to_run_it(example: Path) -> None:
    command = next(line for line in example.read_text().splitlines() if "mergekit-" in line)
    assert f"examples/{example.name} " in command
    outputs = [word for word in command.split() if "merged" in word]
    assert outputs
    assert all(word.startswith("./") for word in outputs)


def test_anchored_and_gradients_run_on_the_shipped_experts(tmp_path: Path) -> None:
    names = ("anchored", "gradients", "recall")
    jobs = {tmp_path / name: (ROOT / "examples" / f"{name}.yml").read_text() for name in names}
    failed = run_mergekit(jobs, ROOT)
    assert not any(failed.values()), failed

    with_base = inputs_of(*EXPERTS, "base")  # mergekit adds base_model after the models
    for name, tensor in tensors_of(tmp_path / "anchored").items():
        taken = [tensors[name] for tensors in with_base]
        assert_is_merge(tensor, taken, name, center="anchor", anchor=3)

    experts = inputs_of(*EXPERTS)
    merge = parse(ROOT / "examples" / "gradients.yml")[None]
    known = {parameter.name: parameter for parameter in get("yoyo_fusion").spec.parameters}
    for name, tensor in tensors_of(tmp_path / "gradients").items():
        layer = re.search(r"layers\.(\d+)\.", name)
        depth = int(layer[1]) / 5 if layer else 0.0
        options = {
            option: evaluate_setting(name, setting, depth, validate=known[option].validate)
            for option, setting in merge.parameters.items()
        }
        assert_is_merge(tensor, [tensors[name] for tensors in experts], name, **options)

    for name, tensor in tensors_of(tmp_path / "recall").items():
        taken = [tensors[name].double().numpy() for tensors in experts]
        kind = "embedding" if "embed" in name else "vector" if tensor.ndim == 1 else "linear"
        expected = torch.from_numpy(recall(taken, kind=kind).merge)
        # recall works in float32 here: an element near zero is off by its neighbors' round-off
        hidden = float(expected.square().mean().sqrt()) * 2**-8 / 20
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-8, atol=hidden)
        off = (tensor != expected.to(torch.bfloat16)).sum().item()
        assert off <= max(1, ROUNDED_TWICE * tensor.numel()), name


def test_two_stages_run_on_the_shipped_experts(tmp_path: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "mergekit-multi"
    stages, out = tmp_path / "stages", tmp_path / "merged"
    done = subprocess.run(
        [command, "examples/two-stage.yml", "--intermediate-dir", stages, "--out-path", out],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    blend, merged, experts = tensors_of(stages / "blend"), tensors_of(out), inputs_of(*EXPERTS)
    assert set(blend) == set(experts[0])
    for name, tensor in blend.items():
        assert_is_merge(tensor, [tensors[name] for tensors in experts], name, rescale="median")
    taken = [0, 1, 2, 3, 2, 3, 4, 5]
    for name, tensor in merged.items():
        source = re.sub(r"layers\.(\d+)", lambda found: f"layers.{taken[int(found[1])]}", name)
        assert torch.equal(tensor, blend[source]), name
    assert len(merged) == len(blend) + 2 * 9
