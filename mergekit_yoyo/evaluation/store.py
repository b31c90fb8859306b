"""One model's result file and samples in lm-eval's format, growing task by task.

Each file is complete when it appears (written beside, then renamed): a run that is killed leaves
the tasks it finished, and the next run goes on from there.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.measured import KEY, Measured
from mergekit_yoyo.outside import read_json
from mergekit_yoyo.staging import clear_unfinished_files, write_files

# Parts of a result that have an entry for each task.
_BY_TASK = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "task_hashes",
)
_DONE = "completed_tasks"
OF_MODEL = ("model", "model_fingerprint")  # the settings that say which model it is


class ResultStore:
    """The results of one model in `folder`.

    Args:
        folder: where `results_DATE.json` and `samples_TASK_DATE.jsonl` lie or will lie.
        setup: settings that earlier results must share, as recorded in their `config` (or beside).
        restart: do not go on from earlier results; they are removed when there are new ones.

    Raises:
        YoyoError: `folder` cannot be made or written, earlier results of another setup, or files
            that are not one result.
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any], *, restart: bool) -> None:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise YoyoError(
                f"{folder}: cannot be written, because {there} cannot. Give another --output."
            )
        earlier = sorted(folder.glob("results_*.json"))
        self._outdated: list[Path] = []
        if restart:
            self._outdated = [*earlier, *folder.glob("samples_*.jsonl")]
            earlier = []
        if len(earlier) > 1:
            raise YoyoError(
                f"{folder}: expected the results of one evaluation; got {len(earlier)}. "
                "Choose another --output, or --restart to remove them."
            )
        date = datetime.now().isoformat().replace(":", "-")
        self.path = earlier[0] if earlier else folder / f"results_{date}.json"
        self._data = self._read() if earlier else {}
        recorded = {**self._data, **self._data.get("config", {})}
        # what was measured does not depend on how tasks are run
        binding = setup if self._data.get(_DONE) else {k: setup[k] for k in OF_MODEL if k in setup}
        changed = [
            f"{name} is {recorded.get(name)!r} there and {value!r} now"
            for name, value in binding.items()
            if earlier and recorded.get(name) != value
        ]
        if changed:
            raise YoyoError(
                f"{self.path}: these results are of another setup ({'; '.join(changed)}). "
                "Choose another --output, or --restart to remove them."
            )

    def has(self, task: str, config_hash: str) -> bool:
        """Whether `task` is done, with the configuration that it has now."""
        return self._data.get(_DONE, {}).get(task) == config_hash  # type: ignore[no-any-return]

    def add(
        self,
        task: str,
        config_hash: str,
        result: dict[str, Any],
        samples: Mapping[str, Sequence[dict[str, Any]]],
    ) -> None:
        """Keep what the harness returned for `task` (a group has several `samples`)."""
        from lm_eval.utils import hash_string

        self.path.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished_files(self.path.parent)  # their names have the date of a killed run
        result["task_hashes"] = {
            name: hash_string(
                "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in own)
            )
            for name, own in samples.items()
        }
        while self._outdated:
            self._outdated.pop().unlink()
        for name, own in samples.items():
            file = self.path.name.replace("results_", f"samples_{name}_", 1)
            lines = (_dump(_plain_sample(sample)) + "\n" for sample in own)
            path = self.path.with_name(file).with_suffix(".jsonl")
            write_files({path: "".join(lines).encode()})
        data = dict(self._data)
        for key in _BY_TASK:
            if key in result:
                result[key] = {**data.get(key, {}), **result[key]}
        seconds = "total_evaluation_time_seconds"
        result[seconds] = str(float(data.get(seconds, 0)) + float(result[seconds]))
        data.update(result)
        data[_DONE] = {**data.get(_DONE, {}), task: config_hash}
        write_files({self.path: _dump(data, indent=2).encode()})
        self._data = data

    def is_measured(self, setup: str) -> bool:
        """Whether the model was measured in this setup."""
        return self._data.get(KEY, {}).get("setup") == setup  # type: ignore[no-any-return]

    def add_measured(self, measured: Measured, identity: Mapping[str, Any]) -> None:
        """Keep what was measured. `identity`: what is recorded of model and setup, whether or not
        there are tasks yet."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._outdated:
            self._outdated.pop().unlink()
        data = {"results": {}, "date": time.time(), **identity, **self._data}
        data[KEY] = measured.model_dump()
        write_files({self.path: _dump(data, indent=2).encode()})
        self._data = data

    def _read(self) -> dict[str, Any]:
        try:
            data = read_json(self.path)
        except YoyoError as error:
            raise YoyoError(f"{error} --restart removes it.") from None
        for key in (*_BY_TASK, "config", _DONE, KEY):
            if not isinstance(data.get(key, {}), dict):
                raise YoyoError(
                    f"{self.path}: not a result file: {key}: expected a mapping; got "
                    f"{data[key]!r:.60}. --restart removes it."
                )
        return data


def _plain_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as lm-eval's own tracker writes it: uniform columns, for the data set library."""
    from lm_eval.utils import sanitize_list

    arguments = {
        f"gen_args_{i}": {f"arg_{j}": argument for j, argument in enumerate(request)}
        for i, request in enumerate(sample["arguments"])
    }
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": arguments,
        "target": str(sample["target"]),
    }


def _dump(data: object, indent: int | None = None) -> str:
    def plain(value: object) -> object:
        from lm_eval.utils import handle_non_serializable

        return handle_non_serializable(value)

    return json.dumps(data, indent=indent, default=plain, ensure_ascii=False)
