"""A strength for each kind of module or band of layers, as mergekit's filters and gradients.

The strength of a tensor is a fixed linear map of a few numbers, which mergekit's own evaluation of
the setting gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.planning import planning

By = Literal["module", "layer"]
BANDS = 4  # numbers of a gradient over the layers


@dataclass(frozen=True)
class Tensor:
    """A tensor of the merge. place: where among the layers, as mergekit counts: 0 to 1."""

    name: str
    place: float


@dataclass(frozen=True)
class Bands:
    """How a few numbers make a strength for each tensor.

    filters: parts of tensor names, each with a number of its own. rest: how many numbers the
    others have: one, or a gradient over the layers.
    """

    filters: tuple[tuple[str, ...], ...]
    rest: int

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self.filters) + self.rest

    def setting(self, numbers: Sequence[float]) -> list[dict[str, Any]]:
        """The value of the option in a YAML."""
        found: list[dict[str, Any]] = [
            {"filter": part, "value": float(number)}
            for parts, number in zip(self.filters, numbers[: len(self.filters)], strict=True)
            for part in parts
        ]
        rest = [float(number) for number in numbers[len(self.filters) :]]
        return [*found, {"value": rest if len(rest) > 1 else rest[0]}]

    def shares(self, tensors: Sequence[Tensor]) -> NDArray[np.float64]:
        """[T, count]: the strength of a tensor is the sum of the numbers, each so often."""
        from mergekit.config import ConditionalParameter, evaluate_setting

        rows = np.zeros((len(tensors), self.count))
        for column in range(self.count):
            unit = [float(k == column) for k in range(self.count)]
            setting = [ConditionalParameter(**entry) for entry in self.setting(unit)]
            for row, tensor in enumerate(tensors):
                rows[row, column] = evaluate_setting(
                    tensor.name, setting, tensor.place, validate=float
                )
        return rows


def bands_of(by: By, tensors: dict[str, TensorInfo]) -> Bands:
    """The bands for a model with these tensors.

    Raises:
        YoyoError: its names do not tell layers and modules.
    """
    modules: dict[str, None] = {}
    outside: dict[str, None] = {}
    for name, info in tensors.items():
        parts = name.split(".")
        number = next((k for k, part in enumerate(parts) if part.isdigit()), None)
        if len(info.shape) < 2:
            continue
        if number is None:
            outside[parts[-2] if len(parts) > 1 else parts[0]] = None
        elif number + 2 < len(parts):
            modules[f".{parts[number + 1]}."] = None
    if not modules:
        raise YoyoError("--by: the names of this model's tensors do not tell layers and modules.")
    ends = (tuple(outside),) if outside else ()
    if by == "layer":
        return Bands(ends, BANDS)
    return Bands((*((module,) for module in modules), *ends), 1)


def tensors_of(data: dict[str, Any], option: str) -> list[Tensor]:
    """The tensors of a merge and their places, from a plan of mergekit's.

    data: the merge YAML. option: one that is a number for all tensors; its gradient tells places.
    """
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    parameters = {**(data.get("parameters") or {}), option: [1.0, 2.0]}
    config = MergeConfiguration.model_validate({**data, "parameters": parameters})
    options = MergeOptions(quiet=True)
    LoaderCache().setup(options)
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(
        config,
        architecture,
        options=options,
        out_model_config=_model_out_config(config, architecture),
    )
    with planning("mends"):  # as it is merged
        tasks = planner.plan_to_disk("unused")  # a plan writes nothing
    return [
        Tensor(str(task.tensor_name), float(task.tensor_task.parameters[option]) - 1.0)
        for task in tasks
        if isinstance(task, SaveTensor)
    ]
