"""Buffers of older checkpoints that every loader works out from the config."""

_RECOMPUTED = ("rotary_emb.inv_freq", "position_ids", "attention.masked_bias", "attention.bias")


def is_recomputed(name: str) -> bool:
    """Whether a tensor is such a buffer, by its name; nobody misses it in a checkpoint."""
    return name.endswith(_RECOMPUTED)
