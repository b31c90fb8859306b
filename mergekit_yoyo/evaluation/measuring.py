"""What mergers publish beside tasks: perplexity, divergence, size, memory, speed.

With a reference (the unquantized model) its logits are computed once, kept on disk, and each model
is compared with them.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.evaluation.harness import chosen_device
from mergekit_yoyo.evaluation.measurer import Found, Job
from mergekit_yoyo.evaluation.model_folder import ModelFolder, open_model
from mergekit_yoyo.evaluation.weights import measure_weights
from mergekit_yoyo.measured import Measured, Reference
from mergekit_yoyo.model.config import text_section
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.text import read_texts

WINDOW_TOKENS, WINDOWS = 512, 32
# Not with -m: this module has imported it already.
_MEASURER = "from mergekit_yoyo.evaluation.measurer import main; main()"


@dataclass(frozen=True)
class Measuring:
    """How models are measured.

    texts: files by name. against: the unquantized model, a folder or a Hub name. window_tokens:
    what is read at once; windows: how many of each text, evenly spread over it.
    """

    texts: dict[str, Path] = field(default_factory=dict)
    against: str | None = None
    window_tokens: int = WINDOW_TOKENS
    windows: int = WINDOWS

    def setup(self, device: str | None, reference: ModelFolder | None) -> str:
        """A hash of all that what is measured depends on, besides the model."""
        facts = [
            [[name, hashlib.sha256(f.read_bytes()).hexdigest()] for name, f in self.texts.items()],
            reference.fingerprint if reference else None,
            self.window_tokens,
            self.windows,
            chosen_device(device),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_measuring(measuring: Measuring, folders: Sequence[ModelFolder]) -> ModelFolder | None:
    """Read the texts and find the reference, before anything is run.

    Raises:
        YoyoError: a text that cannot be read or says too little, no such reference, a reference
            without text, or windows longer than a model reads.
    """
    if measuring.against and not measuring.texts:
        raise YoyoError(
            f"--against {measuring.against}: on which text? Name one, such as --text "
            "prose=book.txt."
        )
    read_texts(measuring.texts)
    reference = open_model(measuring.against) if measuring.against else None
    for folder in [*folders, *([reference] if reference else [])] if measuring.texts else ():
        context = text_section(folder.config).get("max_position_embeddings")
        # a beginning of text may stand before the window
        if isinstance(context, int) and context <= measuring.window_tokens:
            raise YoyoError(
                f"{folder.given}: this model reads {context} tokens at most: give --window-tokens "
                f"{context - 1} or less."
            )
    return reference


@contextmanager
def reference_logits(
    reference: ModelFolder | None, measuring: Measuring, device: str | None, progress: Progress
) -> Iterator[Path | None]:
    """A folder with the logits of the reference, for as long as it is needed; None without one.

    Raises:
        YoyoError: it cannot be run, or the disk has no room.
    """
    if reference is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mergekit-yoyo-") as folder:
        job = _job(reference, measuring, device).model_copy(update={"keep": Path(folder)})
        _run(reference, job, progress)
        yield Path(folder)


def measure_model(
    folder: ModelFolder,
    measuring: Measuring,
    reference: ModelFolder | None,
    logits: Path | None,
    *,
    device: str | None,
    progress: Progress,
) -> Measured:
    """Measure one model. `logits`: of the reference, from `reference_logits`; that model itself is
    compared with nothing.

    Raises:
        YoyoError: it cannot be run, or does not see the reference's tokens.
    """
    if reference is not None and reference.fingerprint == folder.fingerprint:
        logits = None
    job = _job(folder, measuring, device).model_copy(update={"reference": logits})
    found = _run(folder, job, progress)
    against = None
    if reference is not None and logits is not None:
        against = Reference(name=reference.name, fingerprint=reference.fingerprint)
    assert found.run is not None  # only a reference has none
    return Measured(
        weights=measure_weights(folder.weights, folder.config, mlx=folder.backend == "mlxlm"),
        run=found.run,
        readings=found.readings,
        against=against,
        setup=measuring.setup(device, reference),
    )


def _job(folder: ModelFolder, measuring: Measuring, device: str | None) -> Job:
    return Job(
        path=folder.path,
        loader=folder.backend,
        device=chosen_device(device),
        texts={name: file.resolve() for name, file in measuring.texts.items()},
        windows=measuring.windows,
        window_tokens=measuring.window_tokens,
    )


def _run(folder: ModelFolder, job: Job, progress: Progress) -> Found:
    command: Sequence[str] = [sys.executable, "-c", _MEASURER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job.model_dump_json())
            process.stdin.close()
            for line in process.stdout:
                said = json.loads(line)
                if "begin" in said:
                    step = f"{folder.name}: {said['begin']}"
                    progress.begin(step, said.get("total"), "windows")
                elif "advance" in said:
                    progress.advance(said["advance"])
                elif "error" in said:
                    raise YoyoError(f"{folder.given}: {said['error']}")
                else:
                    return Found.model_validate(said["found"])
        except BaseException:
            process.kill()
            raise
    raise YoyoError(
        f"{folder.given}: the process that measured it ended with status {process.returncode}; "
        "was there too little memory?"
    )
