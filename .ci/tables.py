"""The tables in docs that follow from the code: options of the method, and of every command.

python .ci/tables.py            # exits with 1 if docs are out of date
python .ci/tables.py --write    # writes them
"""

import sys
from pathlib import Path

import click

COMMANDS_PAGE = """# Commands

What `mergekit-yoyo COMMAND --help` says. Long work shows bars on a terminal, a few lines in a log.

Your shell completes commands, options and paths after one line in its start-up file:

```sh
eval "$(_MERGEKIT_YOYO_COMPLETE=bash_source mergekit-yoyo)"  # ~/.bashrc
eval "$(_MERGEKIT_YOYO_COMPLETE=zsh_source mergekit-yoyo)"   # ~/.zshrc
_MERGEKIT_YOYO_COMPLETE=fish_source mergekit-yoyo | source   # ~/.config/fish/config.fish
```
"""
DOCS = Path(__file__).resolve().parents[1] / "docs"


def method_options() -> str:
    """The options of `yoyo_fusion`, from their one declaration."""
    from mergekit_yoyo.algorithm.consensuses import CONSENSUSES, OF_ALL
    from mergekit_yoyo.algorithm.options import Choice, Flag, declared

    rows = ["| option | default | values | heeded by | meaning |", "|---|---|---|---|---|"]
    for option in declared():
        if isinstance(option.range, Choice):
            values = ", ".join(f"`{word}`" for word in option.range.words)
        elif isinstance(option.range, Flag):
            values = "`true`, `false`"
        else:
            bound = "above" if option.range.above else "at least"
            values = f"a number {bound} {option.range.lowest:g}"
            values += ", or `auto`" if option.range.auto else ""
        heeding = [name for name, c in CONSENSUSES.items() if option.name in c.options]
        heeded = "all" if option.name in OF_ALL else ", ".join(heeding)
        default = str(option.default).lower()
        rows.append(f"| `{option.name}` | {default} | {values} | {heeded} | {option.meaning} |")
    rows.append(
        "| `weight` | 1 | a number at least 0, of one model or of all | all | how much a model is "
        "[trusted beforehand](#weights-of-models); 0 leaves it out |"
    )
    rows.append(
        "| `report` | none | a path | all | file for the [record of the merge](report.md) |"
    )
    return "\n".join(rows)


def command_options(name: str) -> str:
    """The options of a command, as its `--help` has them."""
    from mergekit_yoyo.cli import main

    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    own = click.Context(command, info_name=name, parent=context)
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(own)
        if record is not None:
            names, text = (part.replace("|", "\\|") for part in record)
            rows.append(f"| `{names}` | {' '.join(text.split())} |")
    first = (command.help or "").strip().split("\n\n")[0]
    usage = " ".join(command.collect_usage_pieces(own))
    return f"`mergekit-yoyo {name} {usage}`\n\n{' '.join(first.split())}\n\n" + "\n".join(rows)


def pages() -> dict[Path, str]:
    """Every page with tables of ours, as it should be."""
    from mergekit_yoyo.card.sections import write_section
    from mergekit_yoyo.cli import COMMANDS

    merging = DOCS / "merging.md"
    commands = COMMANDS_PAGE
    for name in COMMANDS:
        commands += f"\n## {name}\n\n{command_options(name)}\n"
    return {
        merging: write_section(merging.read_text(), "options", method_options()),
        DOCS / "commands.md": commands,
    }


def main(write: bool) -> int:
    """Compare, or write; gives the exit status."""
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text() != text]
    for page in stale:
        print(f"{page}: {'written' if write else 'out of date: python .ci/tables.py --write'}")
        if write:
            page.write_text(pages()[page])
    return int(bool(stale) and not write)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
