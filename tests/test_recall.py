"""`consensus: recall` against the float64 reference: P itself, whatever the merge is rounded to."""

import math
from contextlib import ExitStack

import numpy as np
import on_device
import pytest
import torch
from recall_reference import recall
from tensors import relative_error, same_bits

from mergekit_yoyo.algorithm import fuse, spaces
from mergekit_yoyo.algorithm.options import Options
from mergekit_yoyo.algorithm.packing import WHOLE, Packing, problems
from mergekit_yoyo.algorithm.precision import whole_float32, working_dtype
from mergekit_yoyo.algorithm.recall import Recall
from mergekit_yoyo.algorithm.rounding import Destination
from mergekit_yoyo.algorithm.spaces import LinearInputs
from mergekit_yoyo.algorithm.span import span_of
from mergekit_yoyo.algorithm.tolerances import FLOAT32_ENLARGED
from mergekit_yoyo.errors import YoyoError

# relative L2 error of P: float64 inputs are subtracted before they are multiplied, others not
EXACT, SINGLE = 1e-9, 1e-6
SHAPES = {
    "square": ("linear", (48, 48)),
    "wide": ("linear", (24, 160)),
    "tall": ("linear", (160, 32)),
    "conv": ("linear", (20, 6, 4)),
    "transposed": ("transposed", (40, 72)),
    "embedding": ("embedding", (120, 16)),
    "vector": ("vector", (96,)),
}


def learned(count, difference, shape, *, rank=None, seed=0, dtype=torch.float64):
    """`count` fine-tunes whose differences have full rank, or that of a LoRA."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base, tensors = noise(*shape), []
    for _ in range(count):
        move = noise(*shape) if rank is None else noise(shape[0], rank) @ noise(rank, *shape[1:])
        tensors.append(base + difference * base.norm() / move.norm() * move)
    return [(0.02 * x).to(dtype) for x in tensors]


def move_of(tensors, kind="auto", *, packing=WHOLE, anchor=None, center=None, **more):
    """m + P and the details, in float64 whatever the inputs are."""
    center = center or ("geometric_median" if anchor is None else "anchor")
    given = {"recall_strength": 1.0, "recall_precision": "float64", **more}
    options = Options(consensus="recall", center=center, **given)
    inputs = [problems(x.to(on_device.used), packing) for x in tensors]
    merge = torch.empty(tensors[0].shape, dtype=torch.float64, device=on_device.used)
    span = span_of(inputs, center, anchor, options.eps, np.ones(len(inputs)))
    details = Recall().merge(
        inputs, span, options, anchor, kind, Destination(problems(merge, packing))
    )
    return merge.cpu(), on_device.brought_back(details)


def arrays(tensors):
    return [x.double().numpy() for x in tensors]


def assert_recalls(tensors, kind="linear", **options):
    expected = recall(arrays(tensors), kind=kind, strength=1.0, anchor=options.get("anchor"))
    merge, details = move_of(tensors, kind, **options)
    error = relative_error(merge.numpy() - expected.center, expected.move)
    assert error <= (EXACT if tensors[0].dtype == torch.float64 else SINGLE), f"{error:.1e}"
    np.testing.assert_allclose(details.weights[0], expected.trust, atol=1e-8)
    np.testing.assert_allclose(details.recalled.numpy()[0], expected.recalled, rtol=1e-5)
    return expected, details


# few and many inputs, far and close, each precision: the corners of a grid that was tried whole
@pytest.mark.parametrize(
    ("count", "dtype", "difference"),
    [
        (3, torch.float64, 1e-4),
        (8, torch.float64, 1e-1),
        (4, torch.float32, 1e-4),
        (5, torch.float32, 1e-1),
        (8, torch.bfloat16, 1e-2),  # which does not resolve 1e-4
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_move_is_the_references(shape, count, difference, dtype):
    kind, size = SHAPES[shape]
    tensors = learned(count, difference, size, dtype=dtype)
    assert_recalls(tensors, kind)
    assert_recalls(tensors, kind, anchor=count - 1)


@pytest.mark.parametrize("difference", [1e-1, 1e-4])
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("size", [(64, 64), (40, 400), (256, 64)])
def test_lora_differences(size, rank, difference):
    for dtype in (torch.float64, torch.float32):
        tensors = learned(3, difference, size, rank=rank, dtype=dtype)
        expected, details = assert_recalls(tensors)
        assert expected.condition <= details.condition_number[0] <= 10 * expected.condition
        assert_recalls(tensors, anchor=0)


@pytest.mark.parametrize("scratch", [1, 100_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_rows_change_nothing(shape, scratch, monkeypatch):
    monkeypatch.setattr(spaces, "scratch_bytes", lambda device: scratch)
    kind, size = SHAPES[shape]
    assert_recalls(learned(4, 0.01, size), kind)


def test_order_and_threads_change_round_off_only():
    tensors = learned(5, 0.01, (200, 150))
    merge, details = move_of(tensors)
    order = [3, 0, 4, 2, 1]
    other, shuffled = move_of([tensors[k] for k in order])
    assert relative_error(other, merge) <= 1e-13
    np.testing.assert_allclose(shuffled.weights[0], details.weights[0, order], atol=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert relative_error(move_of(tensors)[0], merge) <= 1e-13
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("budget", [None, 1])
def test_packed_experts_are_recalled_one_by_one(budget, monkeypatch):
    if budget:
        monkeypatch.setattr(spaces, "MATRICES_BYTES", budget)
    tensors = learned(4, 0.03, (5, 2 * 12, 20))
    tensors[1][2] *= -1  # one broken expert of one model
    gate_up = Packing(stacked=True, pieces=2)
    merge, details = move_of(tensors, packing=gate_up)
    for expert in range(5):
        for piece, rows in enumerate((slice(0, 12), slice(12, 24))):
            expected = recall(arrays([x[expert, rows] for x in tensors]), strength=1.0)
            move = merge[expert, rows].numpy() - expected.center
            assert relative_error(move, expected.move) <= EXACT
            problem = 2 * expert + piece
            np.testing.assert_allclose(details.weights[problem], expected.trust, atol=1e-9)
            assert (details.weights[problem, 1] == 0) == (expert == 2)


def test_a_rejected_input_contributes_exactly_nothing():
    good = learned(4, 0.01, (40, 30))
    for kind, shape in (("linear", (40, 30)), ("embedding", (40, 30)), ("vector", (1200,))):
        inputs = [x.reshape(shape) for x in good]
        noise = torch.randn(shape).double()
        merges = []
        for broken in ((-inputs[1], noise), (100 * noise, -inputs[0]), (noise, -noise)):
            merge, details = move_of([*inputs, *broken], kind, anchor=0)
            assert details.weights[0].tolist()[4:] == [0, 0]
            assert details.recalled[0, 4:].isnan().all()
            merges.append(merge)
        assert all(same_bits(merge, merges[0]) for merge in merges[1:])
        expected = recall(arrays([*inputs, noise, -noise]), kind, anchor=0, strength=1.0)
        assert relative_error(merges[0].numpy() - expected.center, expected.move) <= EXACT


def test_an_input_of_wrong_scale():
    """Its direction is right, so that it is trusted; only the median tells its scale is wrong."""
    good = learned(4, 0.01, (40, 30))
    scaled = [*good[:3], 100 * good[3]]
    result = fuse(scaled, consensus="recall", recall_strength=1.0, rescale="median")
    expected = recall(arrays(scaled), strength=1.0, rescale="median")
    assert relative_error(result.tensor.numpy(), expected.merge) <= 1e-12
    assert relative_error(result.tensor, fuse(good, consensus="recall").tensor) <= 0.02
    assert fuse(scaled, consensus="recall").tensor.norm() > 10 * good[0].norm()


def test_an_input_at_the_anchor_contributes_exactly_nothing():
    tensors = learned(4, 0.01, (40, 30))
    tensors[2] = tensors[0].clone()  # the anchor again
    merge, details = move_of(tensors, anchor=0)
    expected = recall(arrays(tensors), anchor=0, strength=1.0)
    assert relative_error(merge.numpy() - expected.center, expected.move) <= EXACT
    assert details.recalled[0].isnan().tolist() == [True, False, True, False]
    without = recall(
        arrays(tensors[:2] + tensors[3:]), anchor=0, strength=1.0, tukey_c=1e9
    )  # everybody trusted alike: only the distances' median could tell the two apart
    with_it = recall(arrays(tensors), anchor=0, strength=1.0, tukey_c=1e9)
    assert relative_error(with_it.move, without.move) <= 1e-12


@pytest.mark.parametrize("strength", [0.5, "auto"])
def test_strength(strength):
    for count, anchor in ((3, None), (4, None), (8, None), (3, 0)):
        tensors = learned(count, 0.01, (24, 20))
        center = "geometric_median" if anchor is None else "anchor"
        result = fuse(
            tensors, consensus="recall", recall_strength=strength, center=center, anchor=anchor
        )
        expected = recall(arrays(tensors), anchor=anchor)
        beta = expected.strength if strength == "auto" else strength
        assert result.strength == pytest.approx(beta, rel=1e-9)
        assert (
            relative_error(result.tensor.numpy(), expected.center + beta * expected.move) <= 1e-12
        )


@pytest.mark.parametrize("kind", ["linear", "embedding", "vector"])
@pytest.mark.parametrize("ridge", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("alpha", [0, 0.65, 1])
def test_the_prior_around_an_anchor(alpha, ridge, kind):
    tensors = learned(4, 0.05, (600,) if kind == "vector" else (30, 20))
    options = {"center": "anchor", "anchor": 0, "ridge": ridge, "recall_prior": alpha}
    merge = fuse(tensors, consensus="recall", kind=kind, **options).tensor
    expected = recall(arrays(tensors), kind, anchor=0, ridge=ridge, prior=alpha)
    assert relative_error(merge.numpy() - expected.center, expected.move) <= EXACT
    if ridge == 1e6:  # task arithmetic with that factor
        base, *others = tensors
        trusted = zip(expected.trust[1:], others, strict=True)
        task = base + alpha * sum(float(omega) * (x - base) for omega, x in trusted)
        assert relative_error(merge, task) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "shape", "ridge", "prior"),
    [
        ("linear", (8, 16), 10.0, 0.4),
        ("linear", (8, 128), 10.0, 0.4),
        ("linear", (8, 288), 10 / 1.5, 0.6),
        ("linear", (8, 2048), 3.0, 1.0),
        ("transposed", (288, 8), 10 / 1.5, 0.6),
        ("embedding", (600, 288), 10.0, 0.4),
        ("vector", (600,), 10.0, 0.4),
    ],
)
def test_ridge_and_prior_go_by_the_width_of_a_layer(kind, shape, ridge, prior):
    """By default, for five models: 10 / w, at least 3, and 2 w / 5, at most 1; w^2 is 1 up to 128
    inputs, then inputs / 128."""
    tensors = learned(6, 1e-3, shape)
    for anchor in (None, 0):
        given = {"tukey_c": 1e4} | (
            {} if anchor is None else {"center": "anchor", "anchor": anchor}
        )
        merge = fuse(tensors, consensus="recall", kind=kind, **given).tensor
        expected = recall(
            arrays(tensors), kind, anchor=anchor, ridge=ridge, prior=prior, tukey_c=1e4
        )
        moved = expected.merge - expected.center
        assert relative_error(merge.numpy() - expected.center, moved) <= 1e-7


def test_one_model_around_an_anchor_comes_back_whole():
    base, tuned = learned(2, 0.05, (30, 20))
    merge = fuse([base, tuned], consensus="recall", center="anchor", anchor=0).tensor
    omega = recall(arrays([base, tuned]), anchor=0).trust[1]
    assert omega > 0.8
    assert relative_error(merge - base, tuned - base) <= 1 - omega


# 1/20 of a step where the value is the RMS of the tensor or more, of that where it is less
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ridge", [0.1, 3.0])
@pytest.mark.parametrize("rank", [1, 2, None])
@pytest.mark.parametrize(
    ("kind", "size"), [("linear", (200, 256)), ("linear", (96, 600)), ("embedding", (300, 40))]
)
def test_single_precision_is_hidden_by_the_rounding(kind, size, rank, ridge, dtype):
    tensors = learned(4, 0.1, size, rank=rank, dtype=dtype)
    for center, anchor in (("geometric_median", None), ("anchor", 0)):
        options = Options(consensus="recall", center=center, ridge=ridge)
        merge = torch.empty((1, *size), dtype=torch.float64)  # not rounded
        inputs = [problems(x, WHOLE) for x in tensors]
        span = span_of(inputs, center, anchor, options.eps, np.ones(len(inputs)))
        Recall().merge(inputs, span, options, anchor, kind, Destination(merge))
        expected = recall(arrays(tensors), kind, anchor=anchor, ridge=ridge).merge
        step = torch.finfo(dtype).eps / 2 * np.maximum(abs(expected), (expected**2).mean() ** 0.5)
        error = (abs(merge[0].numpy() - expected) / step).max()
        assert 0 < error <= 1 / 20, error


def test_the_precision_is_double_where_single_would_show():
    for dtype, square, expected, most in (
        (torch.bfloat16, 1e-3, torch.float32, FLOAT32_ENLARGED),
        (torch.float16, 1e-3, torch.float32, FLOAT32_ENLARGED / 8),
        (torch.float32, 1e-3, torch.float64, math.inf),
        (torch.bfloat16, 1e-30, torch.float64, math.inf),
    ):
        inputs, squares = [torch.zeros(1, dtype=dtype)], np.array([1e-3, square])
        assert working_dtype("auto", inputs, squares=squares) == (expected, most)
        for precision in ("float32", "float64"):
            asked = working_dtype(precision, inputs, squares=squares)
            assert asked == (getattr(torch, precision), math.inf)


@pytest.mark.parametrize("asked", ["high", "medium"])
def test_products_in_less_than_float32_are_not_taken(asked, monkeypatch):
    """A training loop may have told torch to: on GPUs, and some processors, it is 1e-3 off then."""
    tensors = learned(3, 0.1, (96, 128), dtype=torch.float32)
    options = {"consensus": "recall", "recall_precision": "float32"}
    expected, energies, during = fuse(tensors, **options).tensor, LinearInputs.energies, []
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)

    def listen(space):
        during.extend(backend.fp32_precision for backend in backends)
        return energies(space)

    monkeypatch.setattr(LinearInputs, "energies", listen)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        found = fuse(tensors, **options).tensor
        assert torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision(before)
    assert during == ["ieee", "ieee"]
    assert same_bits(found, expected)


def test_the_last_thread_gives_back_what_was_asked_for():
    """Two threads that multiply at once: the first leaves before the second."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with ExitStack() as second:
            with whole_float32():
                second.enter_context(whole_float32())
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("rank", [1, None])
@pytest.mark.parametrize(("count", "size"), [(3, (64, 48)), (8, (40, 120))])
def test_what_round_off_is_enlarged_by(count, size, rank):
    """in / rho max_k |R_k| / |x_k|, times the longest row and column over those of flat ones."""
    tensors = learned(count, 0.1, size, rank=rank)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        enlarged = LinearInputs.enlarged

        def listen(*arguments):
            found.append(enlarged(*arguments))
            return torch.zeros_like(found[-1])

        patch.setattr(LinearInputs, "enlarged", listen)
        halves = [x.bfloat16() for x in tensors]
        tensors = [x.double() for x in halves]
        move_of(halves, "linear", ridge=0.5, recall_precision="auto")
    expected = recall(arrays(tensors), "linear", ridge=0.5)
    rows = share = 0.0
    total = np.zeros((size[1], size[1]))
    for x, omega in zip(arrays(tensors), expected.trust, strict=True):
        residual = x - expected.center
        length = np.linalg.norm(residual)
        share = max(share, length / np.linalg.norm(x))
        rows = max(rows, omega**0.5 * np.linalg.norm(residual, axis=1).max() / length)
        total += omega * residual.T @ residual / length**2
    columns = np.linalg.norm(total, axis=0).max()
    expected = size[1] / 0.5 * share * (size[0] * size[1]) ** 0.5 * rows * columns
    assert float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_a_matrix_that_single_precision_would_spoil_is_merged_in_double():
    few = learned(8, 0.1, (128, 512), rank=1, dtype=torch.bfloat16)
    options = {"consensus": "recall", "ridge": 0.1}
    auto, double, single = (
        fuse(few, recall_precision=precision, **options).tensor
        for precision in ("auto", "float64", "float32")
    )
    assert same_bits(auto, double)
    assert not same_bits(auto, single)


def test_a_usual_matrix_is_merged_in_single():
    usual = learned(3, 0.02, (256, 320), dtype=torch.bfloat16)
    auto, double, single = (
        fuse(usual, recall_precision=precision, consensus="recall").tensor
        for precision in ("auto", "float64", "float32")
    )
    assert same_bits(auto, single)
    assert not same_bits(auto, double)


def test_a_ridge_that_is_lost_in_single_precision_is_an_error():
    few = learned(3, 0.1, (128, 512), rank=1, dtype=torch.bfloat16)
    options = {"consensus": "recall", "ridge": 1e-6, "name": "w"}
    with pytest.raises(YoyoError, match="w: the ridge 1e-06 is lost in the round-off of"):
        fuse(few, recall_precision="float32", **options)
    fuse(few, recall_precision="float32", **{**options, "ridge": 1.0})
    assert fuse(few, **options).tensor.isfinite().all()


def test_orthogonal_moves_come_back_whole_with_the_closed_form():
    """K models that moved in orthogonal input directions: P has (K - 2) / (K - 1) of each."""
    count, rank = 4, 5
    directions = torch.linalg.qr(torch.randn(60, 60).double())[0]
    base = torch.randn(80, 60).double()
    moves = [
        0.1 * torch.randn(80, rank).double() @ directions[k * rank : (k + 1) * rank]
        for k in range(count)
    ]
    moves = [0.1 * move / move.norm() * base.norm() for move in moves]
    tensors = [base + move for move in moves]
    result = fuse(tensors, consensus="recall", recall_strength=1.5, ridge=1e-6)
    for k, move in enumerate(moves):
        share = ((result.tensor - base) * move).sum() / move.square().sum()
        assert share == pytest.approx(1.0, abs=0.02), k


def test_two_inputs_have_nothing_to_recall():
    tensors = learned(2, 0.1, (12, 10))
    result = fuse(tensors, consensus="recall")
    assert result.strength == 0
    assert relative_error(result.tensor, (tensors[0] + tensors[1]) / 2) <= 1e-15
    three = [*tensors, -tensors[0]]
    rejected = fuse(three, consensus="recall")
    assert rejected.weights[2] == 0
    assert rejected.strength == 0


def test_identical_inputs_come_back_bit_for_bit():
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(9, 7).to(dtype)
        assert same_bits(fuse([x, x.clone(), x.clone()], consensus="recall").tensor, x)
    packed = [torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))] * 3
    merged = fuse(packed, consensus="recall", experts="separate").tensor
    assert same_bits(merged, packed[0])


@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median"])
def test_round_off_rejects_nobody(center):
    """Distances of 1e-6 between identical inputs are no distances."""
    generator = torch.Generator().manual_seed(0)
    for count, size in ((4, 1000), (7, 120_000), (8, 10_000)):
        x = torch.randn(size, generator=generator)
        result = fuse([x.clone() for _ in range(count)], consensus="recall", center=center)
        assert result.weights.tolist() == [1] * count
        same = fuse([*[x.clone() for _ in range(count)], -x], consensus="recall", center=center)
        assert same.weights.tolist() == [1] * count + [0]


@pytest.mark.parametrize("kind", ["linear", "vector"])
def test_a_constant_that_trusts_nobody_leaves_the_mean(kind):
    tensors = learned(4, 0.05, (12, 10))
    result = fuse(tensors, consensus="recall", tukey_c=0.1, kind=kind)
    assert result.weights.tolist() == [0] * 4
    assert relative_error(result.tensor, sum(tensors) / 4) <= 1e-14


def test_residuals_whose_squares_underflow_count_as_zero():
    tensors = [1e-158 * x for x in learned(3, 0.05, (12, 10))]
    merge = fuse(tensors, consensus="recall").tensor
    assert relative_error(1e158 * merge, sum(1e158 * x for x in tensors) / 3) <= 1e-14


def test_a_coordinate_median_to_start_from_leads_to_the_same_center():
    tensors = learned(5, 0.02, (30, 20))
    merge, details = move_of(tensors)
    other, found = move_of(tensors, center="coordinate_median")
    np.testing.assert_allclose(found.weights, details.weights, atol=1e-9)
    assert relative_error(other, merge) <= 1e-9


def test_dtypes_and_strides():
    tensors = learned(3, 0.02, (30, 20))
    merged = fuse(tensors, consensus="recall").tensor
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype) for x in tensors]
        kept = [x.clone() for x in inputs]
        result = fuse(inputs, consensus="recall").tensor
        assert result.dtype == dtype
        exact = fuse([x.double() for x in inputs], consensus="recall").tensor
        double = fuse(inputs, consensus="recall", recall_precision="float64").tensor
        assert same_bits(double, exact.to(dtype))
        assert relative_error(result, exact) <= torch.finfo(dtype).eps / 2
        assert all(same_bits(x, y) for x, y in zip(inputs, kept, strict=True))
    strided = [x.T.contiguous().T for x in tensors]
    assert relative_error(fuse(strided, consensus="recall").tensor, merged) <= 1e-13
    transposed = fuse([x.T for x in tensors], consensus="recall", kind="transposed").tensor
    assert relative_error(transposed.T, merged) <= 1e-13


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"recall_strength": "strong"},
            r"recall_strength: expected a number above 0; got 'strong'",
        ),
        ({"recall_strength": 0}, r"recall_strength: expected a number above 0; got 0"),
        ({"ridge": 1e-7}, r"ridge: expected a number of at least 1e-06; got 1e-07"),
        ({"kind": "embeding"}, r"kind: .*Did you mean embedding\?"),
        ({"consensus": "recal"}, r"consensus: .*Did you mean recall\?"),
        ({"kind": "transposed"}, r"^w: kind: transposed expects a matrix; got shape \[20\]"),
        ({"kind": "linear"}, r"^w: kind: linear expects a matrix; got shape \[20\]"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(YoyoError, match=says):
        fuse(learned(3, 0.1, (20,)), **{"consensus": "recall", "name": "w", **options})


def test_packed_experts_that_nobody_took_apart_are_refused():
    tensors = [torch.zeros(2, 300, 300) for _ in range(3)]
    with pytest.raises(YoyoError, match=r"packed: shape.*90,000 inputs.*experts: separate"):
        fuse(tensors, consensus="recall", name="packed")
    fuse(tensors, consensus="recall", name="packed", experts="separate")
