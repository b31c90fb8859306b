"""The road of a search: texts, parts, candidates, the verdict, and what is written."""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.folder import fingerprint, tensors_in
from mergekit_yoyo.model.merge_yaml import read_merge_yaml
from mergekit_yoyo.outside import read_text
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import check_disk_space, format_bytes, write_files
from mergekit_yoyo.tuning.bands import By
from mergekit_yoyo.tuning.bench import Bench, Budget, Merge, Parts, published_dtype
from mergekit_yoyo.tuning.journal import Journal
from mergekit_yoyo.tuning.knobs import STRENGTHS, Knob, Setting
from mergekit_yoyo.tuning.landmarks import landmarks
from mergekit_yoyo.tuning.measured import Measured
from mergekit_yoyo.tuning.mixture import blend_of
from mergekit_yoyo.tuning.outcome import Outcome, not_better_by
from mergekit_yoyo.tuning.picture import render_picture
from mergekit_yoyo.tuning.recipe import Recipe
from mergekit_yoyo.tuning.search import Found, search
from mergekit_yoyo.tuning.subjects import Model, Subjects, Texts, models_of, prepare
from mergekit_yoyo.tuning.writing import MARK, tuned_text


@dataclass(frozen=True)
class Search:
    """How to search. move: options by name, none: those that are moved unasked. candidates,
    minutes: the budget. seed: of halves. device: as torch names it. beside: measure other methods
    too, for orientation. fresh: forget what an earlier run measured. by: a strength of its own for
    each kind of module, or a gradient over the layers."""

    move: Sequence[str] = ()
    candidates: int = 40
    minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    beside: bool = True
    fresh: bool = False
    by: By | None = None


@dataclass(frozen=True)
class Tuned:
    """outcome: what was found. files: what was written."""

    outcome: Outcome
    files: tuple[Path, ...]


def tune(
    file: Path,
    output: Path,
    merge: Merge,
    texts: Texts,
    how: Search,
    *,
    progress: Progress = SILENT,
) -> Tuned:
    """Find the options of a merge that keep its models' knowledge best, and write them down.

    file: the merge YAML. output: the YAML to write; a picture goes beside it. merge: merges a YAML
    into a folder, whole or not at all. texts: what to measure on.

    Run again after an interruption, it goes on from the candidates that were measured.

    Raises:
        YoyoError: there is nothing to tune, a text or model is of no use, the output is in the way,
            the disk too small, or another run is at it.
    """
    recipe = Recipe(file, read_merge_yaml(file))
    _check_output(file, output)
    keys, notes = recipe.knobs(how.move)
    if how.by and not any(option in keys for option in STRENGTHS):
        raise YoyoError(
            f"--by {how.by}: {recipe.method} has no strength here that a merge is linear in. It "
            f"needs one of {', '.join(STRENGTHS)}, moved."
        )
    models = models_of(recipe)
    with _workplace(output, fresh=how.fresh) as work:
        parts = Parts(work / "parts", merge, len(models) + 1)
        _check_disk(work, models, progress)

        def merged() -> Path:
            return parts.of(recipe, blend_of(recipe, recipe.setting(list(keys)))[0][1])

        subjects = prepare(
            recipe,
            models,
            texts,
            merged=merged,
            kept=work / "references",
            device=how.device,
            seed=how.seed,
            progress=progress,
        )
        journal = Journal(work / "journal.jsonl", _identity(recipe, models, subjects, how))
        if len(journal):
            progress.say(f"going on: {len(journal)} merges were measured before")
        bench = Bench(
            subjects,
            parts,
            journal,
            device=how.device,
            rounded=published_dtype(recipe, models[0].folder),
            progress=progress,
        )
        notes += subjects.notes
        outcome = _search(recipe, keys, bench, how, work, notes, subjects, progress)
        written = _write(outcome, output, progress)
    shutil.rmtree(_work_of(output), ignore_errors=True)
    return Tuned(outcome, written)


def _search(
    recipe: Recipe,
    keys: Mapping[str, Knob],
    bench: Bench,
    how: Search,
    work: Path,
    notes: list[str],
    subjects: Subjects,
    progress: Progress,
) -> Outcome:
    given = recipe.setting(list(keys))
    budget = Budget(how.candidates, how.minutes)
    others = list(landmarks(recipe, work)) if how.beside else []
    minutes = "" if how.minutes is None else f", {how.minutes:g} minutes"
    progress.say(
        f"moving {', '.join(dict.fromkeys(k.partition('[')[0] for k in keys))}; "
        f"at most {how.candidates} candidates{minutes}; beside them "
        f"{', '.join(label for label, _ in others) or 'nothing'}"
    )
    for note in notes:
        progress.say(f"note: {note}")
    progress.begin("measuring candidates", how.candidates, "candidates")

    def measure(setting: Setting) -> Measured:
        new = budget.spend(setting)
        measured = bench.candidate(recipe, setting)
        if new:
            progress.advance()
        return measured

    started = time.perf_counter()
    first = measure(given)
    seconds = time.perf_counter() - started
    progress.say(
        f"the YAML as given: {first.figure} ({seconds:.0f} s; a candidate that is merged already "
        f"takes {bench.seconds / max(bench.read, 1):.1f} s)"
    )
    found = search(first, keys, measure, recipe.deciding)
    banded = None
    if how.by:
        banded = _by_bands(recipe, found, keys, bench, how.by, budget, progress)
    beside = _beside(others, bench, progress)
    progress.begin("reporting on the other half", None, "merges")
    published = bench.published(recipe, given)
    best = published
    if found.best.setting != given:
        best = bench.published(recipe, found.best.setting)
    single = None
    if banded is not None:
        by = bench.published(recipe, banded)
        # the single strength stays, unless several are better by more than noise
        if best.above(by).is_sure:
            single, best = best, by
        else:
            notes = [*notes, not_better_by(how.by, best.above(by))]
    return Outcome(
        recipe=recipe,
        given=published,
        best=best,
        single=single,
        lines=found.lines,
        landmarks=beside,
        by_divergence=subjects.by_divergence,
        candidates=budget.spent,
        ended_by=budget.ended_by if found.exhausted else "",
        notes=notes,
    )


def _by_bands(
    recipe: Recipe,
    found: Found,
    keys: Mapping[str, Knob],
    bench: Bench,
    by: By,
    budget: Budget,
    progress: Progress,
) -> Setting | None:
    """The best setting with a strength a band in place of its one; None if it has none."""
    setting = found.best.setting
    beside = {**recipe.deciding, **setting}
    option = next((k for k in STRENGTHS if k in keys and keys[k].acts(beside)), None)
    if option is None:
        progress.say(f"note: the best that was found has no strength, so none by {by}")
        return None
    value = setting[option]
    if not isinstance(value, int | float):  # auto: where its line was lowest
        lines = [line for line in found.lines if line.key == option and line.points]
        value = lines[-1].lowest[0] if lines else keys[option].start
    progress.begin(f"strengths by {by}, by gradient", None, "evaluations")
    return bench.by_bands(recipe, setting, option, float(value), by, budget)


def _beside(
    others: list[tuple[str, Recipe]], bench: Bench, progress: Progress
) -> dict[str, tuple[Measured, Measured]]:
    """Other methods on both halves; task arithmetic with the factor that the first half likes."""
    found = {}
    progress.begin("other methods, for orientation", len(others), "methods")
    for label, recipe in others:
        try:
            setting: Setting = {}
            chosen = None
            if recipe.method == "task_arithmetic":
                knobs, _ = recipe.knobs(["lambda"])
                first = bench.candidate(recipe, recipe.setting(["lambda"]))
                chosen = search(first, knobs, partial(bench.candidate, recipe), {}).best
                setting = chosen.setting
            chosen = chosen or bench.candidate(recipe, setting)
            found[label] = (chosen, bench.candidate(recipe, setting, reports=True))
        except (YoyoError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            progress.say(f"note: {label} is left out: {reason}")
        progress.advance()
    return found


def _write(outcome: Outcome, output: Path, progress: Progress) -> tuple[Path, ...]:
    text, kept = tuned_text(outcome.recipe, outcome.setting, outcome.remarks())
    if not kept:
        text = text.replace(
            "\n\n", "\n# note: the comments of the given YAML could not be kept\n\n", 1
        )
    files = {output: text.encode()}
    try:
        picture = render_picture(outcome)
    except YoyoError as error:  # no matplotlib: what hours have found is written all the same
        progress.say(f"note: {error}")
        picture = None
    if picture is not None:
        files[output.with_suffix(".png")] = picture
    write_files(files)
    return tuple(files)


def _identity(
    recipe: Recipe, models: Sequence[Model], subjects: Subjects, how: Search
) -> dict[str, Any]:
    """What decides the figures of a search."""
    packages = ("mergekit", "mergekit-yoyo", "torch", "transformers")
    found: dict[str, Any] = {
        "YAML": recipe.merge_yaml.text,
        "seed": how.seed,
        "device": how.device.partition(":")[0],
    }
    found |= {f"version of {name}": version(name).split("+")[0] for name in packages}
    for model in models:
        weights = sorted([*model.folder.glob("*.safetensors"), *model.folder.glob("*.bin")])
        found[f"model {model.name}"] = fingerprint(weights)
    for subject in subjects.of:
        windows = repr(subject.windows).encode()
        found[f"text {subject.name}"] = hashlib.sha256(windows).hexdigest()
    return found


def _check_output(file: Path, output: Path) -> None:
    if output.resolve() == file.resolve():
        raise YoyoError(f"{output}: that is the merge YAML itself. Choose another name.")
    if output.exists() and not (output.is_file() and read_text(output).startswith(MARK)):
        raise YoyoError(
            f"{output}: this exists, and no search of ours wrote it. Choose another name."
        )
    picture = output.with_suffix(".png")
    if picture == output or (picture.exists() and not output.exists()):
        raise YoyoError(
            f"{output}: the picture would be {picture}, which is taken. Choose another name."
        )
    if not output.parent.is_dir():
        raise YoyoError(f"{output}: no folder {output.parent}.")


def _check_disk(work: Path, models: Sequence[Model], progress: Progress) -> None:
    """A part is as large as a model in float32, and three are there at once, or one a model."""
    infos = [info for info in (tensors_in(models[0].folder) or {}).values() if info is not None]
    part = sum(4 * info.nbytes // info.dtype.itemsize for info in infos)
    check_disk_space(work, 3 * part)
    progress.say(f"parts of {format_bytes(part)} each are kept in {work} and mapped into memory")


def _work_of(output: Path) -> Path:
    return output.absolute().parent / f".{output.name}.tuning"


@contextmanager
def _workplace(output: Path, *, fresh: bool) -> Iterator[Path]:
    """The hidden folder beside the output, held by one run."""
    work = _work_of(output)
    try:
        work.mkdir(exist_ok=True)
        lock = (work / "lock").open("a")
    except OSError as error:
        raise YoyoError(
            f"{output.parent}: nothing can be written here ({error.strerror}). Choose another "
            "folder."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise YoyoError(
                f"{output}: another run is searching for this file. Wait for it, or choose another "
                "name."
            ) from None
        if fresh:
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
        yield work
