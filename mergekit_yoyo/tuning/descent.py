"""Several strengths at once, by the gradient of what is measured with respect to them alone.

The weights are a fixed linear map of the strengths, W_t = L_t + s_t (H_t - L_t) with s_t a few
numbers' weighted sum, so that the derivative by a number is a sum over tensors of inner products
<dL/dW_t, H_t - L_t>.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mergekit_yoyo.model.checkpoint import Checkpoint
from mergekit_yoyo.text import Window
from mergekit_yoyo.tuning.bands import Bands, Tensor
from mergekit_yoyo.tuning.divergence import Reference, divergence, log_probabilities
from mergekit_yoyo.tuning.knobs import Knob
from mergekit_yoyo.tuning.mixture import Mixture
from mergekit_yoyo.tuning.search import Exhausted

STEPS = 12  # evaluations with gradient, each as dear as three candidates


@dataclass
class Slope:
    """The mean that is measured and its gradient by the numbers of `bands`.

    low, high: merges at the two values `anchors` of the option. texts: name, windows and reference.
    """

    mixture: Mixture
    low: Path
    high: Path
    anchors: tuple[float, float]
    bands: Bands
    tensors: Sequence[Tensor]
    texts: Sequence[tuple[str, Sequence[Window], Reference | None]]
    by_divergence: bool

    def __post_init__(self) -> None:
        self._shares = self.bands.shares(self.tensors)
        self._row = {tensor.name: k for k, tensor in enumerate(self.tensors)}

    def at(self, numbers: Sequence[float]) -> tuple[float, NDArray[np.float64]]:
        """The mean and its gradient, in nats a token, of unrounded weights."""
        strengths = self._shares @ np.asarray(numbers)
        low, high = self.anchors
        with Checkpoint(self.low) as one, Checkpoint(self.high) as other:

            def read(name: str) -> torch.Tensor:
                share = (strengths[self._row[name]] - low) / (high - low)
                return torch.lerp(one.read(name).float(), other.read(name).float(), float(share))

            self.mixture.take(read)
            value = self._backward()
            gradient = [self._along(k, one, other) for k in range(self.bands.count)]
        self.mixture.forget_gradients()
        return value, np.array(gradient)

    def _along(self, column: int, one: Checkpoint, other: Checkpoint) -> float:
        """The derivative by one number."""
        shares = self._shares[:, column] / (self.anchors[1] - self.anchors[0])

        def moves(name: str) -> bool:
            return bool(shares[self._row[name]])

        def read(name: str) -> torch.Tensor:
            difference = other.read(name).float() - one.read(name).float()
            return difference * float(shares[self._row[name]])

        return self.mixture.dot(read, moves)

    def _backward(self) -> float:
        """Leave the gradient in the model's parameters; gives the mean."""
        total = 0.0
        for _, windows, reference in self.texts:
            vocabulary = None if reference is None else reference.vocabulary
            begin = 0
            read = log_probabilities(self.mixture.model, windows, vocabulary, batch_size=1)
            for window, logp in read:
                rows = slice(begin, begin + len(window.positions))
                begin = rows.stop
                if self.by_divergence and reference is not None:
                    of_window = divergence(logp, reference, rows).mean()
                else:
                    wanted = torch.tensor([window.tokens[p] for p in window.positions])
                    of_window = -logp.gather(1, wanted.to(logp.device)[:, None]).mean()
                share = of_window / (len(windows) * len(self.texts))
                share.backward()  # type: ignore[no-untyped-call]
                total += float(share.detach())
        return total


def descend(
    slope: Callable[[Sequence[float]], tuple[float, NDArray[np.float64]]],
    start: float,
    count: int,
    knob: Knob,
) -> list[float]:
    """The numbers with the lowest mean, by L-BFGS-B from one strength for all; three digits.

    slope: gives mean and gradient, or raises Exhausted, which ends the search where it is.
    """
    from scipy.optimize import minimize

    best, lowest = [start] * count, math.inf

    def of(numbers: Any) -> tuple[float, Any]:
        nonlocal best, lowest
        value, gradient = slope(numbers)
        if value < lowest:
            best, lowest = list(numbers), value
        return (value if math.isfinite(value) else 1e3), gradient

    with suppress(Exhausted):
        minimize(
            of,
            best,
            jac=True,
            method="L-BFGS-B",
            bounds=[(knob.lowest, knob.highest)] * count,
            options={"maxfun": STEPS, "ftol": 1e-6},
        )
    return [float(f"{number:.3g}") for number in best]
