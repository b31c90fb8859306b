"""Bits where they pay: a width for each module, the cheapest that fit a size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mergekit_yoyo.errors import YoyoError

_GAP = 1e-4  # of the optimum: below what any sensitivity is known to
_SLACK = 2e-6  # of the budget: twice what the solver may be off by


@dataclass(frozen=True)
class Choice:
    """One width of a module. cost: what it does to the model, in nats a token; bytes: its size."""

    cost: float
    bytes: int


def allocate(modules: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The number of the choice that each module gets.

    The sum of the costs is least (to 0.01 %) among all ways whose bytes sum to at most `budget`: a
    knapsack of multiple choice, solved as a linear program in whole numbers (HiGHS).

    Raises:
        YoyoError: even the smallest choices do not fit.
    """
    least = sum(min(choice.bytes for choice in choices) for choices in modules)
    if least > budget:
        raise YoyoError(f"no widths fit {budget:,} bytes: the smallest take {least:,}.")
    counts = [len(choices) for choices in modules]
    costs = np.array([choice.cost for choices in modules for choice in choices])
    sizes = np.array([choice.bytes for choices in modules for choice in choices], dtype=float)
    columns = np.arange(len(costs))
    one_each = csr_array((np.ones(len(costs)), (np.repeat(range(len(counts)), counts), columns)))
    for slack in (0.0, _SLACK):
        found = milp(
            costs / max(costs.max(), 1e-300),
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(sizes[None] / budget, 0, 1 - slack),
            ],
            options={"mip_rel_gap": _GAP},
        )
        if found.x is not None:
            parts = np.split(found.x, np.cumsum(counts)[:-1])
            chosen = [int(part.argmax()) for part in parts]
            total = sum(choices[k].bytes for choices, k in zip(modules, chosen, strict=True))
            if total <= budget:  # which the solver keeps to its tolerance only
                return chosen
    return [min(range(n), key=lambda k: c[k].bytes) for n, c in zip(counts, modules, strict=True)]
