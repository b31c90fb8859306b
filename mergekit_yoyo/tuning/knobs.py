"""What may be moved in a merge, each option declared once: its range, and whether it is linear.

A new option is a line of `KNOBS`, and of `LINEAR` where the merge is linear in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_yoyo.algorithm.consensuses import CONSENSUSES

Setting = dict[str, Any]  # by key: the name of an option, or NAME[k] for that of model k


@dataclass(frozen=True)
class Knob:
    """An option that the search may move.

    start: where the search begins if the YAML has no number. logarithmic: moved by factors.
    per_model: each model has its own. words: it is one of these, and no number. unasked: moved
    without being named. of: it acts only where other options have these values.
    """

    option: str
    lowest: float = 0.0
    highest: float = 1.0
    start: float = 1.0
    logarithmic: bool = False
    per_model: bool = False
    words: tuple[str, ...] = ()
    unasked: bool = True
    of: tuple[tuple[str, str], ...] = ()

    def acts(self, setting: Mapping[str, Any]) -> bool:
        """Whether it has an effect beside the other options of a merge."""
        return all(setting.get(option) == value for option, value in self.of)


_RECALL = (("consensus", "recall"),)
KNOBS = (
    Knob("consensus", words=tuple(CONSENSUSES)),
    Knob("recall_strength", 0.05, 8.0, 1.5, of=_RECALL),
    Knob("recall_prior", 0.0, 2.0, 0.6, of=(*_RECALL, ("center", "anchor"))),
    Knob("ridge", 0.03, 100.0, 3.0, logarithmic=True, of=_RECALL),
    Knob("lambda", 0.05, 3.0, 1.0),
    Knob("t", 0.0, 1.0, 0.5),
    Knob("density", 0.05, 1.0, 0.5),
    Knob("select_topk", 0.05, 1.0, 0.5),
    Knob("weight", 0.0, 3.0, 1.0, per_model=True),
    Knob("scale", 0.5, 1.5, 1.0, per_model=True, unasked=False),
    Knob("tukey_c", 1.0, 20.0, 4.685, logarithmic=True, unasked=False),
    Knob("alpha", 0.0, 2.0, 0.2, unasked=False),
    Knob("gamma", 0.0, 0.2, 0.01, unasked=False),
    Knob("epsilon", 0.01, 0.45, 0.15, unasked=False),
    Knob("r", 0.01, 1.0, 0.1, unasked=False),
)

# Values at which a merge is computed that is linear in an option, all else kept: any other value
# is a weighted sum of these two. (method, option); every method that has a lambda scales by it.
LINEAR: Mapping[tuple[str, str], tuple[float, float]] = {
    ("yoyo_fusion", "recall_strength"): (1.0, 2.0),
    ("yoyo_fusion", "recall_prior"): (0.0, 1.0),
    ("*", "lambda"): (0.0, 1.0),
}
# Of these, the strengths: how much of what the models learned is added.
STRENGTHS = ("recall_strength", "lambda")
# Methods that are linear in the weights of their models.
LINEAR_WEIGHTS = ("linear", "task_arithmetic")


def anchors_of(method: str, option: str) -> tuple[float, float] | None:
    """The two values that a merge by `method` is a weighted sum of, if it is linear in `option`."""
    return LINEAR.get((method, option)) or LINEAR.get(("*", option))


def knob_of(key: str) -> Knob:
    """The knob of a key of a setting."""
    option = key.partition("[")[0]
    return next(knob for knob in KNOBS if knob.option == option)
