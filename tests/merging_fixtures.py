"""Merges by our command, for tests: in this process, stopped on the way, and compared."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from finish_fixtures import files_of, tensor_bytes

from mergekit_yoyo.cli import main

LISTED = "merge_method: {method}\nmodels:\n{models}"


def merge_yaml(method: str, models: Sequence[Path | str], extra: str = "", each: str = "") -> str:
    listed = "".join(f"- model: {model}\n{each}" for model in models)
    return LISTED.format(method=method, models=listed) + extra


def merge(*arguments: object) -> tuple[int, str]:
    """Status and output of the command in this process."""
    result = CliRunner().invoke(main, ["merge", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def begun(
    file: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: int = 1,
    *,
    fresh: bool = False,
) -> None:
    """A merge that was interrupted as soon as so many parts were in its journal."""
    from mergekit_yoyo.merging import executor

    with monkeypatch.context() as patch:
        append = executor.Journal.append

        def interrupt(journal: executor.Journal, line: object) -> None:
            append(journal, line)
            if len(journal.done) == parts:
                raise KeyboardInterrupt

        patch.setattr(executor.Journal, "append", interrupt)
        options = ["--workers", "1", "--out-shard-size", "20k", *["--fresh"] * fresh]
        result = CliRunner().invoke(main, ["merge", str(file), str(target), *options])
        assert result.exit_code != 0
        assert target.exists() == fresh


def check_same(merged: Path, whole: Path) -> None:
    assert tensor_bytes(merged) == tensor_bytes(whole)
    one, other = files_of(merged), files_of(whole)
    assert one.keys() == other.keys()
    for name in one.keys() - {"README.md"}:  # which has the name of its folder
        assert one[name][1] == other[name][1], name
    assert not [p.name for p in merged.parent.iterdir() if p.name.startswith(".")]
