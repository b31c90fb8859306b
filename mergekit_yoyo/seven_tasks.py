"""The seven tasks of the published tables, as lm-evaluation-harness has them."""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A task's number of scored items, and its data on the Hub: repository, configuration, split.

    The split is the validation set where the labels of the test set are hidden.
    """

    items: int
    dataset: tuple[str, str | None, str]


BENCHMARKS = {
    "arc_challenge": Benchmark(1172, ("allenai/ai2_arc", "ARC-Challenge", "test")),
    "arc_easy": Benchmark(2376, ("allenai/ai2_arc", "ARC-Easy", "test")),
    "boolq": Benchmark(3270, ("aps/super_glue", "boolq", "validation")),
    "hellaswag": Benchmark(10042, ("Rowan/hellaswag", None, "validation")),
    "openbookqa": Benchmark(500, ("allenai/openbookqa", "main", "test")),
    "piqa": Benchmark(1838, ("baber/piqa", None, "validation")),
    "winogrande": Benchmark(1267, ("allenai/winogrande", "winogrande_xl", "validation")),
}
SEVEN_TASKS = tuple(BENCHMARKS)
