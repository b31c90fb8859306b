"""The schema of a merge's record: JSON lines, a header and then one line per tensor.

Version 1. Numbers are rounded to six significant digits, and null where there is none. A tensor
holds P problems: P is 1 but for packed experts, which merge one by one (with gate and up
concatenated: gate and up of the first expert, then of the second, ...). K counts the inputs.

A column of numbers is one field of `TensorLine`, marked with what it has a number of: with that
`read_record` checks its shape, `tensor_line` fills it from the field of that name in the `Details`
of a merge, and the statistics have it as an array. What is shown of it stands in `quantities`.
"""

from enum import Enum
from itertools import combinations
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Strict

SCHEMA_VERSION = 1

Number = Annotated[float, Strict()] | None  # "nan" is a text
_Count = Annotated[int, Strict()]  # and true is none
Scalar = str | float | int | bool | None
Rows = list[list[Number]]
FindingKind = Literal["rejected", "identical", "not_converged", "alone"]


class Per(Enum):
    """What a column has a number of: a row per problem, of so many numbers; or just one number."""

    PROBLEM = "problem"
    INPUT = "input"
    PAIR = "pair of inputs"

    def width(self, inputs: int) -> int | None:
        """Numbers in a row, None where there are no rows."""
        return {Per.INPUT: inputs, Per.PAIR: inputs * (inputs - 1) // 2}.get(self)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(_Line):
    """The first line: what was merged, with what.

    versions: of mergekit-yoyo, mergekit, torch and transformers. started: UTC, ISO 8601, of the
    first tensor. inputs: the models' names as in the YAML; those of all slices, where mergekit
    planned the merge. base: the name of base_model. tensors: how many lines a finished merge has at
    least (tensors that a model may lack are not counted), null if nobody planned it. parameters:
    the options of the first tensor. yaml: of the merge as mergekit understood it, null if nobody
    planned it.
    """

    line: Literal["header"] = "header"
    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str]
    started: str
    inputs: list[str]
    base: str | None = None
    tensors: _Count | None = None
    parameters: dict[str, Scalar]
    yaml: str | None = None


class Finding(_Line):
    """Something that deserves a look.

    kind: `rejected`, an input weighed nothing (`model` says which); `identical`, all inputs were
    the same; `not_converged`, the center; `alone`, less than three inputs are left
    that differ, and recall without an anchor has nothing to tell them apart by: the merge is their
    average. problems: in how many of the tensor's problems.
    """

    kind: FindingKind
    model: str | None = None
    problems: int = 1


class TensorLine(_Line):
    """What happened to one tensor. Lists are [P] or [P][...].

    name, shape, dtype: of the merged tensor. inputs: the K models it was made of, null if they are
    the header's, in its order. parameters: the options that differ from the header's.
    consensus: the method of steps 4 to 7.
    norms: [P][K] L2 norms of the inputs. cosines: [P][K (K - 1) / 2] of the residuals R_i and R_j
    for the pairs (0, 1), (0, 2), ..., (1, 2), ...; null where one of them is zero.
    residual_norms: [P][K], of the u_k, which have RMS 1. weights: [P][K], what each input weighed
    in the consensus: 1 is full trust, 0 is rejected, null is an anchor of recall, which is not
    weighed. priors: [P][K], the weights that the models were given, with mean 1; null where all
    have the same (a model of weight 0 is not among the inputs). center_weights: [P][K], what the
    center is made of; null for the coordinate median.
    rounding: [P], what writing the merge in its dtype changed, as a share of its norm, measured on
    a sample; null for float32 and wider. A later cast (mergekit's `out_dtype`) is not in it.
    rank, energy, energy_scale: [P] r', p and lambda of steps 5 and 6, null with recall.
    strength, condition_number: [P] beta, and the bound on the condition of the solve; recalled:
    [P][K], how much of its own residual each input has back; null without recall.
    iterations: [P] of the geometric median, with recall of its reweighting.
    A tensor with a single input passes through: its lists are empty.
    """

    line: Literal["tensor"] = "tensor"
    name: str
    shape: list[_Count]
    dtype: str
    inputs: list[str] | None = None
    parameters: dict[str, Scalar] = {}
    consensus: str
    norms: Annotated[Rows, Per.INPUT] = []
    cosines: Annotated[Rows, Per.PAIR] = []
    residual_norms: Annotated[Rows, Per.INPUT] = []
    weights: Annotated[Rows, Per.INPUT] = []
    priors: Annotated[Rows | None, Per.INPUT] = None
    center_weights: Annotated[Rows | None, Per.INPUT] = None
    rounding: Annotated[list[Number] | None, Per.PROBLEM] = None
    rank: Annotated[list[_Count] | None, Per.PROBLEM] = None
    energy: Annotated[list[Number] | None, Per.PROBLEM] = None
    energy_scale: Annotated[list[Number] | None, Per.PROBLEM] = None
    strength: Annotated[list[Number] | None, Per.PROBLEM] = None
    condition_number: Annotated[list[Number] | None, Per.PROBLEM] = None
    recalled: Annotated[Rows | None, Per.INPUT] = None
    iterations: Annotated[list[_Count], Per.PROBLEM] = []
    warnings: list[Finding] = []


COLUMNS = {
    name: per
    for name, field in TensorLine.model_fields.items()
    for per in field.metadata
    if isinstance(per, Per)
}

# What the numbers of a column can be, in a record of whatever making; the cosines and shares are
# rounded. Norms are bounded so that their squares and sums are float64.
_ROUNDED = 1.001
BOUNDS: dict[str, tuple[float, float]] = {
    "norms": (0, 1e100),
    "residual_norms": (0, 1e100),
    "cosines": (-_ROUNDED, _ROUNDED),
    "weights": (0, _ROUNDED),
    "priors": (0, 1e100),
    "center_weights": (0, _ROUNDED),
    "rounding": (0, 1e100),
    "energy": (0, _ROUNDED),
    "energy_scale": (0, 1e100),
    "strength": (0, 1e100),
    "condition_number": (0, 1e300),
    "recalled": (-1e100, 1e100),
    "rank": (0, 2**31),
    "iterations": (0, 2**31),
}


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of inputs in the order of `cosines`."""
    return list(combinations(range(count), 2))
