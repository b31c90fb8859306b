"""Tensor names without the numbers of layers and experts."""

import re


def any_layer(name: str) -> str:
    """A tensor name with its layer index, the first number in it, replaced by `*`."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def any_index(name: str) -> str:
    """A tensor name with every number in it, of layers and of experts, replaced by `*`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
