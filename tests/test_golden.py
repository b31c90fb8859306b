"""The golden vectors: literal float64 results of the method, and the authors' script.

`golden/` holds 30 cases (K = 2..7, one to three dimensions, relative differences 0.3 .. 1e-3, with
and without an outlier): the inputs, and per center the float64 result of the formulas (`spec`),
the same with the lower median in step 7 (`spec_lower_mad`), and the float32 result of the authors'
script of 2025-11-13 (`script_v1`).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensors import relative_error

from mergekit_yoyo import fuse

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "golden.json").read_text())
VECTORS = load_file(GOLDEN / "golden.safetensors")
CENTERS = ("geometric_median", "coordinate_median", "anchor")


def test_every_case_is_there():
    assert len(CASES) == 30
    assert {case["inputs"] for case in CASES} == {2, 3, 4, 5, 7}


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_golden(case, center):
    name = case["case"]
    inputs = [VECTORS[f"{name}.input.{i}"] for i in range(case["inputs"])]
    anchor = 0 if center == "anchor" else None
    expected = {
        key: VECTORS[f"{name}.{center}.{key}"] for key in ("spec", "spec_lower_mad", "script_v1")
    }

    def error(key, mad_median, dtype):
        result = fuse(
            [x.to(dtype) for x in inputs], center=center, anchor=anchor, mad_median=mad_median
        )
        assert result.tensor.dtype == dtype
        return relative_error(result.tensor, expected[key])

    # float32: half a unit in the last place of the result, no more; float64: the algebra on a Gram
    assert error("spec", "standard", torch.float32) <= 1.5e-7
    assert error("spec", "standard", torch.float64) <= 1e-12
    assert error("spec_lower_mad", "lower", torch.float32) <= 1.5e-7
    assert error("spec_lower_mad", "lower", torch.float64) <= 1e-12
    # the script computes in float32
    assert error("script_v1", "lower", torch.float32) <= 1e-6


V2 = {"mad_median": "lower", "rank_by": "principal", "scale_by": "root", "tukey_c": 4.685}


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("script_v2", {"deviations": "median"}),
        ("script_v2_zero_sign", {"sign_alignment": "first"}),
        ("script_v2_boost", {"deviations": "median", "matrix_boost": True}),
    ],
)
def test_the_later_script_of_the_authors(key, options, case, center):
    name = case["case"]
    inputs = [VECTORS[f"{name}.input.{i}"] for i in range(case["inputs"])]
    anchor = 0 if center == "anchor" else None
    result = fuse(inputs, center=center, anchor=anchor, **V2, **options)
    assert relative_error(result.tensor, VECTORS[f"{name}.{center}.{key}"]) <= 1e-6


def test_the_two_medians_differ():
    """Else the test above could not tell them apart."""
    different = [
        relative_error(
            VECTORS[f"{case['case']}.anchor.spec"], VECTORS[f"{case['case']}.anchor.spec_lower_mad"]
        )
        > 1e-5
        for case in CASES
        if case["inputs"] % 2 == 0
    ]
    assert sum(different) >= 10
