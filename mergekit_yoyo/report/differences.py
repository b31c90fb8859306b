"""What differs between two merges besides their numbers: options, YAML, tensors, versions."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import unified_diff

from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import Scalar

_MOST_LINES = 3000  # of a YAML; comparing takes the square of them


@dataclass(frozen=True)
class OptionChange:
    """An option that differs, and in how many of the tensors that both merges have."""

    name: str
    a: str
    b: str
    tensors: int


def changed_options(a: Record, b: Record, common: Iterable[str]) -> list[OptionChange]:
    """The options that differ in any of the common tensors."""
    changed: Counter[tuple[str, str, str]] = Counter()
    values_a, values_b = _effective(a), _effective(b)
    for tensor in common:
        one, other = values_a[tensor], values_b[tensor]
        for option in sorted(one | other):
            if one.get(option) != other.get(option):
                changed[option, _said(one, option), _said(other, option)] += 1
    return [OptionChange(*key, tensors=count) for key, count in changed.items()]


def _effective(record: Record) -> dict[str, dict[str, Scalar]]:
    """All options of each tensor; the way to the consensus and the base count as such."""
    return {
        tensor.name: {
            "base_model": record.header.base,
            "consensus": tensor.consensus,
            **record.header.parameters,
            **tensor.parameters,
        }
        for tensor in record.tensors
    }


def _said(options: dict[str, Scalar], name: str) -> str:
    value = options.get(name)
    return "-" if value is None else str(value)


def yaml_difference(a: Record, b: Record) -> list[str]:
    """The lines of the YAMLs, each after `- ` (of A only), `+ ` (of B only) or two spaces; empty
    if a record has none. Where the record goes is no difference."""
    one, other = (_lines(record.header.yaml or "") for record in (a, b))
    if not (one and other):
        return []
    if max(len(one), len(other)) > _MOST_LINES:
        return [f"  {len(one):,} lines in A and {len(other):,} in B: too many to compare"]
    if one == other:
        return [f"  {line}" for line in one]
    _, _, _, *lines = unified_diff(one, other, n=len(one), lineterm="")  # heads, and all lines
    return [f"{line[0]} {line[1:]}" for line in lines]


def _lines(yaml: str) -> list[str]:
    return [line for line in yaml.splitlines() if not line.strip().startswith("report:")]


def odds(a: Record, b: Record, here: Collection[str], there: Collection[str]) -> list[str]:
    """Sentences on what makes the two less than comparable. here, there: names of tensors."""
    found = []
    for label, record, own, others in (("A", a, here, there), ("B", b, there, here)):
        if record.missing or record.truncated:
            found.append(f"{label} is unfinished: {len(record.tensors):,} tensors are recorded.")
        if alone := [name for name in own if name not in others]:
            more = f" and {len(alone) - 3:,} more" if len(alone) > 3 else ""
            found.append(f"only in {label}: {', '.join(alone[:3])}{more}.")
    for package in sorted(a.header.versions.keys() | b.header.versions.keys()):
        versions = [record.header.versions.get(package, "-") for record in (a, b)]
        if versions[0] != versions[1]:
            found.append(f"made with {package} {versions[0]} (A) and {versions[1]} (B).")
    return found
