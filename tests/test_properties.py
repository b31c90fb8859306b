"""What holds for any inputs: equivariance, order, bounded influence, finite results."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import fine_tunes, relative_error

from mergekit_yoyo import fuse

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)

counts = st.integers(2, 7)
seeds = st.integers(0, 2**16)
differences = st.sampled_from([0.3, 0.1, 1e-2, 1e-3])
centers = st.sampled_from(["geometric_median", "coordinate_median", "anchor"])
averages = st.sampled_from(["mean", "median"])
shapes = st.sampled_from([(257,), (24, 32), (6, 10, 8), (1, 100)])


def options(center, anchor=0):
    return {"center": center, "anchor": anchor if center == "anchor" else None}


@few
@given(counts, differences, shapes, centers, averages, seeds, st.floats(0.3, 1e3))
def test_scaling_all_inputs_scales_the_merge(
    count, difference, shape, center, rescale, seed, factor
):
    """Up to eps of the formulas, which is set to nothing here."""
    tensors = fine_tunes(count, difference, shape, seed=seed, dtype=torch.float64)
    arguments = {"rescale": rescale, "eps": 1e-18, **options(center)}
    merged = fuse(tensors, **arguments).tensor
    scaled = fuse([factor * x for x in tensors], **arguments).tensor
    assert relative_error(scaled, factor * merged) <= 1e-10
    negated = fuse([-x for x in tensors], **arguments).tensor
    assert relative_error(negated, -merged) <= 1e-10


@few
@given(st.data(), counts, differences, shapes, centers, averages, seeds)
def test_order_of_inputs(data, count, difference, shape, center, rescale, seed):
    order = data.draw(st.permutations(range(count)))
    tensors = fine_tunes(count, difference, shape, seed=seed, dtype=torch.float64)
    first = fuse(tensors, rescale=rescale, **options(center))
    second = fuse([tensors[i] for i in order], rescale=rescale, **options(center, order.index(0)))
    assert relative_error(second.tensor, first.tensor) <= 1e-12
    np.testing.assert_allclose(second.weights, first.weights[list(order)], atol=1e-8)


@few
@given(counts, shapes, centers, seeds, st.data())
def test_permuting_the_elements(count, shape, center, seed, data):
    """The method knows vectors, not positions: elements may stand in any order."""
    tensors = fine_tunes(count, 0.1, shape, seed=seed, dtype=torch.float64)
    order = torch.randperm(tensors[0].numel(), generator=torch.Generator().manual_seed(seed))
    merged = fuse(tensors, **options(center)).tensor.flatten()
    permuted = fuse([x.flatten()[order] for x in tensors], **options(center)).tensor
    assert relative_error(permuted, merged[order]) <= 1e-12


@few
@given(
    st.integers(4, 7),
    differences,
    st.sampled_from(["geometric_median", "coordinate_median"]),
    seeds,
    st.data(),
    st.sampled_from(["noise", "flipped", "scaled", "zero", "shuffled", "spike"]),
    st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
)
def test_one_broken_input_has_bounded_influence(
    count, difference, center, seed, data, kind, strength
):
    """However broken, it moves the merge by no more than the good ones differ themselves."""
    at = data.draw(st.integers(0, count - 1))
    tensors = fine_tunes(count, difference, (24, 32), seed=seed, dtype=torch.float64)
    good = [x for i, x in enumerate(tensors) if i != at]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(24, 32, generator=generator, dtype=torch.float64)
    x = tensors[at]
    spike = x.clone()
    spike[3, 5] = strength
    tensors[at] = {
        "noise": x + strength * noise,
        "flipped": -strength * x,
        "scaled": strength * x,
        "zero": 0 * x,
        "shuffled": x.flatten()[torch.randperm(768, generator=generator)].view(24, 32),
        "spike": spike,
    }[kind]
    without = fuse(good, rescale="median", center=center).tensor
    merged = fuse(tensors, rescale="median", center=center).tensor
    apart = max(relative_error(x, without) for x in good)
    assert relative_error(merged, without) <= 1.5 * apart


@few
@given(
    st.lists(
        st.lists(
            st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-30),
            min_size=5,
            max_size=5,
        ),
        min_size=2,
        max_size=6,
    ),
    centers,
    averages,
    st.sampled_from(["standard", "lower"]),
)
def test_the_result_is_finite(values, center, rescale, mad_median):
    tensors = [torch.tensor(row, dtype=torch.float64) for row in values]
    before = [x.clone() for x in tensors]
    result = fuse(tensors, rescale=rescale, mad_median=mad_median, **options(center))
    assert result.tensor.isfinite().all()
    # step 9 restores the norm of the inputs, or leaves less where they cancel
    assert result.tensor.norm() <= 1.01 * max(float(x.norm()) for x in tensors)
    assert ((result.weights >= 0) & (result.weights <= 1 + 1e-12)).all()
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
