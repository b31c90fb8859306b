"""The merge against the float64 oracle: grid, dtypes, degenerate inputs, strides, invariances."""

import numpy as np
import pytest
import torch
from reference import yoyo_fusion
from tensors import OUTLIERS, fine_tunes, relative_error, same_bits

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm import streaming

CENTERS = ("geometric_median", "coordinate_median", "anchor")
DIFFERENCES = (1e-1, 1e-2, 1e-3, 1e-4)
RAGGED = (23, 3, 40)  # 2760 elements: two blocks of 1024 and a ragged tail

# relative L2; half a unit in the last place of float32 alone is 3e-8
FLOAT32 = 1.5e-7
FLOAT64 = 1e-12
# an outlier's directions share one eigenproblem with differences of 1e-4: 1e-16 / 1e-4, and more
FLOAT64_OUTLIER = 1e-9


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Chunks of one block (1024 elements), the smallest there is."""
    monkeypatch.setattr(streaming, "scratch_bytes", lambda device: 1)


def with_anchor(center, at=0):
    return {"center": center, "anchor": at if center == "anchor" else None}


def reference(tensors, **options):
    return yoyo_fusion([x.double().numpy() for x in tensors], **options)


def assert_exact(tensors, *, float64=FLOAT64, **options):
    """In float32 and in float64, as one chunk and as many. Returns the float64 result."""
    expected = reference(tensors, **options)
    in_float64 = fuse([x.double() for x in tensors], **options)
    assert relative_error(in_float64.tensor, expected.merge) <= float64
    in_float32 = fuse(tensors, **options)
    assert in_float32.tensor.dtype == torch.float32
    assert relative_error(in_float32.tensor, expected.merge) <= FLOAT32
    return in_float64


@pytest.mark.parametrize("chunks", ["whole", "tiles"])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", range(2, 9))
def test_grid(count, center, chunks, request):
    if chunks == "tiles":
        request.getfixturevalue("tiny_chunks")
    for difference in DIFFERENCES:
        tensors = fine_tunes(count, difference, RAGGED, seed=count)
        assert_exact(tensors, **with_anchor(center, at=count - 1))
        assert_exact(tensors, rescale="median", mad_median="lower", **with_anchor(center))


@pytest.mark.parametrize("chunks", ["whole", "tiles"])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("outlier", OUTLIERS)
def test_grid_with_an_outlier(outlier, center, chunks, request):
    if chunks == "tiles":
        request.getfixturevalue("tiny_chunks")
    for count in (3, 4, 5, 8):
        for difference in DIFFERENCES:
            for at in (0, count - 1):
                tensors = fine_tunes(count, difference, RAGGED, seed=count, outlier=outlier, at=at)
                for anchor in {at, 1} if center == "anchor" else {None}:
                    options = {"center": center, "anchor": anchor}
                    assert_exact(tensors, float64=FLOAT64_OUTLIER, **options)


@pytest.mark.parametrize("center", CENTERS)
def test_two_opposite_inputs(center):
    """The midpoint of two opposite tensors is their small difference, blown up to full norm."""
    for difference in DIFFERENCES:
        tensors = fine_tunes(2, difference, RAGGED, outlier="flipped")
        assert_exact(tensors, float64=FLOAT32, **with_anchor(center))


def correctly_rounded(values, dtype):
    """float64 to the nearest bfloat16 or float16, ties to even; torch goes through float32."""
    if dtype == torch.float16:
        return torch.from_numpy(values.astype(np.float16))
    mantissa, exponent = np.frexp(values)
    return torch.from_numpy(np.ldexp(np.round(mantissa * 2**8) / 2**8, exponent)).bfloat16()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("center", CENTERS)
def test_half_precision_is_correctly_rounded(center, dtype):
    wrong = total = 0
    for count in (2, 3, 4, 7):
        for difference in (1e-1, 1e-2, 1e-3):
            tensors = fine_tunes(count, difference, (128, 160), seed=count, dtype=dtype)
            result = fuse(tensors, **with_anchor(center)).tensor
            assert result.dtype == dtype
            expected = correctly_rounded(reference(tensors, **with_anchor(center)).merge, dtype)
            wrong += int((result != expected).sum())
            total += result.numel()
    assert wrong / total <= 1e-4


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_identical_inputs_return_the_first_bit_for_bit(center, dtype):
    x = fine_tunes(1, 0.1, (40, 50), dtype=dtype)[0]
    x[:3] = -0.0
    x[3:6] = 0.0
    for count in (2, 3, 4):
        copies = [x.clone() for _ in range(count)]
        result = fuse(copies, **with_anchor(center, at=1)).tensor
        assert same_bits(result, x)
        assert result.data_ptr() != copies[0].data_ptr()


def test_identical_values_of_two_dtypes_are_identical():
    x = fine_tunes(1, 0.1, (40, 50), dtype=torch.bfloat16)[0]
    assert same_bits(fuse([x, x.float(), x]).tensor, x.float())


@pytest.mark.parametrize("center", CENTERS)
def test_only_some_experts_identical(center):
    tensors = fine_tunes(3, 1e-2, (4, 30, 50), dtype=torch.bfloat16)
    for k in (1, 2):
        tensors[k][0] = tensors[0][0]
        tensors[k][2] = tensors[0][2]
    tensors[1][1] = tensors[0][1]  # two of three
    options = with_anchor(center, at=2)
    result = fuse(tensors, experts="separate", **options).tensor
    for expert in (0, 2):
        assert same_bits(result[expert], tensors[0][expert])
    for expert in (1, 3):
        expected = reference([x[expert] for x in tensors], **options).merge
        wrong = (result[expert] != correctly_rounded(expected, torch.bfloat16)).sum()
        assert wrong <= 1
    assert not torch.equal(result[3], tensors[0][3])


@pytest.mark.parametrize("center", CENTERS)
def test_residuals_below_step_4(center):
    """Inputs that differ by 1e-10 are not identical, and their center is the result."""
    tensors = fine_tunes(3, 1e-10, (20,), dtype=torch.float64)
    result = fuse(tensors, **with_anchor(center))
    expected = reference(tensors, **with_anchor(center))
    assert expected.rank == result.rank == 0
    assert result.energy_scale != 0
    assert (result.weights == 1).all()
    assert relative_error(result.tensor, expected.merge) <= 1e-14


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_zero_tensors(center, count):
    tensors = fine_tunes(count, 0.1, (30, 7))
    tensors[1] = torch.zeros(30, 7)
    assert_exact(tensors, **with_anchor(center))
    nothing = [torch.zeros(30, 7) for _ in range(count)]
    nothing[1].neg_()  # -0.0
    result = fuse(nothing, **with_anchor(center))
    assert same_bits(result.tensor, nothing[0])
    assert all(np.isfinite(x).all() for x in (result.weights, result.energy, result.rms))


@pytest.mark.parametrize("center", CENTERS)
def test_empty_single_and_scalar_tensors(center):
    for shape in ((0,), (3, 0, 2)):
        empty = [torch.empty(shape, dtype=torch.bfloat16) for _ in range(3)]
        assert fuse(empty, **with_anchor(center)).tensor is empty[0]
    for values in ([0.5, 0.7, 0.6], [1e-4, 2e-4, -1e-4], [3.0, 2.0], [1.0, 2.0, 3.0, -4.0]):
        for shape in ((), (1,), (1, 1)):
            tensors = [torch.full(shape, value) for value in values]
            expected = reference(tensors, **with_anchor(center))
            result = fuse(tensors, **with_anchor(center)).tensor
            assert result.shape == shape
            torch.testing.assert_close(
                result.double(), torch.from_numpy(np.asarray(expected.merge)), rtol=2e-7, atol=1e-9
            )


@pytest.mark.parametrize("center", CENTERS)
def test_one_input_is_returned_itself(center):
    x = fine_tunes(1, 0.1, (4, 5))[0]
    result = fuse([x], **with_anchor(center))
    assert result.tensor is x
    assert result.weights.size == 0


def test_two_inputs_give_the_midpoint():
    tensors = fine_tunes(2, 0.1, (40, 50), dtype=torch.float64)
    unit = [x / x.norm() for x in tensors]
    result = fuse(tensors)
    midpoint = (unit[0] + unit[1]) / 2
    direction = result.tensor / result.tensor.norm()
    torch.testing.assert_close(direction, midpoint / midpoint.norm(), rtol=0, atol=1e-9)
    assert relative_error(result.tensor.norm(), (tensors[0].norm() + tensors[1].norm()) / 2) < 1e-7
    assert result.center_status == "midpoint"
    np.testing.assert_allclose(result.center_weights, [0.5, 0.5])


def test_two_inputs_with_the_lower_median_return_the_anchor():
    """So does the authors' script, which is why the standard median is the default."""
    tensors = fine_tunes(2, 0.1, (40, 50), dtype=torch.float64)
    options = with_anchor("anchor")
    lower = fuse(tensors, mad_median="lower", **options)
    direction = tensors[0] / tensors[0].norm()
    torch.testing.assert_close(lower.tensor / lower.tensor.norm(), direction, rtol=0, atol=1e-9)
    assert relative_error(fuse(tensors, **options).tensor, lower.tensor) > 1e-3


@pytest.mark.parametrize("center", CENTERS)
def test_many_inputs(center, tiny_chunks):
    assert_exact(fine_tunes(64, 0.1, (30, 50)), **with_anchor(center, at=40))


def test_more_inputs_than_rows_fit_into_scratch(tiny_chunks):
    tensors = fine_tunes(300, 0.1, (1100,))
    assert_exact(tensors, center="coordinate_median")


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(
    "pattern", [(0, 0, 1), (0, 1, 1), (0, 0, 1, 1), (0, 1, 0, 2), (0, 0, 0, 1)]
)
def test_duplicates(pattern, center):
    different = fine_tunes(3, 1e-2, (40, 30))
    result = assert_exact([different[i] for i in pattern], **with_anchor(center))
    if center == "geometric_median":
        expected = "midpoint" if len(set(pattern)) == 2 else "data_point"
        assert result.center_status == expected
        if pattern != (0, 0, 1, 1):  # else a tie
            majority = max(pattern, key=pattern.count)
            assert result.center_weights[np.equal(pattern, majority)].sum() == pytest.approx(1)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("places", [(-1, 0, 2), (0, 1, 3, -2, -1)])
def test_inputs_along_one_line(places, center):
    base, direction = (x.double() for x in fine_tunes(2, 1.0, (40, 30)))
    tensors = [(base + 0.01 * place * direction).float() for place in places]
    result = assert_exact(tensors, **with_anchor(center))
    if center == "geometric_median":
        np.testing.assert_allclose(
            result.center_weights, np.eye(len(places))[np.argsort(places)[len(places) // 2]]
        )


def test_geometric_median_on_an_input():
    base, one, other = (x.double() for x in fine_tunes(3, 1.0, (40, 30)))
    shifts = (one, -one, 0 * one, other, -other)
    tensors = [(base + 1e-2 * shift).float() for shift in shifts]
    result = assert_exact(tensors)
    assert result.center_status == "data_point"
    np.testing.assert_array_equal(result.center_weights, [0, 0, 1, 0, 0])


@pytest.mark.parametrize("center", CENTERS)
def test_mixed_dtypes_are_promoted(center):
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    tensors = [x.to(dtype) for x, dtype in zip(fine_tunes(3, 0.1, (40, 30)), dtypes, strict=True)]
    expected = reference(tensors, **with_anchor(center)).merge
    result = fuse(tensors, **with_anchor(center)).tensor
    assert result.dtype == torch.float32
    assert relative_error(result, expected) <= FLOAT32
    assert fuse(tensors[:2], **with_anchor(center)).tensor.dtype == torch.float32
    wide = fuse([tensors[0], tensors[2].double()], **with_anchor(center)).tensor
    assert wide.dtype == torch.float64


def strided(x, kind):
    """A view that is not contiguous and equals x, in storage of its own."""
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "sliced":
        return torch.stack([x, torch.full_like(x, 9.0)], dim=-1)[..., 0]
    if kind == "packed gate":
        return torch.cat([x, torch.full_like(x, 9.0)], dim=1)[:, : x.shape[1]]
    return x[:, :1].expand_as(x)


@pytest.mark.parametrize("chunks", ["whole", "tiles"])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("kind", ["transposed", "sliced", "packed gate", "expanded"])
def test_strides(kind, center, chunks, request):
    if chunks == "tiles":
        request.getfixturevalue("tiny_chunks")
    tensors = fine_tunes(3, 0.01, (7, 41, 53))
    views = [strided(tensors[0], kind), *tensors[1:]]
    assert not views[0].is_contiguous()
    before = [x.clone() for x in views]
    assert_exact(views, **with_anchor(center))
    everywhere = [strided(x, kind) for x in tensors]
    assert_exact(everywhere, **with_anchor(center))
    apart = fuse(everywhere, experts="separate", **with_anchor(center)).tensor
    for i in (0, 6):
        expected = reference([x[i] for x in everywhere], **with_anchor(center)).merge
        assert relative_error(apart[i], expected) <= FLOAT32
    assert all(same_bits(x, y) for x, y in zip(views, before, strict=True))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inputs_are_never_written_to(center, dtype, tiny_chunks):
    for count in (2, 4):
        tensors = fine_tunes(count, 0.1, (3, 700), dtype=dtype)
        before = [x.clone() for x in tensors]
        result = fuse(tensors, **with_anchor(center)).tensor
        fuse(tensors, experts="packed", **with_anchor(center))
        result.zero_()
        assert all(same_bits(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("center", CENTERS)
def test_chunks_threads_and_order_change_nothing_but_rounding(center, monkeypatch):
    tensors = fine_tunes(5, 0.01, (150, 211), dtype=torch.float64)
    first = fuse(tensors, **with_anchor(center)).tensor
    for size in (1, 10_000, 123_456, 2**30):
        monkeypatch.setattr(streaming, "scratch_bytes", lambda device, size=size: size)
        assert relative_error(fuse(tensors, **with_anchor(center)).tensor, first) <= 1e-13
    monkeypatch.undo()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert relative_error(fuse(tensors, **with_anchor(center)).tensor, first) <= 1e-13
    finally:
        torch.set_num_threads(threads)
    for order in ((4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        shuffled = fuse([tensors[i] for i in order], **with_anchor(center, at=order.index(0)))
        assert relative_error(shuffled.tensor, first) <= 1e-13


@pytest.mark.parametrize("center", CENTERS)
def test_median_rescale_ignores_a_wrong_scale(center):
    good = fine_tunes(4, 0.01, (40, 30))
    broken = [*good[:2], 100 * good[2], good[3]]
    norm = good[0].norm()
    assert_exact(broken, rescale="median", float64=FLOAT64_OUTLIER, **with_anchor(center))
    assert fuse(broken, rescale="median", **with_anchor(center)).tensor.norm() / norm < 1.02
    assert fuse(broken, rescale="mean", **with_anchor(center)).tensor.norm() / norm > 20


@pytest.mark.parametrize("count", [3, 4, 5, 8])
@pytest.mark.parametrize("max_scale", [1.0, 1.05, 10.0])
def test_energy_truncation_around_the_coordinate_median(count, max_scale):
    """Only there R has rank K: the last direction is cut off, and lambda makes up for it."""
    tensors = fine_tunes(count, 0.3, (40, 30))
    options = {"center": "coordinate_median", "max_scale": max_scale}
    expected = reference(tensors, **options)
    result = assert_exact(tensors, **options)
    assert result.rank == expected.rank == count - 1
    assert result.energy == pytest.approx(expected.energy, rel=1e-12)
    assert result.energy < 0.99
    assert result.energy_scale == pytest.approx(expected.energy_scale, rel=1e-12)
    assert result.energy_scale == pytest.approx(min(1 / result.energy, max_scale), rel=1e-6)
    np.testing.assert_allclose(result.residual_norms, expected.residual_norms, rtol=1e-12)


@pytest.mark.parametrize("center", ["geometric_median", "anchor"])
def test_no_truncation_where_the_center_is_in_the_span(center):
    tensors = fine_tunes(4, 0.1, (40, 30))
    result = fuse(tensors, **with_anchor(center))
    assert result.rank == 3
    assert result.energy == pytest.approx(1, abs=1e-8)
    assert result.energy_scale == pytest.approx(1, abs=1e-7)
    expected = reference(tensors, **with_anchor(center))
    np.testing.assert_allclose(result.residual_norms, expected.residual_norms, atol=1e-10)
    np.testing.assert_allclose(
        np.sqrt(np.diag(result.residual_gram)), result.residual_norms, rtol=1e-12
    )


def test_fields_describe_the_merge():
    tensors = fine_tunes(5, 0.01, (40, 30), outlier="noise", at=3, dtype=torch.float64)
    result = fuse(tensors)
    combination = sum(c * x for c, x in zip(result.coefficients, tensors, strict=True))
    assert relative_error(result.tensor, combination) <= 1e-14
    np.testing.assert_allclose(result.norms, [float(x.norm()) for x in tensors], rtol=1e-12)
    rms = [float((x.square().mean() + 1e-8).sqrt()) for x in tensors]
    np.testing.assert_allclose(result.rms, rms, rtol=1e-12)
    assert result.weights[3] < 0.01  # rejected
    assert result.weights.argmin() == 3
    assert result.center_weights.sum() == pytest.approx(1)
    assert result.center_status == "converged"
    assert 0 < result.iterations < 20
    around_median = fuse(tensors, center="coordinate_median")
    assert np.isnan(around_median.coefficients).all()
    assert around_median.center_status == "direct"


def test_inputs_lost_beside_others_stay_lost():
    """Beside 1e30 nothing is left of 1e15: it must not be scaled up to the size of the others."""
    tensors = torch.zeros(6, 5, dtype=torch.float64)
    tensors[0, 2], tensors[0, 3] = 9.979548064670657e29, -9.694694937843789e28
    tensors[1, 4], tensors[2, 4] = 9.99999999953883e29, 5.013263674355519e29
    tensors[5, 4] = tensors[2, 4]
    tensors[3, 3], tensors[4, 3] = 7837318882787328.0, 941181953376256.0
    for order in (range(6), (1, 0, 4, 2, 3, 5), (3, 1, 2, 0, 4, 5)):
        result = fuse([tensors[i] for i in order]).tensor
        assert 1e28 < result.norm() <= 1.001e30


def test_inputs_that_cancel_leave_no_more_than_their_norm():
    """Of two opposite inputs nothing is left but round-off, which has no norm to restore."""
    for first, second in ((-41.0, 6.0), (3.0, -2.0), (1.0, -1.0), (13.0, -17.0)):
        x = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        for center in ("geometric_median", "coordinate_median"):
            result = fuse([first * x, second * x], center=center).tensor
            assert result.norm() <= max(abs(first), abs(second)) * x.norm()


@pytest.mark.parametrize("size", [1.0, 10.0])
@pytest.mark.parametrize("small", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("center", ["geometric_median", "anchor"])
def test_a_zero_or_tiny_input_among_large_ones(size, small, place, center):
    """Norm weights have an RMS near 1: a small input scaled up to it must not bring noise along."""
    tensors = [size * 50 * x for x in fine_tunes(4, 1e-3, (40, 50), dtype=torch.float64)]
    tensors[place] = tensors[place] * small
    options = {"center": center, "anchor": 1 if center == "anchor" else None}
    expected = yoyo_fusion([x.numpy() for x in tensors], **options)
    result = fuse(tensors, **options)
    assert result.rank == expected.rank
    assert relative_error(result.tensor, torch.from_numpy(expected.merge)) <= 1e-9
