"""Peak scratch: under 64 MiB up to 16 threads, whatever the size of the tensors."""

import pytest
import torch
from tensors import fine_tunes
from torch.profiler import ProfilerActivity, profile

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.streaming import MIB, scratch_bytes

LIMIT = 64 * MIB


def peak_bytes(call):
    """The most that torch had allocated at once during the call, its own temporaries included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def tensors():
    """Eight inputs whose float64 copy (153 MiB) is far more than the limit."""
    return fine_tunes(8, 0.01, (2, 1100, 1140), dtype=torch.bfloat16)


@pytest.mark.parametrize("threads", [2, 16])
@pytest.mark.parametrize("experts", ["packed", "separate"])
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
def test_peak_scratch(center, experts, threads, tensors, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    anchor = 0 if center == "anchor" else None
    peak = peak_bytes(lambda: fuse(tensors, center=center, anchor=anchor, experts=experts))
    output = tensors[0].numel() * 2
    budget = scratch_bytes(torch.device("cpu"))
    assert budget < LIMIT
    # the inner products of a chunk's blocks come on top
    assert 0.5 * budget < peak - output < budget + MIB


def test_two_large_inputs_with_16_threads(tensors, monkeypatch):
    """Few rows make long ones, and torch's own copy of an input is as long."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    large = [x.repeat(3, 1, 1) for x in tensors[:2]]
    output = large[0].numel() * 2
    assert peak_bytes(lambda: fuse(large)) - output < LIMIT
