"""What a consensus is, and the table of those that there are.

A new one is a file with a class like these, a line in the table, and its name among the choices of
`options.Options.consensus`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.options import Options, TensorKind, declared
from mergekit_yoyo.algorithm.recall import Recall
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.rounding import Destination
from mergekit_yoyo.algorithm.span import Span
from mergekit_yoyo.algorithm.tukey import Tukey


class Consensus(Protocol):
    """How the residuals of K inputs become one update of their center.

    options: those of the method that it heeds, beside the ones that all do (`OF_ALL`). What it
    writes to the record are the columns among the fields of `Details` that it fills.
    """

    @property
    def options(self) -> tuple[str, ...]: ...

    def check(self, kind: TensorKind, shape: Sequence[int], name: str) -> None:
        """Raises YoyoError unless it can merge tensors, or experts, of this kind and shape."""

    def merge(
        self,
        tensors: Sequence[Tensor],
        span: Span,
        options: Options,
        anchor: int | None,
        kind: TensorKind,
        out: Destination | None,
    ) -> Details:
        """The steps after the third, for B problems [B, ...], written to `out` unless it is None.

        span: of the tensors, around any robust center, or around the anchor.

        Raises FloatingPointError where the arithmetic that was asked for does not do.
        """

    def identical(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P], the problems in which all inputs were the same."""

    def alone(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P], the problems in which too few inputs were left for it to do more than average."""


CONSENSUSES: Mapping[str, Consensus] = {"tukey": Tukey(), "recall": Recall()}
OF_ALL = ("consensus", "center", "rescale", "sign_alignment", "eps", "rounding", "experts")


def without_effect(parameters: Mapping[str, Any]) -> list[str]:
    """Options that are set and that the chosen consensus does not heed, a sentence each.

    parameters: of the method, by name; those with their default are not counted.
    """
    name = str(parameters.get("consensus", "tukey"))
    if name not in CONSENSUSES:
        return []
    heeded = {*OF_ALL, *CONSENSUSES[name].options}
    return [
        f"{option.name} has no effect with consensus: {name}"
        for option in declared()
        if option.name not in heeded
        and parameters.get(option.name, option.default) != option.default
    ]
