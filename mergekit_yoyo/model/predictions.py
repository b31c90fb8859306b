"""Multi-token prediction: its blocks in a checkpoint, and whether a config promises them.

Published checkpoints hold such a block as `mtp.*` or as a layer behind the last. transformers has
no place for it in most model classes.
"""

import re
from collections.abc import Iterable
from typing import Any

# The keys that say how many blocks there are, in one family or another.
KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_num_layers")
_OWN = re.compile(r"(^|\.)(mtp|mtp_layers|nextn)(_\w+)?\.")
_LAYER = re.compile(r"(.*\.\d+\.)(eh_proj|shared_head)\.")


def prediction_names(names: Iterable[str]) -> set[str]:
    """The tensors among these that belong to a block for multi-token prediction."""
    names = list(names)
    layers = tuple({match[1] for name in names if (match := _LAYER.match(name))})
    return {name for name in names if _OWN.search(name) or name.startswith(layers)}


def promised_predictions(config: Any) -> list[str]:
    """The keys of a config that promise such blocks.

    Args:
        config: a configuration of transformers, or what a config.json holds.
    """
    return [key for section in _sections(config) for key in KEYS if _get(section, key)]


def set_predictions(config: Any, names: Iterable[str]) -> list[str]:
    """Set the counts of such blocks to 0 in a config whose checkpoint holds none.

    Args:
        config: as above; changed in place.
        names: the checkpoint's tensors.

    Returns:
        The keys that changed.
    """
    changed = [] if prediction_names(names) else promised_predictions(config)
    for section in _sections(config):
        for key in changed:
            if _get(section, key) and isinstance(section, dict):
                section[key] = 0
            elif _get(section, key):
                setattr(section, key, 0)
    return changed


def _sections(config: Any) -> list[Any]:
    return [section for section in (config, _get(config, "text_config")) if section is not None]


def _get(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else getattr(section, key, None)
