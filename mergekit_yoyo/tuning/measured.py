"""What was measured of a merge: by text and sample, and what follows for means and differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.tuning.divergence import Sample
from mergekit_yoyo.tuning.knobs import Setting

Array = NDArray[np.float64]
_SMALL = 5e-5  # an error that four digits would hide
SURE = 2.0  # standard errors: a difference that is larger is called one


@dataclass(frozen=True)
class Figure:
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        digits = 4 if self.error >= _SMALL else 6
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"

    @property
    def is_sure(self) -> bool:
        """Whether it is above zero by more than noise."""
        return self.value > SURE * self.error


@dataclass(frozen=True)
class Measured:
    """One merge, measured.

    setting: what was moved, and whereto. values: by text, a number a sample: KL from its model to
    the merge, or where there is no such thing, the loss; nats a token. losses: by text, the loss.
    """

    setting: Setting
    values: Mapping[str, Array]
    losses: Mapping[str, Array]

    @classmethod
    def of(cls, setting: Setting, found: Mapping[str, Sequence[Sample]], *, kl: bool) -> "Measured":
        """From samples by text. kl: whether the divergence counts, not the loss."""
        losses = {name: np.array([s.loss for s in samples]) for name, samples in found.items()}
        if not kl:
            return cls(setting, losses, losses)
        values = {
            name: np.array([np.nan if s.kl is None else s.kl for s in samples])
            for name, samples in found.items()
        }
        return cls(setting, values, losses)

    @property
    def figure(self) -> Figure:
        """The mean over texts of the means over their samples."""
        return mean_of(self.values)

    @property
    def loss(self) -> Figure:
        """The same of the losses."""
        return mean_of(self.losses)

    @property
    def worst(self) -> tuple[str, float]:
        """The text with the highest mean, and that."""
        name = max(self.values, key=lambda n: float(np.mean(self.values[n])))
        return name, float(np.mean(self.values[name]))

    def above(self, other: "Measured") -> Figure:
        """How much higher this is than another, sample by sample: what the texts share cancels."""
        return mean_of({name: self.values[name] - other.values[name] for name in self.values})

    def drawn(self, rows: Mapping[str, NDArray[np.int64]]) -> float:
        """The mean of a sample of the samples, for a bootstrap."""
        return float(np.mean([self.values[name][rows[name]].mean() for name in self.values]))


def mean_of(values: Mapping[str, Array]) -> Figure:
    """Mean of means, and its standard error: sqrt(sum of var_k / n_k) / K; not finite is inf."""
    means = [float(v.mean()) for v in values.values()]
    if not np.isfinite(means).all():
        return Figure(float("inf"), float("inf"))
    errors = [v.var(ddof=1) / len(v) if len(v) > 1 else np.inf for v in values.values()]
    return Figure(float(np.mean(means)), float(np.sqrt(np.sum(errors))) / len(means))
