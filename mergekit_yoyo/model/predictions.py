"""Multi-token prediction: whether a config promises blocks that its checkpoint does not hold."""

import re
from collections.abc import Iterable
from typing import Any

# The keys that say how many blocks there are, in one family or another.
KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_num_layers")
_BLOCKS = re.compile(r"(^|\.)(mtp|mtp_layers|nextn)(_\w+)?\.|\.(eh_proj|shared_head)\.")


def predicts(names: Iterable[str]) -> bool:
    """Whether there are tensors of a block for multi-token prediction among these."""
    return any(_BLOCKS.search(name) for name in names)


def set_predictions(config: Any, names: Iterable[str]) -> list[str]:
    """Set the counts of such blocks to 0 in a config whose checkpoint holds none.

    Args:
        config: a configuration of transformers, or what a config.json holds; changed in place.
        names: the checkpoint's tensors.

    Returns:
        The keys that changed.
    """
    if predicts(names):
        return []
    sections = [config, _get(config, "text_config")]
    changed = []
    for section in sections:
        for key in KEYS:
            if section is not None and _get(section, key):
                if isinstance(section, dict):
                    section[key] = 0
                else:
                    setattr(section, key, 0)
                changed.append(key)
    return changed


def _get(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else getattr(section, key, None)
