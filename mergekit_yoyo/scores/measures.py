"""What was measured beside the tasks as columns of a table: their numbers, errors and leads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.measured import Measured, Reading
from mergekit_yoyo.scores.quantities import QUANTITIES, Measure, MeasureColumn
from mergekit_yoyo.scores.statistics import Difference, mean_stderr, paired_difference

_GB = 1e9


def measures_of(measured: Measured) -> dict[MeasureColumn, Measure]:
    """The numbers that tables show, of what was measured."""
    weights, run = measured.weights, measured.run
    found: dict[MeasureColumn, Measure] = {}
    for text, reading in measured.readings.items():
        found |= _predictions(text, reading, measured.against.name if measured.against else None)
    found[MeasureColumn("size")] = Measure(weights.bytes / _GB)
    if weights.bits_per_weight is not None:
        found[MeasureColumn("bits")] = Measure(weights.bits_per_weight)
    setup = {"dtype": run.dtype, "library": run.library}
    memory = MeasureColumn("memory", f"{run.device} ({run.memory})")
    found[memory] = Measure(run.peak_bytes / _GB, setup=setup)
    for name, speed, tokens in (
        ("prompt", run.prompt_speed, run.prompt_tokens),
        ("generation", run.generation_speed, run.generated_tokens),
    ):
        own = {**setup, "tokens": str(tokens)}
        found[MeasureColumn(name, run.device)] = Measure(speed, setup=own)
    return found


def _predictions(
    text: str, reading: Reading, reference: str | None
) -> dict[MeasureColumn, Measure]:
    """Means over tokens; their error is that of windows, whose tokens hang together."""
    counts = [window.tokens for window in reading.windows]
    found = {}

    def add(name: str, sums: Sequence[float], against: str | None) -> None:
        size = math.fsum(counts) / len(counts)
        mean = math.fsum(sums) / math.fsum(counts)
        # of a ratio of two sums: each window's part beyond its share
        beyond = [(own - mean * count) / size for own, count in zip(sums, counts, strict=True)]
        stderr = mean_stderr(beyond) or 0.0
        value = mean
        if name == "perplexity":
            value = math.exp(min(mean, 700.0))
            stderr *= value
        parts = tuple(own / size for own in sums)
        column = MeasureColumn(name, text, against)
        setup = {"dtype": reading.dtype}
        found[column] = Measure(value, stderr, parts, reading.tokens_hash, setup)

    add("perplexity", [window.loss for window in reading.windows], None)
    if all(window.divergence is not None for window in reading.windows):
        add("kl", [window.divergence or 0.0 for window in reading.windows], reference)
        add("top1", [float(window.agreeing or 0) for window in reading.windows], reference)
    return found


def measure_difference(column: MeasureColumn, a: Measure, b: Measure) -> Difference:
    """a - b, its error and p window by window, of the same tokens; unknown otherwise."""
    value = a.value - b.value
    if not a.parts or a.tokens != b.tokens or len(a.parts) != len(b.parts):
        return Difference(value, None, None)
    gaps = [own - other for own, other in zip(a.parts, b.parts, strict=True)]
    paired = paired_difference(gaps, right_or_wrong=False)
    # windows have losses, of which the perplexity is the exponential
    slope = math.sqrt(a.value * b.value) if column.quantity == "perplexity" else 1.0
    return replace(paired, value=value, stderr=(paired.stderr or 0.0) * slope)


def choose_measures(
    rows: Sequence[Mapping[MeasureColumn, Measure]], names: Sequence[str] | None
) -> list[MeasureColumn]:
    """The columns of measures: those that `names` name (`kl`, `perplexity:code`), or all.

    Raises:
        YoyoError: no row has what a name names.
    """
    found = list(dict.fromkeys(column for row in rows for column in row))
    found.sort(key=lambda column: list(QUANTITIES).index(column.quantity))
    if names is None:
        return found
    chosen: list[MeasureColumn] = []
    for name in names:
        quantity, _, on = name.partition(":")
        own = [c for c in found if c.quantity == quantity and on in ("", c.on)]
        if not own:
            known = dict.fromkeys(
                c.quantity if not c.kind.on_text else f"{c.quantity}:{c.on}" for c in found
            )
            raise YoyoError(f"no result has {name}. {nearest(name, known)}")
        chosen += own
    return list(dict.fromkeys(chosen))


def measure_warnings(
    columns: Sequence[MeasureColumn], rows: Mapping[str, Mapping[MeasureColumn, Measure]]
) -> list[str]:
    """Where rows of a column are of other tokens, and cannot be compared."""
    warnings = []
    for column in columns:
        tokens = {name: row[column].tokens for name, row in rows.items() if column in row}
        if column.kind.on_text and len(set(tokens.values())) > 1:
            first = next(iter(tokens.values()))
            others = [name for name, own in tokens.items() if own != first]
            warnings.append(
                f"{column.title} {column.on or ''}: other text or other tokens for "
                f"{', '.join(others)}"
            )
    return warnings


def measure_notes(
    columns: Sequence[MeasureColumn], rows: Mapping[str, Mapping[MeasureColumn, Measure]]
) -> list[str]:
    """What each quantity is, and in what rows of a column differ without harm to their order."""
    notes = [
        f"{kind.title}: {kind.meaning}"
        for name, kind in QUANTITIES.items()
        if any(column.quantity == name for column in columns)
    ]
    differing: dict[str, dict[str, None]] = {}
    for column in columns:
        setups = {n: row[column].setup or {} for n, row in rows.items() if column in row}
        for what in dict.fromkeys(key for setup in setups.values() for key in setup):
            values = {name: setup[what] for name, setup in setups.items() if what in setup}
            if len(set(values.values())) > 1:
                groups = [
                    f"{value} for {', '.join(n for n, own in values.items() if own == value)}"
                    for value in dict.fromkeys(values.values())
                ]
                whose = differing.setdefault(f"{what} {'; '.join(groups)}", {})
                whose[column.title] = None
    return notes + [f"{', '.join(whose)}: {what}" for what, whose in differing.items()]
