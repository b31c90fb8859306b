"""Packed experts: merged as the separate tensors, in a number of operations that is theirs not."""

from collections import Counter

import numpy as np
import pytest
import torch
from tensors import fine_tunes, relative_error, same_bits
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm import streaming

CENTERS = ("geometric_median", "coordinate_median", "anchor")
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"


def options(center):
    return {"center": center, "anchor": 1 if center == "anchor" else None}


@pytest.mark.parametrize("scratch", [1, 200_000, None])
@pytest.mark.parametrize("center", CENTERS)
def test_experts_merge_as_separate_gate_up_and_down(center, scratch, monkeypatch):
    if scratch:  # one block, a few experts, all of them
        monkeypatch.setattr(streaming, "scratch_bytes", lambda device: scratch)
    for dtype, at_most in ((torch.float64, 1e-13), (torch.bfloat16, 1e-5)):
        tensors = fine_tunes(3, 0.03, (6, 2 * 20, 31), dtype=dtype)
        packed = fuse(tensors, experts="separate", name=GATE_UP, **options(center))
        assert packed.weights.shape == (12, 3)  # gate and up in turn
        for expert in range(6):
            for piece, rows in enumerate((slice(0, 20), slice(20, 40))):
                inputs = [x[expert, rows].clone() for x in tensors]
                alone = fuse(inputs, **options(center))
                assert relative_error(packed.tensor[expert, rows], alone.tensor) <= at_most
                problem = 2 * expert + piece
                np.testing.assert_allclose(packed.weights[problem], alone.weights, atol=1e-9)
                assert packed.center_status[problem] == alone.center_status

        down = fuse(tensors, experts="separate", name=DOWN, **options(center))
        assert down.weights.shape == (6, 3)
        for expert in range(6):
            alone = fuse([x[expert] for x in tensors], **options(center)).tensor
            assert relative_error(down.tensor[expert], alone) <= at_most


def test_packed_and_auto_merge_one_tensor():
    tensors = fine_tunes(3, 0.3, (4, 6, 31))
    packed = fuse(tensors, experts="packed", name=GATE_UP)
    assert same_bits(packed.tensor, fuse([x.reshape(-1) for x in tensors]).tensor.reshape(4, 6, 31))
    assert same_bits(packed.tensor, fuse(tensors, name=GATE_UP).tensor)
    assert packed.weights.shape == (3,)
    apart = fuse(tensors, experts="separate", name=GATE_UP).tensor
    assert relative_error(apart, packed.tensor) > 1e-3


def test_one_expert_of_wrong_scale_as_the_first_input():
    """One pivot serves all experts: it must suit the one whose first input is broken."""
    tensors = fine_tunes(4, 1e-4, (5, 30, 40), dtype=torch.float64)
    tensors[0][3] *= 100
    packed = fuse(tensors, experts="separate").tensor
    for expert in range(5):
        alone = fuse([x[expert] for x in tensors]).tensor
        assert relative_error(packed[expert], alone) <= 1e-10


class Operations(TorchDispatchMode):
    """Counts the dispatched operations by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class Fetches(TorchFunctionMode):
    """Counts the calls that bring values from the device to the host, and wait for it."""

    NAMES = ("cpu", "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "equal")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def observed(tensors, **arguments):
    with Fetches() as fetches, Operations() as operations:
        fuse(tensors, **arguments)
    return fetches.count, operations.count


# what on a GPU would wait for the device: fetched scalars, and shapes that depend on values
WAITING = (
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("name", [GATE_UP, DOWN])
def test_one_fetch_however_many_experts(name, center):
    seen = []
    for experts in (2, 64):
        tensors = fine_tunes(3, 0.1, (experts, 8, 16), dtype=torch.bfloat16)
        fetches, operations = observed(tensors, experts="separate", name=name, **options(center))
        assert fetches == {"cpu": 1}  # the Gram matrix
        assert not any(operations[waiting] for waiting in WAITING)
        seen.append(operations)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("center", ["geometric_median", "anchor"])
def test_one_fetch_a_tensor_however_large(center):
    for shape in ((7,), (300, 500)):
        fetches, operations = observed(fine_tunes(4, 0.1, shape), **options(center))
        assert fetches == {"cpu": 1}
        assert not any(operations[waiting] for waiting in WAITING)


@pytest.mark.parametrize("kind", ["linear", "embedding", "vector"])
@pytest.mark.parametrize("center", ["geometric_median", "anchor"])
def test_one_fetch_with_recall(center, kind):
    for shape in ((6, 8, 16), (64, 8, 16)):
        fetches, operations = observed(
            fine_tunes(4, 0.1, shape, dtype=torch.bfloat16),
            experts="separate",
            consensus="recall",
            kind=kind,
            **options(center),
        )
        # the Gram matrix; of layers, by how much float32's round-off was enlarged
        assert fetches == {"cpu": 2 if kind == "linear" else 1}
        assert not any(operations[waiting] for waiting in WAITING)


def test_the_counters_see_what_they_are_for():
    with Fetches() as fetches, Operations() as operations:
        torch.ones(3).sum().item()
        if torch.ones(1) > 0:
            torch.ones(2).tolist()
    assert {"item", "__bool__", "tolist"} <= set(fetches.count)
    assert operations.count["aten::_local_scalar_dense"] >= 2
