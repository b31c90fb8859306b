"""What is refused, and with which words."""

import math
import re

import pytest
import torch
from tensors import fine_tunes

from mergekit_yoyo import fuse
from mergekit_yoyo.errors import YoyoError

LABELS = ["./one", "./two", "./three"]


def refusal(tensors=None, **arguments):
    """The message of the YoyoError."""
    tensors = fine_tunes(3, 0.1, (4, 6)) if tensors is None else tensors
    with pytest.raises(YoyoError) as error:
        fuse(tensors, **arguments)
    assert isinstance(error.value, ValueError)
    return str(error.value)


def test_no_inputs():
    assert refusal([], name="lm_head.weight") == (
        "lm_head.weight: expected at least one input; got none."
    )


def test_shapes_that_differ_name_tensor_models_and_both_shapes():
    tensors = fine_tunes(3, 0.1, (4, 6))
    tensors[2] = torch.zeros(5, 6)
    message = refusal(tensors, name="lm_head.weight", labels=LABELS)
    assert message.startswith("lm_head.weight: ./three has shape [5, 6], ./one has [4, 6];")
    tensors[2] = torch.zeros(24)
    assert "input 2 has shape [24], input 0 has [4, 6]" in refusal(tensors)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64, torch.bool]
)
@pytest.mark.parametrize("at", [0, 1])
def test_dtypes(dtype, at):
    tensors = fine_tunes(3, 0.1, (4, 6))
    tensors[at] = tensors[at].to(dtype)
    message = refusal(tensors, name="q_proj.weight", labels=LABELS)
    assert message.startswith(f"q_proj.weight: {LABELS[at]} is {dtype}; expected float64, float32,")
    assert "must be dequantized first" in message
    assert str(dtype) in refusal(tensors[at : at + 1])  # also alone


def test_complex_is_no_weight():
    assert "is torch.complex64" in refusal([torch.zeros(3, dtype=torch.complex64)] * 2)


def test_devices():
    tensors = fine_tunes(3, 0.1, (4, 6))
    tensors[1] = tensors[1].to("meta")
    message = refusal(tensors, name="q_proj.weight", labels=LABELS)
    assert message == "q_proj.weight: ./two is on meta, ./one on cpu."


@pytest.mark.parametrize(
    ("option", "value", "choices", "nearest"),
    [
        (
            "center",
            "geometric_mean",
            "geometric_median, coordinate_median, anchor",
            "geometric_median",
        ),
        ("center", "ancor", "geometric_median, coordinate_median, anchor", "anchor"),
        ("rescale", "medain", "mean, median", "median"),
        ("mad_median", "lowest", "standard, lower", "lower"),
        ("experts", "seperate", "auto, packed, separate", "separate"),
    ],
)
def test_unknown_choices_are_listed_with_the_nearest(option, value, choices, nearest):
    assert refusal(**{option: value}) == (
        f"{option}: expected one of {choices}; got {value!r}. Did you mean {nearest}?"
    )


@pytest.mark.parametrize("value", ["zzz", None, 3, True])
def test_a_choice_like_none_has_no_nearest(value):
    assert refusal(rescale=value) == f"rescale: expected one of mean, median; got {value!r}."


@pytest.mark.parametrize(
    ("option", "bound", "values"),
    [
        ("tukey_c", "above 0", [0, -1.0, math.nan, math.inf, "wide", None, True, [1.0]]),
        ("max_scale", "of at least 1", [0.999, -10, math.nan, -math.inf, "x", None, True]),
        ("eps", "above 0", [0, -1e-8, math.nan, math.inf, "small", None, False]),
    ],
)
def test_numbers_out_of_range(option, bound, values):
    for value in values:
        expected = f"{option}: expected a number {bound}; got {value!r}."
        assert refusal(**{option: value}) == expected


def test_numbers_at_the_bounds_are_taken():
    tensors = fine_tunes(3, 0.1, (4, 6))
    assert fuse(tensors, max_scale=1, tukey_c=1e-3, eps=1e-30).tensor.isfinite().all()


@pytest.mark.parametrize("anchor", [3, -1, 100, 1.0, "0", True])
def test_anchor_out_of_range(anchor):
    message = refusal(center="anchor", anchor=anchor)
    assert message == f"anchor: expected an index from 0 to 2; got {anchor!r}."


def test_anchor_and_center_go_together():
    for arguments in ({"center": "anchor"}, {"anchor": 1}, {"anchor": 7}):
        message = refusal(name="norm.weight", **arguments)
        assert "center: anchor and the index `anchor` go together" in message
        assert message.startswith("norm.weight: ")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
def test_values_that_are_not_finite_name_tensor_and_models(center, dtype, bad):
    anchor = 0 if center == "anchor" else None
    for at in range(3):
        tensors = fine_tunes(3, 0.1, (4, 6), dtype=dtype)
        tensors[at][3, 5] = bad
        message = refusal(
            tensors, center=center, anchor=anchor, name="up_proj.weight", labels=LABELS
        )
        assert message.startswith(f"up_proj.weight: {LABELS[at]} holds NaN or infinite values.")


def test_all_inputs_that_are_not_finite_are_named_also_among_experts():
    tensors = fine_tunes(3, 0.1, (4, 6, 5))
    tensors[0][2, 5, 1] = math.nan
    tensors[2][3, 0, 0] = math.inf
    message = refusal(tensors, experts="separate", name="gate_up_proj", labels=LABELS)
    assert message.startswith("gate_up_proj: ./one, ./three holds NaN or infinite values.")


def test_squares_that_overflow():
    tensors = [torch.full((4,), 1e200, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
    for center in ("geometric_median", "coordinate_median"):
        assert refusal(tensors, name="t", center=center) == (
            "t: the squares of its values overflow float64."
        )


def test_labels_one_per_input():
    assert refusal(labels=LABELS[:2]) == "labels: expected 3, one per input; got 2."


@pytest.mark.parametrize(
    ("shape", "name"), [((4, 6), "down_proj"), ((4, 5, 6), "gate_up_proj"), ((8,), "norm")]
)
def test_experts_of_a_shape_that_is_not_packed(shape, name):
    message = refusal(fine_tunes(2, 0.1, shape), experts="separate", name=name)
    assert re.match(r"experts: separate expects a tensor \[experts, \d x rows, columns\]", message)
    assert f"got shape {list(shape)}." in message
    assert "Use experts: packed" in message


def test_options_are_checked_also_where_nothing_is_merged():
    assert "tukey_c" in refusal(fine_tunes(1, 0.1, (4,)), tukey_c=-1)
    assert "rescale" in refusal([torch.empty(0), torch.empty(0)], rescale="max")
    assert "anchor" in refusal(fine_tunes(1, 0.1, (4,)), center="anchor", anchor=1)
