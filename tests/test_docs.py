"""README and docs: every command, YAML, Python block, link and table of options is real."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
import yaml

from mergekit_yoyo.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M)
    return [code for language, code in found if language in languages]


def commands(name: str) -> list[tuple[str, str]]:
    """Page and arguments of every line in a shell block that runs `name`."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for part in re.split(r"&&|\|\||;", line.partition("  #")[0]):
                    words = part.strip()
                    if words.startswith(f"{name} "):
                        found.append((page.name, words.removeprefix(f"{name} ")))
    return found


@pytest.mark.parametrize(("page", "line"), commands("mergekit-yoyo"))
def test_every_command_line_is_one(page: str, line: str) -> None:
    """Parsed by the command itself, which is not run."""
    name, *arguments = shlex.split(line, comments=True)
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None, f"{page}: no command {name}"
    if {"--help", "-h"} & set(arguments):
        return
    command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(("page", "line"), commands("mergekit-yaml"))
def test_every_line_for_mergekit_is_one(page: str, line: str) -> None:
    from mergekit.scripts.run_yaml import main as theirs

    theirs.make_context("mergekit-yaml", shlex.split(line, comments=True))


def test_every_yaml_is_a_merge_that_mergekit_and_we_accept() -> None:
    from mergekit.config import MergeConfiguration

    from mergekit_yoyo.method import METHOD

    specs = {spec.name: spec for spec in METHOD.spec.parameters}
    merges = 0
    for page in PAGES:
        for block in blocks(page, "yaml", "yml"):
            values = yaml.safe_load(block)
            assert isinstance(values, dict), f"{page.name}: {block}"
            if "merge_method" in values:
                MergeConfiguration.model_validate(values)
                merges += 1
            if values.get("merge_method", "yoyo_fusion") == "yoyo_fusion":
                for name, value in (values.get("parameters") or {}).items():
                    assert name in specs, f"{page.name}: {name}"
                    if not isinstance(value, list | dict):
                        specs[name].validate(value)
    assert merges


def test_every_python_block_compiles_and_its_imports_are_there() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, str(page), "exec")
            lines = re.findall(r"^(?:from|import) mergekit_yoyo.*$", block, flags=re.M)
            exec("\n".join(lines), {})


def test_the_python_example_prints_what_it_says() -> None:
    for page in (PAGES[0], ROOT / "docs" / "method.md"):
        (code,) = [block for block in blocks(page, "python") if "import fuse" in block]
        said = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.M)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {})
        assert out.getvalue().splitlines() == said
        assert len(said) == 2


@pytest.mark.slow
def test_the_examples_from_python_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    line = ["mergekit_yoyo", "merge", "examples/quickstart.yml", "./merged", "--workers", "1"]
    subprocess.run([sys.executable, "-m", *line], check=True, capture_output=True)
    examples = blocks(ROOT / "docs" / "python.md", "python")
    code = "".join(examples)
    said = re.findall(r"^ *print\(.*\)  # (.*)$", code, flags=re.M)
    assert len(said) == code.count("print(")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue().splitlines() == said
    assert "<html" in (tmp_path / "report.html").read_text()


def test_what_is_public_is_listed_documented_and_there() -> None:
    import mergekit_yoyo

    listed = set(dir(mergekit_yoyo)) - {"__version__"}
    assert listed == set(mergekit_yoyo.__all__)
    assert all(getattr(mergekit_yoyo, name) is not None for name in listed)
    package = ROOT / "mergekit_yoyo"
    assert not any(
        (package / name).exists() or (package / f"{name}.py").exists() for name in listed
    )
    with pytest.raises(AttributeError):
        mergekit_yoyo.nothing  # noqa: B018


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_as_the_page_says(shell: str) -> None:
    """click's own completion, by the variable that the page names."""
    page = (ROOT / "docs" / "commands.md").read_text()
    assert f"_MERGEKIT_YOYO_COMPLETE={shell}_source mergekit-yoyo" in page
    words = {"COMP_WORDS": "mergekit-yoyo insp", "COMP_CWORD": "1" if shell != "fish" else "insp"}
    run = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "mergekit-yoyo"],
        env=os.environ | words | {"_MERGEKIT_YOYO_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "inspect" in run.stdout
    assert "scores" not in run.stdout


def test_the_yaml_shown_is_the_file() -> None:
    shown = next(b for b in blocks(PAGES[0], "yaml") if "examples/experts/code" in b)
    file = (ROOT / "examples" / "quickstart.yml").read_text()
    lines = [line for line in file.strip().splitlines() if not line.startswith("#")]
    assert shown.strip() == "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    found = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http:", "https:")):
                continue
            path, _, anchor = link.partition("#")
            goal = (page.parent / path).resolve() if path else page
            if not goal.exists() or (anchor and anchor not in anchors(goal)):
                wrong.append(f"{page.name}: {link}")
        run = re.findall(r"python ((?:benchmarks|\.ci)/\w+\.py)", page.read_text())
        wrong += [f"{page.name}: {name}" for name in run if not (ROOT / name).exists()]
    assert wrong == []


def test_the_readme_is_short_and_its_first_blocks_install_this_checkout() -> None:
    assert len(README.splitlines()) <= 150
    install, tests = blocks(PAGES[0], "sh")[:2]
    assert "pip install -e ." in install
    assert "mergekit-yoyo merge examples/quickstart.yml" in install
    assert 'pip install -e ".[test]"' in tests
    assert "pytest" in tests


def test_the_tables_of_options_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / ".ci" / "tables.py")
    assert spec
    assert spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page, text in tables.pages().items():
        assert page.read_text() == text, f"python .ci/tables.py --write mends {page.name}"


def test_measured_tables_stand_where_their_benchmark_writes_them() -> None:
    """Each `show(..., PAGE, NAME)` of a benchmark has its markers, and each marker a benchmark."""
    written = set()
    for file in (ROOT / "benchmarks").rglob("*.py"):
        for page, name in re.findall(
            r'"(\w[\w-]*\.md)",\s*f?"([\w-]+?)(?:-\{|")', file.read_text()
        ):
            written.add((page, name))
    written |= {("families.md", "families"), ("merging.md", "options")}
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"^<!-- mergekit-yoyo:([\w-]+) -->", page.read_text(), flags=re.M):
            parts = name.split("-")
            known = {(page.name, "-".join(parts[:k])) for k in range(1, len(parts) + 1)}
            assert known & written, f"{page.name}: {name}"


def test_the_checkout_is_what_is_tested() -> None:
    import mergekit_yoyo

    assert Path(mergekit_yoyo.__file__).parent == ROOT / "mergekit_yoyo"
