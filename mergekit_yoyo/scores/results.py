"""What a benchmark run left behind, in one shape; what it does not say is None, never a guess."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_yoyo.scores.quantities import Measure, MeasureColumn

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
    `exact_match,strict-match`) to scores; `items` is the number of items scored of the `size` that
    the task has, `samples` the harness's JSON Lines file with the score of each.
    """

    metrics: Mapping[str, Score]
    items: int | None = None
    size: int | None = None
    version: str | None = None
    shots: int | None = None
    lower_is_better: frozenset[str] = frozenset()
    dataset: tuple[str, str | None, str | None] | None = None
    samples: Path | None = None

    @property
    def limited(self) -> bool:
        """Whether only a part of the task was scored (`--limit`), as far as that is recorded."""
        return self.items is not None and self.size is not None and self.items < self.size


@dataclass(frozen=True)
class ModelResult:
    """One row to be: a model (in one quantization) and its tasks.

    `chat_template` is None where the input does not say whether one was applied; `model` is what
    the run was given to load (a folder or a Hub name), None where unknown. `measures`: what was
    measured beside the tasks.
    """

    name: str
    source: Path
    tasks: Mapping[str, TaskResult]
    model: str | None = None
    quantization: str | None = None
    chat_template: bool | None = None
    harness: str | None = None
    date: float = 0.0
    measures: Mapping[MeasureColumn, Measure] = field(default_factory=dict)
