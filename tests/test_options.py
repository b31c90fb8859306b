"""The options are declared once: all that follows from the declaration."""

import inspect

import pytest

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.consensuses import CONSENSUSES, OF_ALL, without_effect
from mergekit_yoyo.algorithm.options import Options, declared
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method import METHOD

NAMES = [option.name for option in declared()]


def test_fuse_shows_every_option_with_its_default() -> None:
    shown = inspect.signature(fuse).parameters
    for option in declared():
        assert shown[option.name].default == option.default
    assert shown["anchor"].default is None
    assert "options" not in shown


def test_mergekit_gets_every_option_and_the_record() -> None:
    assert [spec.name for spec in METHOD.spec.parameters] == [*NAMES, "weight", "report"]
    for spec, option in zip(METHOD.spec.parameters, declared(), strict=False):
        assert (spec.default, spec.description) == (option.default, option.meaning)


def test_every_option_is_heeded_by_somebody_and_every_consensus_can_be_chosen() -> None:
    heeded = {name for consensus in CONSENSUSES.values() for name in consensus.options}
    assert heeded | set(OF_ALL) == set(NAMES)
    for name in CONSENSUSES:
        assert Options(consensus=name).consensus == name  # type: ignore[arg-type]
    with pytest.raises(YoyoError, match=f"one of {', '.join(CONSENSUSES)};"):
        Options(consensus="other")  # type: ignore[arg-type]


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(YoyoError, match=r"no option tukey_k\. Did you mean tukey_c"):
        fuse([], tukey_k=3)


def test_options_without_effect_are_told() -> None:
    assert without_effect({"ridge": 0.2, "recall_strength": 1.0, "max_scale": 5}) == [
        "ridge has no effect with consensus: tukey",
        "recall_strength has no effect with consensus: tukey",
    ]
    assert without_effect({"consensus": "recall", "ridge": 0.2, "mad_median": "lower"}) == [
        "mad_median has no effect with consensus: recall"
    ]
    assert without_effect({option.name: option.default for option in declared()}) == []
