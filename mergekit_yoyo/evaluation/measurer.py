"""The process that measures one model.

A process of its own, so that its peak memory is the model's and nothing is left behind. It reads a
job as JSON from stdin and writes lines of JSON to stdout: how far it is, then what it found.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from pydantic import BaseModel

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.evaluation.prediction import window_sums
from mergekit_yoyo.evaluation.running import GENERATED_TOKENS, PROMPT_TOKENS, Running, start
from mergekit_yoyo.measured import Reading, Run
from mergekit_yoyo.model.config import text_section
from mergekit_yoyo.model.json_files import read_config
from mergekit_yoyo.model.use import use_of
from mergekit_yoyo.staging import check_disk_space
from mergekit_yoyo.text import Window, read_texts, token_windows

_LEAST_PROMPT = 8


class Job(BaseModel):
    """What to measure.

    loader, device: see `start`. texts: files by name, of which at most `windows` windows of
    `window_tokens` are read. keep: write the logits into this folder, and do not measure the speed.
    reference: compare with the logits in this folder.
    """

    path: Path
    loader: str
    device: str
    texts: dict[str, Path]
    windows: int
    window_tokens: int
    keep: Path | None = None
    reference: Path | None = None


class Found(BaseModel):
    """What was measured: no run of a model whose logits were kept."""

    run: Run | None
    readings: dict[str, Reading]


def measure(job: Job, tell: Any) -> Found:
    """Do a job. `tell` takes what is to be said of the progress.

    Raises:
        YoyoError: the model and the reference see other tokens, or logits that are not finite.
    """
    config = read_config(job.path / "config.json")
    context = text_section(config).get("max_position_embeddings")
    texts = _windows(job)
    model_class = "" if job.loader == "mlxlm" else use_of(config).loader
    model = start(job.path, job.loader, job.device, model_class)
    total = sum(map(len, texts.values()))
    run = None
    if job.keep is None:
        tell({"begin": "speed"})
        run = _speed(model, texts, context if isinstance(context, int) else None)
    tell({"begin": "reads", "total": total})
    readings = {}
    for number, (name, windows) in enumerate(texts.items()):
        readings[name] = _read(model, name, windows, number, job, tell)
    return Found(run=run, readings=readings)


def _windows(job: Job) -> dict[str, list[Window]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.path)
    texts = {
        text.name: token_windows(text, tokenizer, job.window_tokens, job.windows)
        for text in read_texts(job.texts)
    }
    for number, (name, windows) in enumerate(texts.items() if job.reference else ()):
        assert job.reference is not None
        if (job.reference / f"{number}.hash").read_text() != _digest(windows):
            raise YoyoError(
                f"text {name}: the tokenizers of the model and of --against differ: they see other "
                "tokens, and cannot be compared token by token."
            )
    return texts


def _digest(windows: Sequence[Window]) -> str:
    return hashlib.sha256(json.dumps([window.tokens for window in windows]).encode()).hexdigest()


def _speed(model: Running, texts: dict[str, list[Window]], context: int | None) -> Run:
    """On the user's own text, over and over if it is short; shorter where the context is."""
    most = PROMPT_TOKENS
    if context is not None:
        most = max(_LEAST_PROMPT, min(most, context - GENERATED_TOKENS - 1))
    tokens = [token for windows in texts.values() for w in windows for token in w.tokens]
    prompt = (tokens * (most // len(tokens) + 1))[:most]
    return model.speed(prompt, GENERATED_TOKENS)


def _read(
    model: Running, name: str, windows: Sequence[Window], number: int, job: Job, tell: Any
) -> Reading:
    digest = _digest(windows)
    kept = reference = None
    if job.reference is not None:
        reference = np.load(job.reference / f"{number}.npy", mmap_mode="r")
    sums, begin = [], 0
    for window in windows:
        places = window.positions
        logits = model.logits(list(window.tokens))[[place - 1 for place in places]]
        end = begin + len(places)
        if job.keep is not None:
            if kept is None:
                count = sum(len(w.positions) for w in windows)
                check_disk_space(job.keep, count * logits.shape[-1] * logits.itemsize)
                shape = (count, logits.shape[-1])
                kept = open_memmap(job.keep / f"{number}.npy", "w+", np.float32, shape)
                (job.keep / f"{number}.hash").write_text(digest)
            kept[begin:end] = logits
        targets = np.array([window.tokens[place] for place in places])
        sums.append(
            window_sums(logits, targets, None if reference is None else reference[begin:end])
        )
        begin = end
        tell({"advance": 1})
    return Reading(tokens_hash=digest, dtype=model.dtype, windows=sums)


def main() -> None:
    """Read a job, do it, and say what was found, or in a sentence why not."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not for the one who started this

    def tell(said: dict[str, Any]) -> None:
        lines.write(json.dumps(said) + "\n")

    job = Job.model_validate_json(sys.stdin.read())
    try:
        found = measure(job, tell)
    except YoyoError as error:
        tell({"error": str(error)})
    except Exception as error:  # whatever the loader, the model's code or the device raise
        reason = (str(error).strip().splitlines() or [""])[0]
        tell({"error": f"it cannot be run: {type(error).__name__}: {reason}".rstrip(": ") + "."})
    else:
        tell({"found": found.model_dump()})
