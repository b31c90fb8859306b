"""The whole model and text for it to read: what measured widths and fed-forward errors stand on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import mlx.core as mx
import mlx.nn as nn
import psutil

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import Opened, float32_bytes
from mergekit_yoyo.mlx.weights import load_lazily
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.text import Window, Writing, halves, read_texts, token_windows, written_text

WINDOWS, LENGTH = 16, 256  # of a text, half of them to choose by; tokens of each
LEAST_WINDOWS = 4
SELF = "self"  # what text is called that the model writes


@dataclass(frozen=True)
class Calibration:
    """A model that is not quantized, and windows of texts for it to read.

    Attributes:
        model: in float32 where that fits in memory, so that nothing but a change is measured.
        choosing: by text, to find widths and codes by.
        reporting: by text, kept apart: to say how far the result is from the model.
        notes: what a person should know.
    """

    model: nn.Module
    choosing: dict[str, list[Window]]
    reporting: dict[str, list[Window]]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, opened: Opened, texts: Mapping[str, Sequence[Window]], progress: Progress
    ) -> "Calibration":
        """Halve texts (of `text_windows`), or one that the model writes, and load the model.

        Raises:
            YoyoError: the model writes nothing.
        """
        found = dict(texts)
        if not found:
            writing = Writing(samples=WINDOWS, tokens=LENGTH)
            with TemporaryDirectory() as place:
                file = Path(place) / "written.jsonl"
                written = written_text(opened.source.folder, file, writing, progress=progress)
            found[SELF] = written.windows
        parts = {name: halves(windows, seed=0) for name, windows in found.items()}
        model = load_lazily(opened.folder, opened.bridge, opened.declared)
        needed = float32_bytes(opened.plan("fp32").parameters)
        notes = ["measured in the dtype of the checkpoint, for want of memory for float32"]
        if needed < psutil.virtual_memory().available:
            model.set_dtype(mx.float32)
            notes = []
        return cls(
            model,
            {name: choosing for name, (choosing, _) in parts.items()},
            {name: reporting for name, (_, reporting) in parts.items()},
            tuple(notes),
        )

    @property
    def origin(self) -> str:
        """What was read, for the card: `2,056 tokens of code, prose`."""
        windows = [window for text in self.choosing.values() for window in text]
        names = ", ".join(self.choosing)
        tokens = sum(len(window.tokens) for window in windows)
        return f"{tokens:,} tokens of {'text of its own' if names == SELF else names}"

    def divergence_said(self, weights: Mapping[str, mx.array]) -> str:
        """How far the model is from itself with other weights, on the text kept apart.

        weights: by module path; each is read when its turn comes.
        """
        reference = Reference(self.model, self.reporting)
        with replaced(self.model, weights):
            parts = reference.divergence(self.model)
        shown = []
        for name, kl in parts.items():
            error = f" ± {stdev(kl) / len(kl) ** 0.5:.1g}" if len(kl) > 1 else ""
            shown.append(f"{name} {fmean(kl):.2g}{error}")
        return (
            f"KL from the unquantized model on text kept apart, nats per token: {', '.join(shown)}"
        )


def text_windows(opened: Opened, texts: Mapping[str, Path]) -> dict[str, list[Window]]:
    """The user's texts in windows.

    Raises:
        YoyoError: a text cannot be read, or says too little.
    """
    found = {}
    for text in read_texts(dict(texts)):
        windows = token_windows(text, opened.tokenizer._tokenizer, LENGTH, WINDOWS)
        if len(windows) < LEAST_WINDOWS:
            raise YoyoError(
                f"--text {text.name}: {len(windows)} windows of {LENGTH} tokens are too few to "
                f"measure modules on; give at least {LEAST_WINDOWS}, better {WINDOWS}."
            )
        found[text.name] = windows
    return found


@contextmanager
def replaced(model: nn.Module, weights: Mapping[str, mx.array]) -> Iterator[None]:
    """The model with other weights in some modules, and as it was afterwards."""
    modules = dict(model.named_modules())
    before = {path: modules[path].weight for path in weights}
    try:
        for path, weight in weights.items():
            modules[path].weight = weight.astype(before[path].dtype)
        yield
    finally:
        for path, weight in before.items():
            modules[path].weight = weight


def read_back(model: nn.Module) -> dict[str, mx.array]:
    """The weights of a quantized model as they will be read, by module path; lazy."""
    return {
        path: mx.dequantize(
            module.weight,
            module.scales,
            module.get("biases"),
            module.group_size,
            module.bits,
            module.mode,
        )
        for path, module in model.named_modules()
        if "scales" in module
    }
