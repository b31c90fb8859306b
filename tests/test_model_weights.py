"""`weight` of a model: a prior on whom to trust, against the float64 references."""

import numpy as np
import pytest
import torch
from recall_reference import recall
from reference import weighted_median, yoyo_fusion
from tensors import fine_tunes, relative_error, same_bits

from mergekit_yoyo.algorithm import fuse
from mergekit_yoyo.algorithm.robust import weighted_median as fast_median
from mergekit_yoyo.errors import YoyoError

WEIGHTS = {
    2: [[0.4, 0.6], [0.01, 0.99]],
    3: [[1, 2, 3], [0.6, 0.2, 0.2], [0.1, 0.2, 0.3]],
    5: [[1, 1, 1, 1, 2], [0.9, 0.1, 0.4, 0.3, 2.5]],
}
GRID = [(k, weights) for k, several in WEIGHTS.items() for weights in several]


def arrays(tensors):
    return [x.double().numpy() for x in tensors]


@pytest.mark.parametrize("rescale", ["mean", "median"])
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
@pytest.mark.parametrize(("count", "weights"), GRID)
def test_tukey_is_the_references(count, weights, center, rescale):
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 3e-7)):
        tensors = fine_tunes(count, 0.05, (24, 30), dtype=dtype)
        options = {"center": center, "rescale": rescale, "weights": weights}
        options["anchor"] = 0 if center == "anchor" else None
        result = fuse(tensors, **options)
        expected = yoyo_fusion(arrays(tensors), **options)
        assert relative_error(result.tensor.double().numpy(), expected.merge) <= limit
        np.testing.assert_allclose(result.weights, expected.weights, atol=1e-5)


@pytest.mark.parametrize("rescale", ["mean", "median"])
@pytest.mark.parametrize("anchor", [None, 0])
@pytest.mark.parametrize(("count", "weights"), GRID)
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_recall_is_the_references(kind, count, weights, anchor, rescale):
    tensors = fine_tunes(count, 0.05, (24, 30), dtype=torch.float64)
    center = "geometric_median" if anchor is None else "anchor"
    options = {"weights": weights, "anchor": anchor, "rescale": rescale}
    result = fuse(tensors, consensus="recall", center=center, kind=kind, **options)
    expected = recall(arrays(tensors), kind, **options)
    assert relative_error(result.tensor.numpy(), expected.merge) <= 1e-11
    np.testing.assert_allclose(result.weights, expected.trust, atol=1e-9)
    np.testing.assert_allclose(result.recalled, expected.recalled, rtol=1e-7)


@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median"])
@pytest.mark.parametrize("weights", [[0.4, 0.6], [3, 1], [0.999, 0.001]])
def test_two_models_are_a_weighted_mean_of_unit_rms(weights, center):
    """As `linear` has it, up to the norm, which is the weighted mean of theirs."""
    tensors = fine_tunes(2, 0.1, (40, 50), dtype=torch.float64)
    merge = fuse(tensors, weights=weights, center=center).tensor
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    mean = sum(w * x / x.square().mean().sqrt() for w, x in zip(share, tensors, strict=True))
    norm = sum(w * x.norm() for w, x in zip(share, tensors, strict=True))
    assert relative_error(merge, mean * norm / mean.norm()) <= 1e-7  # the epsilons of step 1
    linear = sum(w * x for w, x in zip(share, tensors, strict=True))
    assert relative_error(merge, linear) <= 0.01


@pytest.mark.parametrize("options", [{}, {"center": "coordinate_median"}, {"consensus": "recall"}])
def test_weights_count_by_their_ratio_and_equal_ones_not_at_all(options):
    tensors = fine_tunes(4, 0.1, (20, 30), dtype=torch.float64)
    plain = fuse(tensors, **options).tensor
    assert same_bits(fuse(tensors, weights=[0.3] * 4, **options).tensor, plain)
    weighted = fuse(tensors, weights=[1, 2, 3, 4], **options).tensor
    assert relative_error(weighted, plain) > 1e-3
    assert (
        relative_error(fuse(tensors, weights=[0.1, 0.2, 0.3, 0.4], **options).tensor, weighted)
        <= 1e-13
    )


@pytest.mark.parametrize("options", [{}, {"center": "coordinate_median"}, {"consensus": "recall"}])
def test_a_model_of_weight_zero_is_left_out(options):
    tensors = fine_tunes(4, 0.1, (20, 30), dtype=torch.float64)
    result = fuse([*tensors, -tensors[0]], weights=[1, 2, 1, 1, 0], **options)
    without = fuse(tensors, weights=[1, 2, 1, 1], **options)
    assert same_bits(result.tensor, without.tensor)
    assert result.weights.shape == (4,)
    alone = fuse(tensors, weights=[0, 0, 1, 0], **options)
    assert same_bits(alone.tensor, tensors[2])


def test_signs_are_those_of_the_base_wherever_others_are_left_out():
    tensors = fine_tunes(4, 0.1, (20, 30), dtype=torch.float64)
    left_out = fuse(tensors, weights=[0, 1, 1, 1], sign_alignment="base", base=2).tensor
    assert same_bits(left_out, fuse(tensors[1:], sign_alignment="base", base=1).tensor)
    assert not same_bits(left_out, fuse(tensors[1:], sign_alignment="base", base=2).tensor)


def test_an_anchor_of_weight_zero_is_the_center_and_has_no_vote():
    tensors = fine_tunes(4, 0.1, (20, 30), dtype=torch.float64)
    options = {"weights": [0, 1, 2, 1], "center": "anchor", "anchor": 0}
    result = fuse(tensors, **options)
    expected = yoyo_fusion(arrays(tensors), **options)
    assert relative_error(result.tensor.numpy(), expected.merge) <= 1e-12
    voting = fuse(tensors, center="anchor", anchor=0, weights=[1, 1, 2, 1])
    base, moved = tensors[0], result.tensor - tensors[0]
    assert moved.norm() > 1.2 * (voting.tensor - base).norm()
    # the anchor among others that are left out, and not the first
    order = [3, 0, 1, 2]
    shuffled = fuse(
        [tensors[k] for k in order], weights=[1, 0, 1, 2], center="anchor", anchor=1
    ).tensor
    assert relative_error(shuffled, result.tensor) <= 1e-12


@pytest.mark.parametrize("given", [0, 0.5, 5])
@pytest.mark.parametrize("others", [[1, 1, 1], [1, 2, 1]])
def test_recall_does_not_ask_what_an_anchor_weighs(given, others):
    tensors = fine_tunes(4, 0.1, (20, 400), dtype=torch.float64)  # wide: the prior is their sum
    options = {"consensus": "recall", "center": "anchor", "anchor": 0}
    expected = fuse(tensors, weights=[1, *others], **options)
    result = fuse(tensors, weights=[given, *others], **options)
    assert relative_error(result.tensor, expected.tensor) <= 1e-14
    np.testing.assert_allclose(result.weights, expected.weights, rtol=1e-14)
    halved = fuse(tensors, weights=[1, *(w / 2 for w in others)], **options)
    assert relative_error(halved.tensor, expected.tensor) <= 1e-14


def test_weighted_medians():
    for values, weights, expected in (
        ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], 2.0),
        ([3.0, 1.0, 2.0], [0.3, 0.1, 0.2], 2.5),  # 0.1 + 0.2 and 0.3: half and half
        ([3.0, 1.0, 2.0], [9.0, 1.0, 1.0], 3.0),
        ([1.0, 2.0], [2.0, 1.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0001], 3.0),
    ):
        values, weights = np.array(values), np.array(weights)
        assert weighted_median(values, weights) == expected
        assert fast_median(values[:, None], weights, axis=0) == [expected]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, 1], "weights: expected 3, one per input; got 2"),
        ([1, -1, 1], "weight: expected a number of at least 0; got -1"),
        ([1, float("nan"), 1], "weight: expected a number of at least 0; got nan"),
        ([0, 0, 0], "w: all models have weight 0"),
    ],
)
def test_weights_out_of_range(weights, says):
    with pytest.raises(YoyoError, match=says):
        fuse(fine_tunes(3, 0.1, (4, 5)), weights=weights, name="w")
