"""The command line itself."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekit_yoyo.cli import COMMANDS, main
from mergekit_yoyo.errors import explain_invalid


def test_an_unknown_command_names_the_nearest():
    result = CliRunner().invoke(main, ["evalute", "./model"])
    assert result.exit_code == 2
    assert result.output == "Error: no command evalute. Did you mean evaluate?\n"


def test_a_command_like_none_is_answered_with_all_of_them():
    result = CliRunner().invoke(main, ["xyzzy"])
    assert result.exit_code == 2
    assert result.output == f"Error: no command xyzzy. Known are {', '.join(COMMANDS)}.\n"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bits: Literal[4, 8]


class Outer(BaseModel):
    name: str | list[str]
    inner: list[Inner] = Field(min_length=1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": 3, "inner": [{"bits": 4}]}, ["name: ", "valid string (got 3)"]),
        ({"inner": [{"bits": 4}]}, ["name: Field required"]),
        ({"name": "a", "inner": [{"bits": 4}, {"bits": "x" * 999}]}, ["inner.1.bits: ", "'xxx"]),
        ({"name": "a", "inner": [{"bits": 4, "bist": 8}]}, ["inner.0.bist: no such field. Did"]),
        ("text", ["valid dictionary"]),
    ],
)
def test_what_pydantic_refuses_is_told_by_its_place_and_cut_short(data, said):
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate(data)
    text = explain_invalid(refused.value, data, Inner.model_fields)
    assert all(part in text for part in said), text
    assert len(text) < 200
    assert "Outer" not in text
    assert "list[str]" not in text


def test_output_that_cannot_be_written_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        for command in (["--help"], ["doctor"]):
            done = subprocess.run(
                [sys.executable, "-m", "mergekit_yoyo", *command],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            assert done.stderr == (
                "Error: a file could not be read or written: No space left on device.\n"
            )


def test_what_shall_happen_at_the_end_of_a_process_happens(tmp_path: Path) -> None:
    """Though the interpreter is not taken apart."""
    told = tmp_path / "told"
    code = (
        "import atexit, sys, pathlib\n"
        f"atexit.register(pathlib.Path({str(told)!r}).touch)\n"
        "from mergekit_yoyo.cli import run\n"
        "sys.argv = ['mergekit-yoyo', '--version']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mergekit-yoyo, version")
    assert told.exists()
