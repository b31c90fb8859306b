"""What a benchmark run left behind, in one shape; what it does not say is None, never a guess."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Numbers of items of the splits that the harness scores (validation where test labels are hidden).
TEST_SET_SIZES = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "hellaswag": 10042,
    "openbookqa": 500,
    "piqa": 1838,
    "winogrande": 1267,
}
SEVEN_TASKS = tuple(TEST_SET_SIZES)

UNSTATED = "metric?"
"""The metric of a published number whose metric is not given."""


@dataclass(frozen=True)
class Score:
    """One reported number; `stderr` is None where the input has none."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """One task of one model: its metrics and the setup they were measured with.

    `metrics` maps the harness's metric names (filter `none` left out: `acc`, `acc_norm`,
    `exact_match,strict-match`) to scores; `items` is the number of items scored, `samples` the
    harness's JSON Lines file with the score of each.
    """

    metrics: Mapping[str, Score]
    items: int | None = None
    version: str | None = None
    shots: int | None = None
    lower_is_better: frozenset[str] = frozenset()
    dataset: tuple[str, str | None, str | None] | None = None
    samples: Path | None = None


@dataclass(frozen=True)
class ModelResult:
    """One row to be: a model (in one quantization) and its tasks.

    `chat_template` is None where the input does not say whether one was applied; `model` is what
    the run was given to load (a folder or a Hub name), None where unknown.
    """

    name: str
    source: Path
    tasks: Mapping[str, TaskResult]
    model: str | None = None
    quantization: str | None = None
    chat_template: bool | None = None
    harness: str | None = None
    date: float = 0.0


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choices most like `name`, in a sentence, for an error message."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5) or choices[:12]
    return f"Did you mean {', '.join(close)}?" if close else ""
