"""`inspect` of a file for mergekit-multi: each stage, before any of them is merged."""

import subprocess
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner
from finish_fixtures import write_checkpoint
from method_fixtures import fine_tune, recipe, tensors_of

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection import inspect_stages

ABC = ["./a", "./b", "./c"]
BLEND = "name: blend\n" + recipe(ABC, "dtype: float32\n")


def stack(model: str, end: int = 3, extra: str = "") -> str:
    parts = "".join(
        f"- sources:\n  - {{model: {model}, layer_range: [{first}, {last}]}}\n"
        for first, last in ((0, 2), (1, end))
    )
    return f"merge_method: passthrough\nslices:\n{parts}{extra}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stages")
    base = write_checkpoint(root / "base", "llama", values={"num_hidden_layers": 3})
    for k, name in enumerate("abc"):
        fine_tune(base, root / name, k, 0.01)
    return root


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.slow
def test_later_stages_have_the_shapes_that_mergekit_multi_writes(
    place: Path, tmp_path: Path
) -> None:
    file = tmp_path / "two.yml"
    file.write_text(f"# first\n{BLEND}--- # then\n{stack('blend')}")
    before = sorted(place.rglob("*"))
    seen = inspect_stages(file)
    assert list(seen) == ["blend", "the last stage"]
    assert not any(stage.failed for stage in seen.values())
    assert seen["blend"].reading is not None
    last = seen["the last stage"]
    assert last.of_level("note")[-1] == "its weights are not read: blend is not merged yet"
    assert last.plan is not None
    expected = {task.output_weight.name: last.plan.output_of(task) for task in last.plan.tasks}
    assert sorted(place.rglob("*")) == before
    subprocess.run(
        [
            Path(sysconfig.get_path("scripts")) / "mergekit-multi",
            file,
            *("--intermediate-dir", tmp_path / "stages", "--out-path", tmp_path / "out"),
        ],
        check=True,
        capture_output=True,
    )
    real = tensors_of(tmp_path / "out")
    assert real.keys() == expected.keys()
    for name, tensor in real.items():
        info = expected[name]
        assert info is not None
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype)


def look(tmp_path: Path, text: str) -> tuple[int, str]:
    (tmp_path / "two.yml").write_text(text)
    result = CliRunner().invoke(main, ["inspect", "--quick", str(tmp_path / "two.yml")])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output.replace(f"{tmp_path}/", "")


def test_each_stage_is_shown_by_its_name_in_the_order_of_the_work(tmp_path: Path) -> None:
    status, said = look(tmp_path, f"{stack('blend')}---\n{BLEND}")
    assert status == 0, said
    blend, last = said.index("two.yml, blend: yoyo_fusion"), said.index("two.yml, the last stage: ")
    assert blend < last
    assert "  A  blend: llama, 3 layers" in said
    assert "/blend" not in said  # a path of ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{BLEND}---\n{stack('blend', 5)}", "of blend, which has 3 layers"),
        (f"{BLEND}---\n{stack('blend', extra='dtpye: bfloat16')}", "no key dtpye here"),
        (f"{BLEND}---\n{stack('blned')}", "error: blned: "),
        (f"{BLEND}centre: anchor\n---\n{stack('blend')}", "no key centre here"),
    ],
)
def test_what_is_wrong_with_a_stage_is_said(tmp_path: Path, text: str, said: str) -> None:
    status, output = look(tmp_path, text)
    assert status == 1, output
    assert said in output
    assert "the merge would fail" in output


def test_the_look_ends_with_a_stage_that_would_fail(tmp_path: Path) -> None:
    status, output = look(tmp_path, f"{BLEND}centre: anchor\n---\n{stack('blend')}")
    assert status == 1
    assert "the last stage" not in output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{stack('./a')}---\n{stack('./b')}", "two stages have no name. Give each but the last"),
        (f"{BLEND}---\n{BLEND}", "two stages are called blend"),
        (f"name: ../x\n{stack('./a')}---\n{stack('./b')}", "expected the name of a folder"),
        (f"name: x\n{stack('y')}---\nname: y\n{stack('x')}", "the stages x, y wait for each other"),
        (f"{BLEND}---\nmerge_method: linear\n", "two.yml, stage 2: mergekit would not accept"),
    ],
)
def test_what_mergekit_multi_would_not_accept(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "two.yml").write_text(text)
    with pytest.raises(YoyoError, match=said):
        inspect_stages(tmp_path / "two.yml", quick=True)
