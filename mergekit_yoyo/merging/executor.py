"""Our executor for mergekit's `run_merge`: the same targets, cut into parts that a crew computes.

It has the interface of mergekit's `Executor` and `MultiGPUExecutor`: `run` yields each target with
its value. Files are in place when it ends; what mergekit writes around them is mergekit's.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import mergekit.merge
from mergekit.common import ModelReference
from mergekit.graph import Executor, Task
from mergekit.io.tasks import SaveTensor
from mergekit.options import MergeOptions
from mergekit.tokenizer import BuildTokenizer

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.journal import Identity, Journal, Layout, changes
from mergekit_yoyo.merging.parts import Output, Part, Sizes, file_names, index_of, lay_out
from mergekit_yoyo.merging.stored import (
    Inputs,
    StoredModel,
    identities_of,
    local_folders,
    stored_models,
)
from mergekit_yoyo.merging.verifying import forget_damaged
from mergekit_yoyo.merging.worker import UNFINISHED, Job, check_unchanged
from mergekit_yoyo.merging.workers import Crew
from mergekit_yoyo.model.checkpoint import INDEX_FILE
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.record import recorder
from mergekit_yoyo.staging import check_disk_space, format_bytes

# Options of mergekit that change how fast a merge is, not what it is.
_OF_SPEED = {
    *("quiet", "verbosity", "num_threads", "async_write", "write_threads", "multi_gpu"),
    *("low_cpu_memory", "read_to_gpu", "gpu_rich", "cuda", "lazy_unpickle", "transformers_cache"),
    *("lora_merge_cache", "clone_tensors", "safe_serialization"),
}
_PACKAGES = ("mergekit", "mergekit-yoyo", "torch", "transformers")


@dataclass(frozen=True)
class Prepared:
    """What there was to do. parts: to compute; done: those that were there; bytes: to write."""

    parts: int
    done: int
    bytes: int


class PartExecutor:
    """Executes a plan of mergekit in durable parts.

    targets: of `MergePlanner.plan_to_disk`. folder: where the files go. journal: what is done.
    crew: who computes. prepared: what there was to do, once it runs.
    """

    prepared: Prepared

    def __init__(
        self,
        targets: Sequence[Task],
        *,
        folder: Path,
        journal: Journal,
        merge_yaml: MergeYaml,
        options: MergeOptions,
        crew: Crew,
        progress: Progress,
    ) -> None:
        self._targets = targets
        self._folder = folder
        self._journal = journal
        self._merge_yaml = merge_yaml
        self._options = options
        self._crew = crew
        self._progress = progress

    def run(self, quiet: bool = False) -> Iterator[tuple[Task, Any]]:
        """Compute what is not done; yields each target as mergekit's executors do.

        Raises:
            YoyoError: the journal is of another merge, an input changed, a worker fails.
        """
        known = self._tokenizers()
        yield from known
        saves = [target for target in self._targets if isinstance(target, SaveTensor)]
        stored = stored_models(_models_of(saves))
        local = local_folders(self._merge_yaml)
        opened = [s.folder for model, s in stored.items() if model.lora is None]
        inputs = identities_of(dict.fromkeys([*local, *opened]))
        parts = self._lay_out(saves, stored, known, inputs)
        watched = {str(folder): inputs[str(folder)] for folder in local}
        self._drop_damaged(parts)
        run = self._clear_unfinished()
        jobs = [
            Job(part, self._folder, run, self._options, tuple(stored), known, watched)
            for part in parts
            if part.file not in self._journal.done
        ]
        largest = max((o.bytes * (1 + len(stored)) for p in parts for o in p.outputs), default=0)
        total = sum(job.part.bytes for job in jobs)
        self.prepared = Prepared(len(jobs), len(parts) - len(jobs), total)
        check_disk_space(self._folder, total)
        if jobs:
            self._progress.say(self._crew.prepare(len(jobs), largest))
            self._progress.begin(f"merging {_counted(jobs)}", total, "bytes")
            self._compute(jobs, parts)
        check_unchanged(watched)
        self._write_index(parts)
        for report in self._write_records(parts):
            recorder.forget(report)
        for target in self._targets:
            if not isinstance(target, BuildTokenizer):
                yield target, None

    def _compute(self, jobs: Sequence[Job], parts: Sequence[Part]) -> None:
        """Have the parts computed, and note each as it is done."""
        with closing(self._crew.run(jobs, self._progress.advance)) as ran:  # whatever happens here
            for k, (job, done) in enumerate(ran, start=1):
                self._journal.append(done)
                self._write_records(parts)
                size = format_bytes(sum(done.tensors.values()))
                said = f"{job.part.file}, {len(done.tensors):,} tensors, {size}"
                self._progress.say(f"part {k} of {len(jobs)}: {said}")

    def _tokenizers(self) -> tuple[tuple[Task, Any], ...]:
        wanted = [target for target in self._targets if isinstance(target, BuildTokenizer)]
        if not wanted:
            return ()
        with _vocabularies_in_order():
            return tuple(Executor(wanted).run(quiet=True))

    def _lay_out(
        self,
        saves: Sequence[SaveTensor],
        stored: dict[ModelReference, StoredModel],
        known: tuple[tuple[Task, Any], ...],
        inputs: Inputs,
    ) -> list[Part]:
        """The parts: as the journal has them, else laid out now."""
        vocabulary = next((len(value.tokenizer.get_vocab()) for _, value in known), None)
        sizes = Sizes(stored, vocabulary)
        outputs = [sizes.output(save) for save in saves]
        identity = _identity_of(self._merge_yaml, self._options, inputs)
        layout = self._journal.layout
        if layout is None:
            parts = lay_out(
                outputs,
                stored,
                shard_bytes=self._options.out_shard_size,
                least=self._crew.width,
            )
            names = {part.file: [o.name for o in part.outputs] for part in parts}
            self._journal.append(Layout(identity=identity, parts=names))
            return parts
        check_same(self._journal, changes(layout.identity, identity))
        return _as_laid_out(outputs, layout)

    def _drop_damaged(self, parts: Sequence[Part]) -> None:
        """Forget parts whose file is not what the journal says."""
        done = [part.file for part in parts if part.file in self._journal.done]
        for file in forget_damaged(
            self._folder, self._journal, done, self._progress, "checking what is done"
        ):
            self._progress.say(f"{file} is not as it was written: computed again")

    def _clear_unfinished(self) -> str:
        """Remove what an earlier run did not finish; gives the word for this run's own files."""
        for file in self._folder.glob(f".*{UNFINISHED}"):
            file.unlink(missing_ok=True)
        return uuid4().hex[:8]

    def _write_records(self, parts: Sequence[Part]) -> list[str]:
        """Write the records of the merge as far as it is done, in the order of the parts."""
        found: recorder.Collected = {}
        for part in parts:
            done = self._journal.done.get(part.file)
            for report, lines in (done.records if done else {}).items():
                found.setdefault(report, []).extend(lines)
        for report, lines in found.items():
            recorder.assemble(report, lines)
        return list(found)

    def _write_index(self, parts: Sequence[Part]) -> None:
        done = {part.file: self._journal.done[part.file] for part in parts}
        found = {file: part.tensors for file, part in done.items() if part.tensors}
        for file in done.keys() - found.keys():  # every tensor of it was optional, and left out
            (self._folder / file).unlink()
        if list(found) == file_names(1):
            return
        index = index_of(found, version("mergekit"))
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _counted(jobs: Sequence[Job]) -> str:
    tensors = sum(len(job.part.outputs) for job in jobs)
    return f"{tensors:,} tensors in {len(jobs)} part{'s' * (len(jobs) != 1)}"


def changes_since(journal: Journal, merge_yaml: MergeYaml, options: MergeOptions) -> list[str]:
    """What of a merge is not as it was when the parts in its journal were computed, in words: the
    YAML, an option, a version or an input."""
    if journal.layout is None or not journal.done:
        return []
    then = journal.layout.identity
    inputs = identities_of(map(Path, then.inputs))
    return changes(then, _identity_of(merge_yaml, options, inputs))


def check_same(journal: Journal, changed: Sequence[str]) -> None:
    """Refuse to go on with the parts in a journal if the merge is not that one any more.

    Raises:
        YoyoError: something changed.
    """
    if changed:
        raise YoyoError(
            f"{journal.file.parent}: holds the beginning of another merge; changed: "
            f"{'; '.join(changed)}. Undo that to go on, or start anew with --fresh."
        )


def _identity_of(merge_yaml: MergeYaml, options: MergeOptions, inputs: Inputs) -> Identity:
    return Identity(
        yaml=merge_yaml.text,
        options={
            name: value
            for name, value in options.model_dump(mode="json").items()
            if name not in _OF_SPEED
        },
        versions={package: version(package).split("+")[0] for package in _PACKAGES},
        inputs=inputs,
    )


def _models_of(saves: Sequence[SaveTensor]) -> list[ModelReference]:
    return list(dict.fromkeys(m for save in saves for m in save.tensor_task.model_order))


def _as_laid_out(outputs: Sequence[Output], layout: Layout) -> list[Part]:
    by_name = {output.name: output for output in outputs}
    if by_name.keys() != {name for names in layout.parts.values() for name in names}:
        raise YoyoError(
            "The plan of this merge is not what it was: its tensors are others. Start anew with "
            "--fresh."
        )
    return [
        Part(k, file, tuple(by_name[name] for name in names))
        for k, (file, names) in enumerate(layout.parts.items(), start=1)
    ]


@contextmanager
def executing(make: Callable[[Sequence[Task]], PartExecutor]) -> Iterator[None]:
    """Let mergekit's `run_merge` use our executor, whichever of its own it would choose."""

    def executor(targets: Sequence[Task], **_: object) -> PartExecutor:
        return make(targets)

    names = ("Executor", "MultiGPUExecutor")
    own = {name: getattr(mergekit.merge, name) for name in names}
    for name in names:
        setattr(mergekit.merge, name, executor)
    try:
        yield
    finally:
        for name in names:
            setattr(mergekit.merge, name, own[name])


@contextmanager
def _vocabularies_in_order() -> Iterator[None]:
    """A union of vocabularies numbers new tokens as they come, and the tokenizer library gives them
    in an order that changes from process to process: a second run could not go on."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast.get_vocab

    def get_vocab(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        return dict(sorted(own(tokenizer).items(), key=lambda item: item[1]))

    PreTrainedTokenizerFast.get_vocab = get_vocab
    try:
        yield
    finally:
        PreTrainedTokenizerFast.get_vocab = own
