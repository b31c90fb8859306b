"""Imports run one way, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import mergekit_yoyo

PACKAGE = Path(mergekit_yoyo.__file__).parent

# what each part may import: of the package, and of the large libraries around it
ALLOWED = {
    "algorithm": {"algorithm", "errors"},
    "record": {"record", "algorithm", "errors"},
    "method": {"algorithm", "method", "record", "errors", "mergekit", "transformers", "click"},
    "report": {"report", "record", "errors"},
    "card": {"card", "errors"},
    "model": {"model", "card", "errors", "mergekit", "transformers"},
    "finish": {
        "finish",
        "model",
        "record",
        "report",
        "card",
        "staging",
        "errors",
        "mergekit",
        "transformers",
    },
    "inspection": {
        "inspection",
        "finish",
        "model",
        "method",
        "record",
        "staging",
        "errors",
        "mergekit",
    },
    "mlx": {"mlx", "model", "card", "staging", "errors", "mlx_lm", "transformers"},
    "scores": {"scores", "card", "staging", "seven_tasks", "errors"},
    "evaluation": {
        "evaluation",
        "staging",
        "seven_tasks",
        "errors",
        "lm_eval",
        "mlx_lm",
        "transformers",
    },
}
LARGE = {"mergekit", "transformers", "mlx_lm", "lm_eval", "click"}


def imported_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_parts_import_only_what_lies_below_them():
    wrong = []
    for part, allowed in ALLOWED.items():
        for file in (PACKAGE / part).rglob("*.py"):
            for name in imported_names(file):
                top, *rest = name.split(".")
                used = rest[0] if top == "mergekit_yoyo" and rest else top
                if used == "__version__":
                    continue
                ours = top == "mergekit_yoyo"
                if (ours or used in LARGE) and used not in allowed:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_import_and_help_load_nothing_large():
    probe = (
        "import sys, mergekit_yoyo; from mergekit_yoyo.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch','numpy','mergekit','transformers','mlx','lm_eval')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "finish" in run.stdout
