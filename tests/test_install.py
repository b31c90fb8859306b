"""The built wheel in a fresh environment: it works there, and leaves nothing when uninstalled.

The environment reads torch, mergekit and the rest from the running one through a .pth line, so
that nothing but the build backend is downloaded.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from method_fixtures import assert_is_merge, tensors_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
HOOK = "mergekit_yoyo.pth"
PAGE = "mergekit_yoyo/report/page"
KNOWN = "from mergekit.merge_methods import get; print(get('yoyo_fusion').spec.pretty_name)"


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command that must not find the package anywhere but in its own environment."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**clean, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}"
    return done


class Environment:
    """A virtual environment that sees the running one's libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        self.libraries = next(folder.glob("lib/python*/site-packages"))
        seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.libraries / "running.pth").write_text("\n".join(sorted(seen)) + "\n")
        self.bare = self.files()

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def pip(self, *arguments: str | Path) -> None:
        command = (sys.executable, "-m", "pip", "--python", self.python, "-q", *arguments)
        run(*command, cwd=self.folder)

    def __call__(self, *arguments: str | Path) -> str:
        """What Python prints there."""
        return run(self.python, *arguments, cwd=self.folder).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def test_the_wheel_holds_the_hook_beside_the_package_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        hook = archive.read(HOOK).decode()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert HOOK in names
    assert "mergekit_yoyo/py.typed" in names
    roots = {name.split("/")[0] for name in names}
    assert roots == {"mergekit_yoyo", HOOK, wheel.name.split("-py3")[0] + ".dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mergekit_yoyo").rglob("*.py")}
    assert modules <= set(names)
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "mergekit_yoyo").rglob("*.jinja")}
    assert "mergekit_yoyo/finish/card.md.jinja" in templates
    assert templates <= set(names)
    page = {str(path.relative_to(ROOT)) for path in (ROOT / PAGE).iterdir() if path.is_file()}
    assert {Path(name).suffix for name in page} >= {".html", ".css", ".js"}
    assert page <= set(names)
    assert hook == (ROOT / "mergekit_yoyo" / "autoload.pth").read_text()


def test_the_wheel_merges_and_leaves_nothing_behind(wheel: Path, environment: Environment) -> None:
    environment.pip("install", "--no-deps", "--ignore-installed", wheel)
    loaded = environment("-c", "import sys; print(sys.modules['mergekit_yoyo'].__file__)")
    assert loaded.startswith(str(environment.libraries))

    (environment.folder / "examples").symlink_to(ROOT / "examples")
    quickstart = ("./examples/quickstart.yml", "./merged")
    environment("-m", "mergekit.scripts.run_yaml", *quickstart)
    experts = [
        tensors_of(ROOT / "examples" / "experts" / name) for name in ("code", "german", "manual")
    ]
    merged = tensors_of(environment.folder / "merged")
    assert set(merged) == set(experts[0])
    for name, tensor in merged.items():
        assert_is_merge(tensor, [e[name].to(torch.bfloat16) for e in experts], name)

    made = ("examples", "merged", "merged-report.jsonl")  # by us, and by the merge
    produced = {name for name in environment.files() if name.split("/")[0] in made}
    environment.pip("uninstall", "-y", "mergekit-yoyo")
    assert environment.files() - produced == environment.bare


def test_doctor_tells_a_working_hook_from_a_lost_one(
    wheel: Path, environment: Environment, tmp_path: Path
) -> None:
    environment.pip("install", "--no-deps", "--ignore-installed", wheel)
    healthy = environment("-m", "mergekit_yoyo", "doctor")
    assert "ok   merge_method: yoyo_fusion is registered" in healthy
    assert "ok   the start-up hook runs: every mergekit command knows the method" in healthy
    assert f"ok   torch {torch.__version__}" in healthy
    assert "ok   mergekit's plans are repaired: merges by yoyo_fusion lose nothing" in healthy
    assert "ok   devices: cpu" in healthy
    assert "FAIL" not in healthy

    (environment.libraries / HOOK).unlink()
    ill = run(environment.python, "-m", "mergekit_yoyo", "doctor", cwd=tmp_path, check=False)
    assert ill.returncode == 1
    assert "FAIL the start-up hook does not run" in ill.stdout
    assert "--force-reinstall" in ill.stdout
    assert "ok   merge_method: yoyo_fusion is registered" in ill.stdout  # by importing the package


def test_an_editable_install_knows_the_method(environment: Environment) -> None:
    environment.pip("install", "--no-deps", "--ignore-installed", "-e", ROOT)
    where = "import sys; print(sys.modules['mergekit_yoyo'].__file__)"
    assert environment("-c", where).strip() == str(ROOT / "mergekit_yoyo" / "__init__.py")
    assert environment("-c", KNOWN) == "YOYO-Fusion\n"
    environment.pip("uninstall", "-y", "mergekit-yoyo")
    assert environment.files() == environment.bare
