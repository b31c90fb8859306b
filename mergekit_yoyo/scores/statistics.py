"""Standard errors of a score, of a difference of two, and of a mean over tasks.

A score is the mean of n items, so its standard error is the sample deviation over sqrt(n), as the
harness reports it. Two models that answered the same items are compared item by item: the standard
error of their difference is that of the mean of the n differences (paired). Where items are not
known the two are taken as independent, sqrt(s_a^2 + s_b^2); models that agree on most items have a
smaller paired error than that, so the unpaired one claims less. Of right and wrong answers to the
same items the exact test of McNemar needs no such approximation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.outside import check_regular, load_json
from mergekit_yoyo.scores.results import UNSTATED, TaskResult

# The metrics that are a share of right answers, whose error follows from the number of items.
_PROPORTIONS = ("acc", "exact_match", UNSTATED)

# A difference counts beyond 95 %.
SIGNIFICANCE = 0.05
MCNEMAR, FISHER, STUDENT = "McNemar's exact test", "Fisher's exact test", "Student's paired t"
NORMAL, RANDOMIZATION = "a normal error", "approximate randomization"
_LARGEST = 1e100  # of an item's score
_DRAWS = 100_000

ItemKey = tuple[int, str | None]


@dataclass(frozen=True)
class Difference:
    """a - b, and how sure it is.

    value: a - b. stderr: its standard error, None where unknown. items: the pairs it was taken
    from, None where unpaired. p_value: how likely one at least as large is between models that are
    equally good (two-sided); None where unknown. test: which test says so. flips: on how many items
    a is right and b wrong, and the reverse; None where items are not just right or wrong.
    """

    value: float
    stderr: float | None
    items: int | None
    p_value: float | None = None
    test: str = ""
    flips: tuple[int, int] | None = None

    @property
    def paired(self) -> bool:
        return self.items is not None

    @property
    def differs(self) -> bool:
        """Whether the two are told apart beyond 95 %."""
        return self.p_value is not None and self.p_value < SIGNIFICANCE


def is_share(metric: str) -> bool:
    """Whether `metric` is a share of right answers, or unstated and taken for one."""
    return metric.split(",")[0].startswith(_PROPORTIONS)


def mean_stderr(values: Sequence[float]) -> float | None:
    """Sample standard deviation over sqrt(n); None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def score_stderr(task: TaskResult, metric: str) -> float | None:
    """The reported standard error, or that of a share of `items` right answers, or None.

    The share's is sqrt(p (1 - p) / (n - 1)): what `mean_stderr` gives for n zeros and ones.
    """
    score = task.metrics[metric]
    if score.stderr is not None:
        return score.stderr
    share = is_share(metric) and 0 <= score.value <= 1
    if not share or task.items is None or task.items < 2:
        return None
    return math.sqrt(score.value * (1 - score.value) / (task.items - 1))


def difference(a: TaskResult, b: TaskResult, metric: str) -> Difference:
    """a - b in `metric`, paired if both have samples of the same items, else unpaired."""
    scores_a, scores_b = item_scores(a, metric), item_scores(b, metric)
    if scores_a and scores_b and scores_a.keys() == scores_b.keys():
        right_or_wrong = {*scores_a.values(), *scores_b.values()} <= {0.0, 1.0}
        gaps = [scores_a[key] - scores_b[key] for key in scores_a]
        return paired_difference(gaps, right_or_wrong=right_or_wrong)
    value = a.metrics[metric].value - b.metrics[metric].value
    stderr_a, stderr_b = score_stderr(a, metric), score_stderr(b, metric)
    if stderr_a is None or stderr_b is None:
        return Difference(value, None, None)
    stderr = math.hypot(stderr_a, stderr_b)
    if is_share(metric) and a.items and b.items:
        counts = [(round(t.metrics[metric].value * n), n) for t, n in ((a, a.items), (b, b.items))]
        return Difference(value, stderr, None, fisher(*counts), FISHER)
    return Difference(value, stderr, None, normal_p(value, stderr), NORMAL)


def paired_difference(gaps: Sequence[float], *, right_or_wrong: bool) -> Difference:
    """The mean of the differences a - b of two or more items, and McNemar's exact test of it, or
    Student's for items that are not just right or wrong."""
    count = len(gaps)
    gained, lost = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    value, stderr = math.fsum(gaps) / count, mean_stderr(gaps)
    if right_or_wrong:
        p_value = mcnemar(gained, lost)
        return Difference(value, stderr, count, p_value, MCNEMAR, (gained, lost))
    if not stderr:  # all differences are the same: only their signs are left to count
        return Difference(value, stderr, count, mcnemar(gained, lost), MCNEMAR)
    from scipy.stats import t

    p_value = 2 * float(t.sf(abs(value) / stderr, count - 1))
    return Difference(value, stderr, count, p_value, STUDENT)


def normal_p(value: float, stderr: float) -> float:
    """How likely a normal error of standard deviation `stderr` is at least as large as `value`."""
    if not stderr:
        return float(not value)
    return math.erfc(abs(value) / stderr / math.sqrt(2))


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Fisher's exact test (two-sided) of two shares, each (right answers, items)."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[right, items - right] for right, items in (a, b)]).pvalue)


def mcnemar(gained: int, lost: int) -> float:
    """The exact test of McNemar: how likely a split of the flipped items at least as uneven as
    `gained` to `lost` is, if each flips either way with probability one half (two-sided).

    Source: Q. McNemar, Psychometrika 12 (1947), with the binomial distribution in place of its
    normal approximation. Without flipped items it is 1.
    """
    from scipy.stats import binomtest

    flipped = gained + lost
    return float(binomtest(gained, flipped, 0.5).pvalue) if flipped else 1.0


def mean_of(values: Sequence[float], stderrs: Sequence[float | None]) -> tuple[float, float | None]:
    """The mean over tasks, and its standard error with the tasks independent of each other."""
    mean = math.fsum(values) / len(values)
    known = [stderr for stderr in stderrs if stderr is not None]
    if len(known) < len(values):
        return mean, None
    return mean, math.hypot(*known) / len(values)


def mean_difference(gaps: Sequence[Difference]) -> Difference:
    """The mean over tasks of their differences.

    Where every item is right or wrong in both models, its p is that of approximate randomization
    (E. Noreen, 1989): each flipped item goes either way by chance, `_DRAWS` times, seeded. Else the
    error is taken for normal.
    """
    value, stderr = mean_of([gap.value for gap in gaps], [gap.stderr for gap in gaps])
    if stderr is None:
        return Difference(value, None, None)
    flips = [gap.flips for gap in gaps if gap.flips]
    if len(flips) < len(gaps):
        return Difference(value, stderr, None, normal_p(value, stderr), NORMAL)
    import numpy as np

    items = np.array([gap.items for gap in gaps])
    flipped = np.array([sum(flip) for flip in flips])
    gained = np.random.default_rng(0).binomial(flipped, 0.5, size=(_DRAWS, len(gaps)))
    drawn = ((2 * gained - flipped) / items).mean(axis=1)
    # A draw that is as uneven as what was seen counts, whatever rounding says.
    uneven = int((np.abs(drawn) >= abs(value) - 1e-12).sum())
    total = sum(gap.items or 0 for gap in gaps)
    return Difference(value, stderr, total, (uneven + 1) / (_DRAWS + 1), RANDOMIZATION)


def item_scores(task: TaskResult, metric: str) -> Mapping[ItemKey, float] | None:
    """The score of each item by (number, hash of the item); None without usable samples.

    Samples whose mean is not the reported score (a metric that is not a mean, or files that do not
    belong together) are not usable.
    """
    if task.samples is None:
        return None
    scores = _item_scores(task.samples, metric)
    if len(scores) < 2:
        return None
    mean = math.fsum(scores.values()) / len(scores)
    return scores if math.isclose(mean, task.metrics[metric].value, abs_tol=1e-6) else None


@lru_cache(maxsize=64)
def _item_scores(path: Path, metric: str) -> dict[ItemKey, float]:
    name = metric.partition(",")[0]
    return {
        item_key(sample): float(sample[name])
        for sample in read_samples(path, metric)
        if isinstance(sample.get(name), int | float) and abs(sample[name]) < _LARGEST
    }


def item_key(sample: Mapping[str, Any]) -> ItemKey:
    """What identifies an item in two runs: its number and, where recorded, its hash."""
    return sample["doc_id"], sample.get("doc_hash")


def read_samples(path: Path, metric: str) -> Iterator[dict[str, Any]]:
    """The harness's samples that count for `metric`, one dictionary an item.

    Raises:
        YoyoError: a line is not a sample.
    """
    wanted = metric.partition(",")[2] or "none"
    check_regular(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            sample = load_json(line, f"{path}, line {number}")
            if not isinstance(sample, dict) or "doc_id" not in sample:
                raise YoyoError(f"{path}, line {number}: not a sample of lm-eval (no doc_id).")
            for part in item_key(sample):
                if isinstance(part, dict | list):
                    raise YoyoError(f"{path}, line {number}: {str(part)[:40]} names no item.")
            if sample.get("filter", "none") == wanted:
                yield sample
