"""Where merges are made and measured: each once, whatever asks for it."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import Checkpoint, main_dtype
from mergekit_yoyo.model.folder import tensors_in
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.tuning.bands import By, bands_of, tensors_of
from mergekit_yoyo.tuning.descent import Slope, descend
from mergekit_yoyo.tuning.divergence import Sample, samples
from mergekit_yoyo.tuning.journal import Journal
from mergekit_yoyo.tuning.knobs import Setting, anchors_of, knob_of
from mergekit_yoyo.tuning.measured import Measured
from mergekit_yoyo.tuning.mixture import Mixture, blend_of
from mergekit_yoyo.tuning.recipe import Recipe
from mergekit_yoyo.tuning.search import Exhausted
from mergekit_yoyo.tuning.subjects import Subjects

SPARE_PARTS = 8  # on the disk at once, beside those of one sum

Merge = Callable[[Path, Path], None]  # a YAML, and the folder that it is merged into


class Parts:
    """Merges in float32 on the disk, mapped into memory when they are read.

    What is not needed for long goes when there are more than `SPARE_PARTS` beside those of a sum.

    at_once: how many a sum has, at most.
    """

    def __init__(self, folder: Path, merge: Merge, at_once: int) -> None:
        self._folder = folder
        self._most = at_once + SPARE_PARTS
        self._merge = merge
        self.merged = 0
        folder.mkdir(parents=True, exist_ok=True)
        # those of an interrupted run count as used long ago
        self._used: dict[Path, None] = dict.fromkeys(
            sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        )

    def of(self, recipe: Recipe, setting: Setting) -> Path:
        """The merge with a setting, in float32: rounding comes after the sum."""
        data = recipe.with_setting(setting)
        data = {**data, "dtype": "float32"}
        data.pop("out_dtype", None)
        return self.as_it_stands(data, _unrounded)

    def as_it_stands(
        self, data: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Path:
        """The merge that a YAML describes."""
        data = change(data)
        text = yaml.safe_dump(data, sort_keys=False)
        folder = self._folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._used.pop(folder, None)
        self._used[folder] = None
        if not (folder / "config.json").is_file():
            self._make_room()
            file = folder.with_suffix(".yml")
            file.write_text(text, encoding="utf-8")
            self._merge(file, folder)
            self.merged += 1
        return folder

    def _make_room(self) -> None:
        for folder in list(self._used)[: -self._most]:
            shutil.rmtree(folder, ignore_errors=True)
            del self._used[folder]


def _without_report(data: dict[str, Any], *others: str) -> dict[str, Any]:
    """The record of the merge is that of the user's own."""
    given = data.get("parameters") or {}
    parameters = {k: v for k, v in given.items() if k not in ("report", *others)}
    return {**data, "parameters": parameters} if parameters else _but(data, "parameters")


def _unrounded(data: dict[str, Any]) -> dict[str, Any]:
    """Of a part of a sum, which is rounded after it."""
    return _without_report(data, "rounding")


def _but(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != key}


class Budget:
    """Candidates or minutes that a search may spend; known ones cost nothing but their count."""

    def __init__(self, candidates: int, minutes: float | None) -> None:
        self._left = candidates
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._counted: set[str] = set()
        self.ended_by = ""

    @property
    def spent(self) -> int:
        """Candidates so far."""
        return len(self._counted)

    def spend(self, setting: Setting) -> bool:
        """Count a candidate; whether it is a new one. Raises Exhausted when there is none left."""
        key = json.dumps(setting, sort_keys=True)
        if key in self._counted:
            return False
        if len(self._counted) >= self._left:
            self.ended_by = f"{self._left} candidates"
            raise Exhausted
        # whatever the time, the given YAML itself is measured
        if self._counted and self._end is not None and time.monotonic() > self._end:
            self.ended_by = "the time given"
            raise Exhausted
        self._counted.add(key)
        return True


class Bench:
    """Measures merges on the texts of `subjects`, and remembers what it measured in a journal."""

    def __init__(
        self,
        subjects: Subjects,
        parts: Parts,
        journal: Journal,
        *,
        device: str,
        rounded: torch.dtype,
        progress: Progress,
    ) -> None:
        self._subjects = subjects
        self._parts = parts
        self._journal = journal
        self._device, self._rounded = device, rounded
        self._progress = progress
        self._mixture: Mixture | None = None
        self._halves = {
            reports: [(s.name, *s.half(reports=reports)) for s in subjects.of]
            for reports in (False, True)
        }
        self.seconds = 0.0  # spent on reading, without merging
        self.read = 0

    def candidate(self, recipe: Recipe, setting: Setting, *, reports: bool = False) -> Measured:
        """A merge as the weighted sum that it is, to nearest in the dtype that it would have."""
        key = _key(recipe.with_setting(setting), "reports" if reports else "chooses")
        known = self._journal.get(key)
        if known is None:
            blend = blend_of(recipe, setting)
            if not blend:
                known = {name: [Sample(None, float("inf"))] for name, *_ in self._halves[reports]}
            else:
                folders = [(factor, self._parts.of(recipe, part)) for factor, part in blend]
                known = self._read(folders, reports=reports)
            self._journal.add(key, known)
        return self._as_measured(setting, known)

    def published(self, recipe: Recipe, setting: Setting) -> Measured:
        """A merge as mergekit itself writes it, in the YAML's own dtype, on the half that reports.

        No weighted sum: what is said in the end is said of this.
        """
        data = recipe.with_setting(setting)
        key = _key(data, "published")
        known = self._journal.get(key)
        if known is None:
            folder = self._parts.as_it_stands(data, _without_report)
            known = self._read([(1.0, folder)], reports=True)
            self._journal.add(key, known)
        return self._as_measured(setting, known)

    def by_bands(
        self, recipe: Recipe, best: Setting, option: str, start: float, by: By, budget: Budget
    ) -> Setting:
        """The setting with a strength for each of the bands in place of one, unrounded weights.

        best: of the single strengths. option: the strength, which the merge is linear in. budget:
        pays for each evaluation.
        """
        anchors = anchors_of(recipe.method, option)
        assert anchors is not None
        low, high = (self._parts.of(recipe, {**best, option: anchor}) for anchor in anchors)
        with Checkpoint(low) as checkpoint:
            bands = bands_of(by, checkpoint.tensors)
        slope = Slope(
            self._mixture_of(low),
            low,
            high,
            anchors,
            bands,
            tensors_of(_without_report(recipe.with_setting(best)), option),
            self._halves[False],
            self._subjects.by_divergence,
        )

        def at(numbers: Sequence[float]) -> tuple[float, NDArray[np.float64]]:
            budget.spend({option: [float(number) for number in numbers], "by": by})
            data = recipe.with_setting({**best, option: bands.setting(numbers)})
            key = _key(data, "slope")
            known = self._journal.get(key)
            if known is None:
                value, gradient = slope.at(numbers)
                known = {
                    "mean": [Sample(None, value)],
                    "gradient": [Sample(None, float(number)) for number in gradient],
                }
                self._journal.add(key, known)
            self._progress.advance()
            return known["mean"][0].loss, np.array([s.loss for s in known["gradient"]])

        numbers = descend(at, start, bands.count, knob_of(option))
        return {**best, option: bands.setting(numbers)}

    def _mixture_of(self, folder: Path) -> Mixture:
        if self._mixture is None:
            dtype = torch.float32 if self._device == "cpu" else self._rounded
            self._mixture = Mixture(folder, device=self._device, dtype=dtype, rounded=self._rounded)
        return self._mixture

    def _as_measured(self, setting: Setting, found: Mapping[str, list[Sample]]) -> Measured:
        return Measured.of(setting, found, kl=self._subjects.by_divergence)

    def _read(self, folders: list[tuple[float, Path]], *, reports: bool) -> dict[str, list[Sample]]:
        started = time.perf_counter()
        mixture = self._mixture_of(folders[0][1])
        mixture.load(folders)
        found = {
            name: samples(mixture.model, windows, reference)
            for name, windows, reference in self._halves[reports]
        }
        self.seconds += time.perf_counter() - started
        self.read += 1
        return found


def published_dtype(recipe: Recipe, first: Path) -> torch.dtype:
    """The dtype that a merge is written in: the YAML's, else that of its first model.

    Raises:
        YoyoError: the YAML names none that torch has.
    """
    config = recipe.merge_yaml.config
    name = config.out_dtype or config.dtype
    if name:
        found = getattr(torch, str(name), None)
        if not isinstance(found, torch.dtype):
            raise YoyoError(f"{recipe.file}: torch has no dtype {name}.")
        return found
    infos = {n: info for n, info in (tensors_in(first) or {}).items() if info is not None}
    return main_dtype(infos) if infos else torch.float32


def _key(data: dict[str, Any], what: str) -> str:
    text = json.dumps([_without_report(data), what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
