"""Does the export compute what transformers computes? And how far does quantization move it?

`graph_difference` compares float32 logits of the unquantized mlx model with transformers' on a few
prompts; `Drift` compares the folder that was written with the unquantized mlx model.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.bridge import Bridge, bridge_config, closing_window
from mergekit_yoyo.mlx.weights import load_lazily
from mergekit_yoyo.model.logits import log_softmax

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
Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Drift:
    """How far the written model's logits are from the unquantized ones.

    Attributes:
        max_difference: largest difference, in standard deviations of the unquantized logits.
        top1_agreement: share of positions where both find the same next token most likely.
        kl: mean Kullback-Leibler divergence per position, in nats.
    """

    max_difference: float
    top1_agreement: float
    kl: float


@dataclass(frozen=True)
class Verification:
    """What was compared: see `graph_difference` and `Drift`."""

    graph_difference: float
    drift: Drift


def prompts_for(tokenizer: Any, vocabulary: int, context: int | None) -> list[list[int]]:
    """Two texts and a seeded row of random tokens, each of at most 48 tokens and `context`."""
    length = min(PROMPT_TOKENS, context or PROMPT_TOKENS)
    random = np.random.default_rng(0).integers(0, vocabulary, length).tolist()
    encoded = [tokenizer.encode(text)[:length] for text in TEXTS]
    return [tokens for tokens in [*encoded, random] if tokens]


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
        bridge = bridge_config(declared.to_dict(), declared, context=context)
    expected = _transformers_logits(folder, declared, prompts, context)
    model = load_lazily(folder, bridge, declared, float32=True)
    with _running("mlx-lm", folder):
        actual = mlx_logits(model, prompts, float32=True)
    for library, logits in (("transformers", expected), ("mlx", actual)):
        if not all(np.isfinite(array).all() for array in logits):
            raise YoyoError(f"{folder}: the model's logits in {library} are not finite.")
    # numpy's max, unlike Python's, keeps a NaN
    return float(
        np.max([np.abs(a - e).max() / e.std() for a, e in zip(actual, expected, strict=True)])
    )


def check_graph(difference: float, bridge: Bridge) -> None:
    """Refuse an unquantized graph that is not transformers' own.

    Raises:
        YoyoError: with the difference, and the likely reasons if the bridge had doubts.
    """
    if difference <= MAX_DIFFERENCE:
        return
    reasons = "; ".join(bridge.doubts)
    raise YoyoError(
        f"the unquantized mlx model does not compute what transformers computes: logits differ by "
        f"{difference:.1e} of their standard deviation (at most {MAX_DIFFERENCE:.0e} expected). "
        + (
            f"The likely reason: {reasons}."
            if reasons
            else "mlx-lm implements this config differently."
        )
        + " Nothing was written; --no-verify exports it nevertheless."
    )


def measure_drift(expected: Logits, actual: Logits) -> Drift:
    """Compare two lists of logits, one array of (positions, vocabulary) per prompt.

    Raises:
        YoyoError: either logits are not finite.
    """
    new, old = np.concatenate(actual), np.concatenate(expected)
    if not np.isfinite(old).all():
        raise YoyoError("the unquantized model's logits are not finite: the checkpoint is damaged.")
    if not np.isfinite(new).all():
        raise YoyoError("the quantized model's logits are not finite. Choose a wider recipe.")
    log_p, log_q = log_softmax(old), log_softmax(new)
    return Drift(
        max_difference=float(np.abs(new - old).max() / old.std()),
        top1_agreement=float((new.argmax(-1) == old.argmax(-1)).mean()),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
    )


def mlx_logits(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, float32: bool = False
) -> Logits:
    """The logits of every position of every prompt; `float32` first widens all weights."""
    if float32:
        model.set_dtype(mx.float32)
    return [np.array(model(mx.array([list(tokens)]))[0].astype(mx.float32)) for tokens in prompts]


def written_logits(folder: Path, prompts: Sequence[Sequence[int]], notes: list[str]) -> Logits:
    """The logits of an export as mlx-lm loads it.

    Where mlx cannot compute in its dtype on this machine (its CPU build has expert layers in
    float32 only), weights are widened to float32 first, and `notes` tells.
    """
    model, _ = load_model(folder)
    try:
        return mlx_logits(model, prompts)
    except RuntimeError as error:
        notes.append(f"drift measured in float32: mlx on this machine says {error}")
        with _running("mlx-lm", folder):
            return mlx_logits(model, prompts, float32=True)


def _transformers_logits(
    folder: Path, declared: Any, prompts: Sequence[Sequence[int]], context: int | None
) -> Logits:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # the export shows its own
    # A model of images and text has no automatic class here; its config names its own.
    architecture = (declared.architectures or ["AutoModelForCausalLM"])[0]
    model_class = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    try:
        model = model_class.from_pretrained(
            folder, config=declared, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise YoyoError(f"{folder}: transformers cannot load the model: {error}") from None
    # mlx-lm has the language model alone; where that is whole, so has the comparison (Llama 4's
    # own forward pass does not work without pictures)
    language = getattr(model, "language_model", None)
    if hasattr(language, "lm_head"):
        model = language
    start = _longrope_start(declared, context)
    logits = []
    with torch.inference_mode(), _running("transformers", folder):
        for tokens in prompts:
            inputs = torch.tensor([list(tokens)])
            places = {}
            if start:
                places["position_ids"] = torch.arange(len(tokens))[None] + start
            logits.append(model(inputs, use_cache=False, **places).logits[0].float().numpy())
    return logits


@contextmanager
def _running(library: str, folder: Path) -> Iterator[None]:
    """A forward pass that fails, whatever in the model is the reason, as one sentence."""
    try:
        yield
    except Exception as error:  # models of every kind fail in ways of their own
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise YoyoError(
            f"{folder}: {library} cannot run the model ({reason[0]}). Is it whole, and is the "
            "tokenizer its own?"
        ) from None


def _longrope_start(declared: Any, context: int | None) -> int:
    """The position from which transformers uses longrope's long factors, as mlx-lm always does.

    Rotary attention depends on distances only, so a prompt moved there shows the same logits.
    """
    rope = getattr(declared.get_text_config(), "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or 0
    limit = context or declared.get_text_config().max_position_embeddings
    return original if rope.get("rope_type") == "longrope" and limit > original else 0
