"""On a GPU, where there is one: waits, memory, and merges by both commands against float64.

The numbers of `fuse` on every option: `pytest --device cuda tests/test_exactness.py ...`
(docs/contributing.md).
"""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finish_fixtures import tensor_bytes
from merging_fixtures import merge
from method_fixtures import assert_is_merge, mergekit, recipe, tensors_of
from recall_reference import recall
from tensors import fine_tunes, relative_error, same_bits

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.rounding import random_bits, stochastic
from mergekit_yoyo.algorithm.streaming import MIB, scratch_bytes
from mergekit_yoyo.cli import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EXPERTS = Path(__file__).parents[1] / "examples" / "experts"
NAMES = ("code", "german", "manual")


def waits(tensors, **options):
    """How often the host waited for the device in a merge, as torch itself counts it."""
    fuse(tensors, **options)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fuse(tensors, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


@pytest.mark.parametrize("consensus", ["tukey", "recall"])
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
def test_waits_do_not_grow_with_the_tensor(center, consensus):
    anchor = 0 if center == "anchor" else None
    options = {"center": center, "anchor": anchor, "consensus": consensus}
    # for the Gram matrix, and for what goes to the device: coefficients, or the numbers of a
    # `Space`; with recall also for how much round-off is enlarged
    expected = {
        "tukey": 4 if center == "coordinate_median" else 2,
        "recall": 8 if anchor == 0 else 7,
    }
    seen = []
    for shape in ((64, 96), (2048, 3072), (12288, 4096)):
        tensors = [x.to("cuda") for x in fine_tunes(3, 0.1, shape, dtype=torch.bfloat16)]
        seen.append(waits(tensors, **options))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == expected[consensus], seen[0]


def test_recall_takes_no_tf32():
    tensors = [x.to("cuda") for x in fine_tunes(3, 0.1, (512, 512))]
    options = {"consensus": "recall", "recall_precision": "float32"}
    expected = fuse(tensors, **options).tensor
    x = tensors[0]
    torch.set_float32_matmul_precision("high")
    try:
        assert relative_error(x @ x, x.double() @ x.double()) > 1e-5  # the card has it
        assert same_bits(fuse(tensors, **options).tensor, expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_gpu_draws_as_a_cpu_does():
    seeds = torch.tensor([0, 1, -(2**31), 2**31 - 1], dtype=torch.int32)
    for first in (0, 2**32 - 500):
        drawn = random_bits(first, first + 1000, seeds.cuda())
        assert torch.equal(drawn.cpu(), random_bits(first, first + 1000, seeds))
    values = torch.randn((4, 1000), generator=torch.Generator().manual_seed(0)) / 1000
    for dtype in (torch.bfloat16, torch.float16):
        there = stochastic(values.cuda(), dtype, drawn)
        assert torch.equal(there.cpu(), stochastic(values, dtype, drawn.cpu()))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
def test_scratch(center, rounding):
    shape, anchor = (8192, 12288), 0 if center == "anchor" else None
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    merged = fuse(tensors, center=center, anchor=anchor, rounding=rounding).tensor
    peak = torch.cuda.max_memory_allocated() - before - merged.nbytes
    budget = scratch_bytes(merged.device)
    assert 0.5 * budget < peak < budget + 32 * MIB


MERGES = {
    "tukey": ("", {}),
    "recall": ("", {"consensus": "recall"}),
    "recall-float32": ("dtype: float32\n", {"consensus": "recall"}),
}


@pytest.fixture(scope="module")
def by_mergekit(tmp_path_factory):
    """Merges of the experts (bfloat16) by `mergekit-yaml --cuda`."""
    folder = tmp_path_factory.mktemp("merges")
    for label, (extra, parameters) in MERGES.items():
        text = recipe([str(EXPERTS / name) for name in NAMES], extra, **parameters)
        run = mergekit("yaml", text, folder / label, "--cuda", cwd=folder)
        assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def inputs():
    return [tensors_of(EXPERTS / name) for name in NAMES]


def test_a_merge_is_the_formulas(by_mergekit, inputs):
    merged = tensors_of(by_mergekit / "tukey")
    assert merged.keys() == inputs[0].keys()
    for name, tensor in merged.items():
        assert_is_merge(tensor, [x[name] for x in inputs], name)


def test_a_merge_with_recall_is_the_formulas(by_mergekit, inputs):
    half, single = (tensors_of(by_mergekit / label) for label in ("recall", "recall-float32"))
    assert half.keys() == single.keys() == inputs[0].keys()
    for name, tensor in half.items():
        kind = "embedding" if "embed" in name else "vector" if tensor.ndim == 1 else "linear"
        exact = recall([x[name].double().numpy() for x in inputs], kind=kind).merge
        assert relative_error(single[name], exact) <= 3e-7, name
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
        # a value near zero has the error of its row, not one of its own size
        bound = 0.55 * step + 1e-6 * np.sqrt(np.mean(exact**2))
        assert (np.abs(tensor.double().numpy() - exact) <= bound).all(), name


@pytest.mark.parametrize("how", [["--cuda"], ["--gpu-rich"], ["--device", "cuda:0"]])
@pytest.mark.parametrize("label", MERGES)
def test_our_command_merges_the_same_bytes(label, how, by_mergekit, tmp_path):
    status, said = merge(by_mergekit / f"{label}.yml", tmp_path / "out", "--no-finish", *how)
    assert status == 0, said
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(by_mergekit / label)


def test_tune(tmp_path):
    """In the models' own dtype on the GPU, in float32 on the CPU: the same within the error."""
    listed = "".join(f"- model: {EXPERTS / name}\n" for name in NAMES)
    (tmp_path / "merge.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {EXPERTS / 'base'}\nmodels:\n{listed}"
        "parameters: {weight: 1.0, lambda: 1.0}\ndtype: bfloat16\n"
    )
    figures = []
    for device in ("cpu", "cuda"):
        arguments = ["tune", str(tmp_path / "merge.yml"), "-o", str(tmp_path / f"{device}.yml")]
        arguments += ["--move", "lambda", "--samples", "20", "--tokens", "40"]
        arguments += ["--texts-folder", str(tmp_path / "texts"), "--device", device]
        run = CliRunner().invoke(main, arguments)
        assert run.exit_code == 0, run.output
        figures.append(re.findall(r"(\d\.\d{4}) ± (\d\.\d{4})", run.stdout))
    assert len(figures[0]) == len(figures[1]) >= 2
    for (one, error), (other, _) in zip(*figures, strict=True):
        assert abs(float(one) - float(other)) <= float(error)
