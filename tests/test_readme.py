"""The README's own blocks: the Python example prints what it says, the YAML is the file."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def test_python_example_prints_what_it_says():
    (code,) = [block for block in blocks("python") if "from mergekit_yoyo import fuse" in block]
    said = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.M)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue().splitlines() == said
    assert len(said) == 2


def test_quickstart_yaml_is_the_file():
    shown = next(block for block in blocks("yaml") if "examples/experts/code" in block)
    file = (ROOT / "examples" / "quickstart.yml").read_text()
    assert shown.strip() == "\n".join(
        line for line in file.strip().splitlines() if not line.startswith("#")
    )


def test_named_files_exist():
    named = re.findall(r"\]\((examples/[^)#]+|benchmarks/[^)#]+)\)", README)
    named += re.findall(r"python (benchmarks/\w+\.py)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
