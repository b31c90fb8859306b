"""Imports run one way, and importing the package is cheap."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mergekit_yoyo

PACKAGE = Path(mergekit_yoyo.__file__).parent

# what every part may import; the terminal is the command line's alone
BOTTOM = {"errors", "install", "outside", "progress", "rejection", "staging"}
# what each part may import besides: of the package, and of the large libraries around it
ALLOWED = {
    "algorithm": {"algorithm"},
    "record": {"record", "algorithm"},
    "method": {
        "algorithm",
        "method",
        "model",
        "planning",
        "record",
        "mergekit",
        "transformers",
        "click",
    },
    "report": {"report", "record"},
    "card": {"card"},
    "model": {"model", "card", "mergekit", "transformers"},
    "planning": {"planning", "model", "mergekit"},
    "text": {"text", "model", "transformers"},
    "finish": {
        "finish",
        "model",
        "planning",
        "record",
        "card",
        "mergekit",
        "transformers",
    },
    "merging": {
        "merging",
        "model",
        "planning",
        "method",
        "record",
        "progress",
        "staging",
        "errors",
        "mergekit",
        "transformers",
    },
    "tuning": {
        "algorithm",
        "tuning",
        "text",
        "model",
        "planning",
        "method",
        "mergekit",
        "transformers",
    },
    "inspection": {
        "algorithm",
        "inspection",
        "model",
        "method",
        "planning",
        "record",
        "mergekit",
    },
    "mlx": {"mlx", "model", "card", "text", "mlx_lm", "transformers"},
    "scores": {"scores", "card", "measured", "seven_tasks"},
    "evaluation": {
        "evaluation",
        "measured",
        "model",
        "seven_tasks",
        "text",
        "lm_eval",
        "mlx_lm",
        "transformers",
    },
}
CAPABILITIES = {
    "inspection",
    "finish",
    "mlx",
    "report",
    "evaluation",
    "scores",
    "merging",
    "tuning",
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
                if (ours or used in LARGE) and used not in allowed | BOTTOM:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_no_capability_imports_another():
    for part in CAPABILITIES:
        assert not ALLOWED[part] & (CAPABILITIES - {part}), part
    used = {
        name.split(".")[1]
        for file in PACKAGE.rglob("*.py")
        if file.relative_to(PACKAGE).parts[0] not in CAPABILITIES | {"cli", "__init__.py"}
        for name in imported_names(file)
        if name.startswith("mergekit_yoyo.")
    }
    assert not used & CAPABILITIES


def test_no_imports_go_in_a_circle():
    modules = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    graph = {}
    for module, file in modules.items():
        names = imported_names(file)
        # `from package import name`: the module `name`, or the package's own `__init__`
        graph[module] = {
            name if name in modules else name.rpartition(".")[0] for name in names
        } & modules.keys() - {module}
    graph = {
        module: {name for name in imported if not module.startswith(f"{name}.")}
        for module, imported in graph.items()
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def test_mergekit_is_imported_without_what_a_merge_seldom_needs() -> None:
    """And what stood in for it gives the real thing when it is asked for."""
    code = (
        "import sys\n"
        "from mergekit_yoyo.merging.importing import import_mergekit\n"
        "import_mergekit()\n"
        "heavy = {'peft', 'transformers.modeling_utils', 'torch._dynamo'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "import mergekit.common, mergekit.architecture.auto, transformers\n"
        "kept = mergekit.common.peft\n"
        "assert kept.PeftModel.__module__ == 'peft.peft_model'\n"
        "import transformers.modeling_utils as real\n"
        "assert transformers.PreTrainedModel is real.PreTrainedModel\n"
        "assert transformers.modeling_utils is real\n"
        "config = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, vocab_size=8,\n"
        "    num_hidden_layers=1, num_attention_heads=1, tie_word_embeddings=True)\n"
        "model = transformers.LlamaForCausalLM(config)\n"
        "found = mergekit.architecture.auto._get_tied_weight_keys(model)\n"
        "assert list(found) == ['lm_head.weight'], found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
