"""The authors' later variant and its kin, option by option, against the float64 reference."""

import numpy as np
import pytest
import torch
from reference import yoyo_fusion
from tensors import fine_tunes, relative_error, same_bits

from mergekit_yoyo.algorithm import fuse
from mergekit_yoyo.errors import YoyoError

OPTIONS = {
    "welsch": {"weight_function": "welsch", "welsch_c": 1.5},
    "median": {"deviations": "median"},
    "principal": {"rank_by": "principal"},
    "noise": {"rank_by": "noise"},
    "root": {"scale_by": "root", "rank_by": "principal"},
    "boost": {"matrix_boost": True},
    "signs": {"sign_alignment": "first"},
    "all": {
        "weight_function": "welsch",
        "deviations": "median",
        "rank_by": "principal",
        "scale_by": "root",
        "matrix_boost": True,
        "sign_alignment": "first",
        "weights": [1, 2, 1, 0.5, 1],
    },
}


def tensors_with_an_outlier(shape, dtype=torch.float64):
    """Five fine-tunes, one of them far off: directions of unequal energy."""
    tensors = fine_tunes(5, 0.1, shape, dtype=torch.float64)
    tensors[3] = tensors[3] + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    tensors[0].view(-1)[:7] = 0.0  # which gives no sign
    return [x.to(dtype) for x in tensors]


def expected_of(tensors, **options):
    if "sign_alignment" in options:
        options = {**options, "sign_alignment": 0}
    return yoyo_fusion([x.double().numpy() for x in tensors], **options)


@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
@pytest.mark.parametrize("shape", [(24, 30), (400,)])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_is_the_references(name, shape, center):
    options = {**OPTIONS[name], "center": center, "anchor": 1 if center == "anchor" else None}
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        tensors = tensors_with_an_outlier(shape, dtype)
        result = fuse(tensors, **options)
        expected = expected_of(tensors, **options)
        assert relative_error(result.tensor.double().numpy(), expected.merge) <= limit
        np.testing.assert_allclose(result.weights, expected.weights, atol=1e-4)
        assert result.rank == expected.rank


@pytest.mark.parametrize("name", OPTIONS)
def test_each_matters(name):
    tensors = tensors_with_an_outlier((24, 30))
    center = "coordinate_median"  # around the others lambda is 1 with all directions
    plain = fuse(tensors, center=center).tensor
    assert relative_error(fuse(tensors, center=center, **OPTIONS[name]).tensor, plain) > 1e-5


def test_packed_experts_are_boosted_one_by_one():
    tensors = [torch.stack([x, 2 * x + 0.01]) for x in tensors_with_an_outlier((12, 10))]
    packed = fuse(tensors, experts="separate", matrix_boost=True).tensor
    for expert in range(2):
        alone = fuse([x[expert] for x in tensors], matrix_boost=True).tensor
        assert relative_error(packed[expert], alone) <= 1e-13


def test_no_boost_for_embeddings():
    tensors = tensors_with_an_outlier((24, 30))
    plain = fuse(tensors).tensor
    assert same_bits(fuse(tensors, matrix_boost=True, kind="embedding").tensor, plain)


def test_directions_that_stand_out_of_noise():
    """Two groups of models: one direction tells them apart, the others are noise alike."""
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(4000, generator=generator, dtype=torch.float64)

    base, direction = noise(), noise()
    tensors = [base + 0.3 * (k % 2) * direction + 0.02 * noise() for k in range(8)]
    assert fuse(tensors, rank_by="noise").rank in (1, 2)  # and the largest of the noise at most
    alike = [base + 0.02 * noise() for _ in range(8)]
    assert fuse(alike, rank_by="noise").rank <= 4


def test_base_gives_the_signs():
    tensors = tensors_with_an_outlier((24, 30))
    by_base = fuse(tensors, sign_alignment="base", base=2).tensor
    order = [2, 0, 1, 3, 4]
    first = fuse([tensors[k] for k in order], sign_alignment="first").tensor
    assert relative_error(by_base, first) <= 1e-13
    anchored = fuse(tensors, sign_alignment="base", center="anchor", anchor=2).tensor
    expected = yoyo_fusion(
        [x.numpy() for x in tensors], center="anchor", anchor=2, sign_alignment=2
    )
    assert relative_error(anchored.numpy(), expected.merge) <= 1e-12
    with pytest.raises(YoyoError, match="w: sign_alignment: base needs base_model"):
        fuse(tensors, sign_alignment="base", name="w")
    with pytest.raises(YoyoError, match="matrix_boost: expected true or false; got 'yes'"):
        fuse(tensors, matrix_boost="yes")
