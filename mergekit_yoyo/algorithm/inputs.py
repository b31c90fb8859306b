"""What `fuse` demands of its input tensors, and the sentences that refuse them."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.options import WEIGHT
from mergekit_yoyo.errors import YoyoError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def promoted_dtype(tensors: Sequence[Tensor], name: str, labels: Sequence[str]) -> torch.dtype:
    """The dtype of the merge. Raises YoyoError unless shapes, devices and dtypes fit together."""
    if not tensors:
        raise YoyoError(f"{name}: expected at least one input; got none.")
    if len(labels) != len(tensors):
        raise YoyoError(f"labels: expected {len(tensors)}, one per input; got {len(labels)}.")
    first = tensors[0]
    for x, label in zip(tensors, labels, strict=True):
        if x.dtype not in DTYPES:
            raise YoyoError(
                f"{name}: {label} is {x.dtype}; expected float64, float32, bfloat16 or float16. "
                "Quantized weights must be dequantized first: their scales are separate tensors."
            )
        if x.shape != first.shape:
            raise YoyoError(
                f"{name}: {label} has shape {list(x.shape)}, {labels[0]} has {list(first.shape)}; "
                "all inputs must be fine-tunes of one architecture with one vocabulary."
            )
        if x.device != first.device:
            raise YoyoError(f"{name}: {label} is on {x.device}, {labels[0]} on {first.device}.")
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def check_anchor(anchor: int | None, center: str, count: int, name: str) -> None:
    """Raises YoyoError unless center `anchor` and an index below `count` go together."""
    if (center == "anchor") != (anchor is not None):
        raise YoyoError(
            f"{name}: center: anchor and the index `anchor` go together; "
            f"got center: {center}, anchor: {anchor}."
        )
    if anchor is not None and (type(anchor) is not int or not 0 <= anchor < count):
        raise YoyoError(f"anchor: expected an index from 0 to {count - 1}; got {anchor!r}.")


def priors_of(weights: Sequence[float] | None, count: int, name: str) -> NDArray[np.float64]:
    """[K], the weights of the models scaled to a mean of 1.

    Raises YoyoError unless there is one for each input, and they are not all 0.
    """
    if weights is None:
        return np.ones(count)
    if len(weights) != count:
        raise YoyoError(f"weights: expected {count}, one per input; got {len(weights)}.")
    given = np.array([WEIGHT.checked("weight", weight) for weight in weights], dtype=np.float64)
    if not given.any():
        raise YoyoError(f"{name}: all models have weight 0; give one of them more.")
    if (given == given[0]).all():
        return np.ones(count)
    return np.asarray(given / given.mean())


def counted(weights: Sequence[float], anchor: int | None) -> list[int]:
    """The inputs that have a part in a merge: those of a weight above 0, and the anchor."""
    return [k for k, weight in enumerate(weights) if weight > 0 or k == anchor]


def with_signs(
    tensors: Sequence[Tensor], reference: int | None, option: str, name: str
) -> Sequence[Tensor]:
    """The tensors with the signs of one of them where that one is not zero; copies, if any.

    Raises YoyoError if there is an `option` that asks for it, but no reference.
    """
    if option == "none":
        return tensors
    if reference is None:
        raise YoyoError(f"{name}: sign_alignment: {option} needs base_model, or an anchor. Set it.")
    signs = tensors[reference]
    return [
        x if k == reference else torch.where(signs == 0, x, torch.copysign(x, signs))
        for k, x in enumerate(tensors)
    ]


def not_finite(tensors: Sequence[Tensor], name: str, labels: Sequence[str]) -> YoyoError:
    """The error that names the inputs which are not finite."""
    bad = [label for x, label in zip(tensors, labels, strict=True) if not x.isfinite().all()]
    if not bad:
        return YoyoError(f"{name}: the squares of its values overflow float64.")
    return YoyoError(
        f"{name}: {', '.join(bad)} holds NaN or infinite values. "
        "Replace that model: no merge of it can be trusted."
    )
