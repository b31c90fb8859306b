"""`fuse` on another device than the tests' own; they stay as they are, and so do the references."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

import mergekit_yoyo
from mergekit_yoyo import algorithm
from mergekit_yoyo.algorithm.result import Details

used = "cpu"
Found = TypeVar("Found", bound=Details)


def fuse_on(device: str) -> None:
    """From here on `fuse` takes tensors of the CPU, merges them there, and brings all back."""
    global used
    used, original = device, algorithm.fuse

    def fuse(tensors: Sequence[Tensor], **arguments: Any) -> algorithm.FusionResult:
        with torch._C.DisableTorchFunction():  # what a test counts is what the merge does
            there = [x.to(device) for x in tensors]
        done = original(there, **arguments)
        for x, moved in zip(tensors, there, strict=True):
            if done.tensor is moved:  # nothing to merge
                return replace(done, tensor=x)
        return brought_back(done)

    fuse.__signature__ = original.__signature__  # type: ignore[attr-defined]
    algorithm.fuse = fuse
    mergekit_yoyo.fuse = fuse


def brought_back(details: Found) -> Found:
    """With its tensors on the CPU."""
    found = {field.name: getattr(details, field.name) for field in fields(details)}
    with torch._C.DisableTorchFunction():
        brought = {k: v.cpu() for k, v in found.items() if isinstance(v, Tensor)}
    return replace(details, **brought)
