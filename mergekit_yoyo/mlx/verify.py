"""Does the export compute what transformers computes? And how far does quantization move it?

Before quantization the float32 logits of the mlx model are compared with transformers' on a few
prompts, and after it the folder that was written with the unquantized mlx model (`drift`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.bridge import Bridge, bridge_config, closing_window
from mergekit_yoyo.mlx.drift import (
    Drift,
    Logits,
    measure_drift,
    mlx_logits,
    running,
    written_logits,
)
from mergekit_yoyo.mlx.opening import Opened, float32_bytes
from mergekit_yoyo.mlx.pictures import bridge_pictures
from mergekit_yoyo.mlx.reference import transformers_logits
from mergekit_yoyo.mlx.sample import reference_logits
from mergekit_yoyo.mlx.weights import load_lazily
from mergekit_yoyo.staging import format_bytes

# float32 logits of two right implementations differ by rounding: 1e-6 to 5e-4 of their standard
# deviation was seen; a wrong rope or a lost window moves them by more than 1e-1.
MAX_DIFFERENCE = 1e-3
PROMPT_TOKENS = 48
# A sliding window is made so short for the comparison that it closes within a prompt.
PROBE_WINDOW = 16
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it explains why. First of all, the dog "
    "was asleep; a sleeping dog is not an obstacle but a piece of the landscape, like a log.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    "
    "return a\n\nQ: What is 17 * 23? A: 17 * 23 = 17 * 20 + 17 * 3 = 340 + 51 = 391.",
)


@dataclass(frozen=True)
class Verification:
    """What was compared: see `graph_difference` and `Drift`.

    picture_difference: as `graph_difference`, of a prompt with a picture; None without one.
    """

    graph_difference: float
    drift: Drift
    picture_difference: float | None = None


class UnseenError(YoyoError):
    """mlx-vlm computes something else than transformers of a model of pictures."""


@dataclass(frozen=True)
class Reference:
    """The unquantized model's float32 logits on a few prompts, found to be transformers' own.

    Attributes:
        prompts: token ids.
        logits: of every position of each.
        graph_difference: from transformers', as `graph_difference` has it.
        picture: a further prompt, with a picture, as a model takes it; None for text alone.
        picture_difference: as `graph_difference`, of that prompt.
    """

    prompts: list[list[int]]
    logits: Logits
    graph_difference: float
    picture: dict[str, NDArray[Any]] | None = None
    picture_difference: float | None = None

    @classmethod
    def of(cls, opened: Opened) -> "Reference":
        """Compare the unquantized mlx model with transformers'.

        Raises:
            YoyoError: one of them cannot run the model, or they do not compute the same;
                `UnseenError` where mlx-vlm is to read it.
        """
        try:
            return cls._compared(opened)
        except YoyoError as error:
            if not opened.bridge.pictures:
                raise
            raise UnseenError(str(error)) from None

    @classmethod
    def _compared(cls, opened: Opened) -> "Reference":
        declared, bridge, context = opened.declared, opened.bridge, opened.context
        vocabulary = declared.get_text_config().vocab_size
        prompts = _without_places(prompts_for(opened.tokenizer, vocabulary, context), declared)
        picture, seen = opened.picture, None
        difference = graph_difference(opened.folder, bridge, declared, prompts, context=context)
        check_graph(difference, bridge)
        if picture is not None:
            seen = picture_difference(opened.folder, bridge, declared, picture)
            check_graph(seen, bridge, "after a picture ")
        model = load_lazily(opened.folder, bridge, declared)
        logits = mlx_logits(model, prompts, float32=True, picture=picture)
        return cls(prompts, logits, difference, picture, seen)

    def verification(self, folder: Path, notes: list[str]) -> Verification:
        """What was compared, and how far the model that was written into `folder` has drifted."""
        written = written_logits(folder, self.prompts, notes, self.picture)
        drift = measure_drift(self.logits, written)
        return Verification(self.graph_difference, drift, self.picture_difference)


def whether_to_verify(asked: bool | None, opened: Opened, parameters: int) -> tuple[bool, str]:
    """Whether to compare with transformers, and if not, why not.

    Args:
        asked: by the user; None: if it fits in memory.
        opened: the checkpoint.
        parameters: of the model.

    Raises:
        YoyoError: it was asked for and cannot be done, or it cannot be done and there are doubts.
    """
    if asked is False:
        return False, "not compared with transformers (--no-verify)"
    needed = float32_bytes(parameters)
    available = psutil.virtual_memory().available
    if opened.declared is None:
        reason = f"transformers does not know {opened.bridge.config['model_type']}"
    elif asked is None and needed > available:
        reason = (
            f"transformers needs {format_bytes(needed)} of memory; "
            f"{format_bytes(available)} are free"
        )
    else:
        return True, ""
    if asked:
        raise YoyoError(f"--verify: {reason}.")
    if opened.bridge.doubts:
        raise YoyoError(
            f"{'; '.join(opened.bridge.doubts)}. Whether it matters cannot be checked here: "
            f"{reason}. --no-verify exports it nevertheless."
        )
    return False, f"not compared with transformers: {reason}"


def prompts_for(tokenizer: Any, vocabulary: int, context: int | None) -> list[list[int]]:
    """Two texts and a seeded row of random tokens, each of at most 48 tokens and `context`."""
    length = min(PROMPT_TOKENS, context or PROMPT_TOKENS)
    random = np.random.default_rng(0).integers(0, vocabulary, length).tolist()
    encoded = [tokenizer.encode(text)[:length] for text in TEXTS]
    return [tokens for tokens in [*encoded, random] if tokens]


def _without_places(prompts: list[list[int]], declared: Any) -> list[list[int]]:
    """Prompts without the tokens that stand for a picture or a sound, which is not there."""
    places = {
        value
        for key, value in declared.to_dict().items()
        if key.startswith(("image_", "video_", "audio_"))
    }
    return [[token for token in prompt if token not in places] for prompt in prompts]


def graph_difference(
    folder: Path,
    bridge: Bridge,
    declared: Any,
    prompts: Sequence[Sequence[int]],
    *,
    context: int | None = None,
) -> float:
    """Largest difference between mlx's and transformers' float32 logits, in units of the standard
    deviation of transformers' logits.

    A sliding window that is longer than a prompt is shortened in both models alike, so that it
    takes effect. Both models are in memory one after the other, never together.

    Raises:
        YoyoError: either library cannot run the model, or its logits are not finite.
    """
    if closing_window(declared, context):
        declared = copy.deepcopy(declared)
        text = declared.get_text_config()
        text.sliding_window = min(text.sliding_window, PROBE_WINDOW)
        if bridge.pictures:
            bridge = bridge_pictures(folder, declared.to_dict(), declared, context=context)
        else:
            bridge = bridge_config(declared.to_dict(), declared, context=context)
    expected = transformers_logits(folder, declared, prompts, context)
    model = load_lazily(folder, bridge, declared, float32=True)
    with running(bridge.library, folder):
        actual = mlx_logits(model, prompts, float32=True)
    return largest_difference(folder, expected, actual)


def picture_difference(
    folder: Path, bridge: Bridge, declared: Any, picture: dict[str, NDArray[Any]]
) -> float:
    """As `graph_difference`, of a prompt with a picture.

    Raises:
        YoyoError: as there.
    """
    expected = reference_logits(folder, declared, picture)
    model = load_lazily(folder, bridge, declared, float32=True)
    with running(bridge.library, folder):
        actual = mlx_logits(model, [], float32=True, picture=picture)
    return largest_difference(folder, [expected], actual)


def largest_difference(folder: Path, expected: Logits, actual: Logits) -> float:
    """In standard deviations of `expected`, transformers' logits of each prompt.

    Raises:
        YoyoError: logits are not finite.
    """
    for library, logits in (("transformers", expected), ("mlx", actual)):
        if not all(np.isfinite(array).all() for array in logits):
            raise YoyoError(f"{folder}: the model's logits in {library} are not finite.")
    # numpy's max, unlike Python's, keeps a NaN
    return float(
        np.max([np.abs(a - e).max() / e.std() for a, e in zip(actual, expected, strict=True)])
    )


def check_graph(difference: float, bridge: Bridge, where: str = "") -> None:
    """Refuse an unquantized graph that is not transformers' own.

    where: "after a picture " for the logits of such a prompt.

    Raises:
        YoyoError: with the difference, and the likely reasons if the bridge had doubts.
    """
    if difference <= MAX_DIFFERENCE:
        return
    reasons = "; ".join(bridge.doubts)
    raise YoyoError(
        f"the unquantized mlx model does not compute what transformers computes: logits {where}"
        f"differ by {difference:.1e} of their standard deviation (at most {MAX_DIFFERENCE:.0e} "
        "expected). "
        + (
            f"The likely reason: {reasons}."
            if reasons
            else f"{bridge.library} implements this config differently."
        )
        + ("" if bridge.pictures else " Nothing was written; --no-verify exports it nevertheless.")
    )
