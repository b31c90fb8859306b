"""The start-up hook: what it costs, when it registers, and that it never breaks its host.

Processes run with -S, so that what a hook does is not done already by an installed one.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import mergekit_yoyo

PACKAGE = Path(mergekit_yoyo.__file__).parent
SOURCE = Path(__file__).resolve().parent.parent / "mergekit_yoyo"
HOOK = (SOURCE / "autoload.pth").read_text()
LIBRARIES = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


def python(script: str, *paths: Path | str) -> subprocess.CompletedProcess[str]:
    """Run a script without `site`, with these paths first and the installed libraries after."""
    lines = f"import sys\nsys.path[:0] = {[str(path) for path in (*paths, *LIBRARIES)]!r}\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", lines + script],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_start_of_python_loads_two_small_modules() -> None:
    done = python(
        f"before = set(sys.modules)\nexec({HOOK!r})\nprint(*sorted(set(sys.modules) - before))",
        PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"mergekit_yoyo", "mergekit_yoyo.autoload", "__future__"}
    assert "mergekit_yoyo.autoload" in done.stdout
    assert HOOK.count("\n") == 1  # site runs .pth files line by line
    assert HOOK.startswith("import ")


def test_the_method_appears_with_mergekits_own_and_only_once() -> None:
    done = python(
        f"exec({HOOK!r})\nexec({HOOK!r})\n"
        "from mergekit_yoyo import autoload\n"
        "autoload.install()\n"
        "print(sum(type(finder) is autoload._Finder for finder in sys.meta_path))\n"
        "print('torch' in sys.modules, 'mergekit' in sys.modules)\n"
        "import mergekit.merge_methods.registry as registry\n"
        "print(registry.get('yoyo_fusion').spec.pretty_name)\n"
        "autoload.install()\n"
        "from mergekit_yoyo.method import register\n"
        "register()\n"
        "names = [method.spec.name for method in registry.registered_methods()]\n"
        "print(names.count('yoyo_fusion'), 'linear' in names)\n",
        PACKAGE.parent,
    )
    assert done.stdout.splitlines() == ["1", "False False", "YOYO-Fusion", "1 True"], done.stderr
    assert "does not know" not in done.stderr


def test_importing_the_package_registers_at_once_if_mergekit_is_loaded() -> None:
    done = python(
        "from mergekit import merge_methods\n"
        "def known():\n"
        "    return 'yoyo_fusion' in [m.spec.name for m in merge_methods.registered_methods()]\n"
        "print(known())\n"
        "import mergekit_yoyo\n"
        "print(known())\n"
        "from mergekit_yoyo import autoload\n"
        "print(any(type(finder) is autoload._Finder for finder in sys.meta_path))\n",
        PACKAGE.parent,
    )
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_the_method_may_be_imported_before_mergekit() -> None:
    done = python(
        "from mergekit_yoyo.method import METHOD\n"
        "from mergekit.merge_methods import get\n"
        "print(get('yoyo_fusion') is METHOD)\n",
        PACKAGE.parent,
    )
    assert done.stdout == "True\n", done.stderr
    assert "does not know" not in done.stderr


def test_a_package_that_does_not_import_warns_and_python_starts(tmp_path: Path) -> None:
    (tmp_path / "mergekit_yoyo").mkdir()
    (tmp_path / "mergekit_yoyo" / "__init__.py").write_text("raise RuntimeError('torn')\n")
    done = python(f"exec({HOOK!r})\nprint('started')", tmp_path)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "mergekit-yoyo: its start-up hook failed: RuntimeError('torn')" in done.stderr
    assert "Reinstall or uninstall" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_method_that_does_not_import_warns_and_mergekit_starts(tmp_path: Path) -> None:
    torn = shutil.copytree(PACKAGE, tmp_path / "mergekit_yoyo")
    (torn / "method" / "__init__.py").write_text("raise ImportError('torn')\n")
    done = python(
        f"exec({HOOK!r})\nfrom mergekit import merge_methods\n"
        "print(merge_methods.get('linear').spec.name)",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "linear\n"), done.stderr
    assert "mergekit does not know yoyo_fusion: ImportError('torn')" in done.stderr
    assert "Run `mergekit-yoyo doctor`" in done.stderr


def test_foreign_finders_and_loaders_do_no_harm(tmp_path: Path) -> None:
    """A finder without find_spec, and a loader that cannot be wrapped."""
    (tmp_path / "mergekit").mkdir()
    (tmp_path / "mergekit" / "__init__.py").touch()
    done = python(
        f"exec({HOOK!r})\n"
        "from importlib.machinery import ModuleSpec\n"
        "class Loader:\n"
        "    __slots__ = ()\n"
        "    def create_module(self, spec): return None\n"
        "    def exec_module(self, module): module.name = 'theirs'\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return ModuleSpec(name, Loader()) if name.count('.') == 1 else None\n"
        "class Ancient:\n"
        "    def find_module(self, name, path=None): return None\n"
        "sys.meta_path[1:1] = [Ancient(), Finder()]\n"
        "import mergekit.merge_methods\n"
        "print(mergekit.merge_methods.name)\n",
        tmp_path,
        PACKAGE.parent,
    )
    assert (done.returncode, done.stdout) == (0, "theirs\n"), done.stderr
    assert "mergekit does not know yoyo_fusion" in done.stderr
