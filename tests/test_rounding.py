"""What rounding the merge loses, against literal float64 merges and literal rounding."""

import numpy as np
import pytest
import torch
from recall_reference import recall
from reference import yoyo_fusion
from report_fixtures import header, tensor_line, write_record
from tensors import fine_tunes

from mergekit_yoyo import fuse, read_record, summarize
from mergekit_yoyo.algorithm import rounding, streaming

BITS = {torch.bfloat16: 8, torch.float16: 11}  # of the significand


def to_nearest(values, dtype):
    """To the nearest number of so many bits, halves to even; away from underflow."""
    exponents = np.floor(np.log2(np.abs(np.where(values == 0, 1.0, values))))
    steps = 2.0 ** (exponents - BITS[dtype] + 1)
    return np.rint(values / steps) * steps


def lost(exact, dtype):
    return np.linalg.norm(to_nearest(exact, dtype) - exact) / np.linalg.norm(exact)


def halves(count, size, dtype):
    return [x.to(dtype) for x in fine_tunes(count, 1e-2, size, seed=3)]


def arrays(tensors):
    return [x.double().numpy() for x in tensors]


@pytest.mark.parametrize("dtype", list(BITS))
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
@pytest.mark.parametrize("size", [(120,), (30, 41)])
def test_what_the_merge_loses(center, dtype, size):
    tensors = halves(3, size, dtype)
    options = {"center": center, "anchor": 0 if center == "anchor" else None}
    expected = lost(yoyo_fusion(arrays(tensors), **options).merge, dtype)
    assert float(fuse(tensors, **options).rounding) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "transposed", "embedding"])
def test_what_recall_loses(kind):
    tensors = halves(4, (40, 30), torch.bfloat16)
    expected = lost(recall(arrays(tensors), kind).merge, torch.bfloat16)
    result = fuse(tensors, consensus="recall", kind=kind, recall_precision="float64")
    assert float(result.rounding) == pytest.approx(expected, rel=1e-5)


def test_the_sample_is_of_all_columns():
    """One column is exact in bfloat16, all others are not."""
    exact = torch.randn((1, 512, 512), generator=torch.Generator().manual_seed(0))
    exact[:, :, 0] = 1.0
    written = rounding.Rounding(
        rounding.Destination(out := torch.empty_like(exact, dtype=torch.bfloat16))
    )
    for start in range(0, 512, 128):
        part = (slice(None), slice(start, start + 128))
        written.write(part, exact[part])
    expected = (out.double() - exact.double()).norm() / exact.double().norm()
    assert float(written.lost) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("consensus", ["tukey", "recall"])
def test_of_each_expert_and_on_a_sample(consensus, monkeypatch):
    packed = halves(3, (4, 60, 50), torch.bfloat16)
    packed = [x * torch.tensor([1.0, 3.0, 0.01, 1.3]).bfloat16()[:, None, None] for x in packed]
    whole = fuse(packed, consensus=consensus, experts="separate").rounding
    alone = [fuse([x[e] for x in packed], consensus=consensus).rounding for e in range(4)]
    torch.testing.assert_close(whole, torch.stack(alone))
    monkeypatch.setattr(rounding, "ROUNDING_SAMPLE", 600)  # one element in five
    sampled = fuse(packed, consensus=consensus, experts="separate").rounding
    assert (sampled != whole).all()
    torch.testing.assert_close(sampled, whole, rtol=0.15, atol=0)


@pytest.mark.parametrize("strided", [False, True])
def test_of_each_expert_where_it_is_written_in_many_parts(strided, monkeypatch):
    packed = halves(3, (3, 90, 70), torch.bfloat16)
    if strided:
        packed = [x.mT.contiguous().mT for x in packed]
    whole = fuse(packed, experts="separate").rounding
    monkeypatch.setattr(streaming, "scratch_bytes", lambda device: 1)
    parts = fuse(packed, experts="separate").rounding
    assert (parts != whole).all()
    torch.testing.assert_close(parts, whole, rtol=0.15, atol=0)


def test_nothing_is_known_where_nothing_is_lost_or_written():
    tensors = halves(3, (20, 10), torch.bfloat16)
    assert fuse([x.float() for x in tensors]).rounding.isnan()
    assert fuse(tensors, dry_run=True).rounding is None
    assert fuse(tensors, dry_run=True, consensus="recall").rounding is None


def test_boosted_updates_too():
    tensors = halves(3, (20, 10), torch.bfloat16)
    exact = fuse([x.double() for x in tensors], matrix_boost=True).tensor.numpy()
    found = float(fuse(tensors, matrix_boost=True).rounding)
    assert found == pytest.approx(lost(exact, torch.bfloat16), rel=1e-5)


def test_the_report_says_it(tmp_path):
    models = ["a", "b", "c"]
    random = np.random.default_rng(0)
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]
    lines = [tensor_line(name, [20, 10], models, random) for name in names]
    plain = summarize(read_record(write_record(tmp_path / "plain.jsonl", header(models), lines)))
    assert plain.rounding == ""
    shares = [0.001, 0.002, 100.0]  # the last one beyond any distance
    told = [x.model_copy(update={"rounding": [r]}) for x, r in zip(lines, shares, strict=True)]
    summary = summarize(read_record(write_record(tmp_path / "told.jsonl", header(models), told)))
    moved = 100 * np.sqrt(np.mean(np.square(shares)))
    away = 100 * np.sqrt(np.mean([t.disagreement**2 for t in summary.tensors]))
    assert summary.rounding == (
        f"Rounding to bfloat16 moved the merge by {moved:.2f} % (RMS); its inputs lie {away:.2f} % "
        "from their center, and less than it moved in 1 of 3 tensors."
    )
    told[0] = told[0].model_copy(update={"parameters": {"rounding": "stochastic"}})
    mixed = summarize(read_record(write_record(tmp_path / "mixed.jsonl", header(models), told)))
    nearest, drawn = mixed.rounding.split(" Rounding (stochastic) to bfloat16 moved the merge by ")
    assert nearest.endswith("less than it moved in 1 of 2 tensors.")
    assert drawn.startswith("0.10 % (RMS)")
    assert drawn.endswith("it favors no direction.")
