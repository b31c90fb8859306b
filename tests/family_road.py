"""The whole road of a tiny family: fine-tunes, merge, inspect, finish, transformers; what came out.

Several families share one process, since importing mergekit and transformers costs seconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, names_of, write_family
from method_fixtures import assert_is_merge, fine_tune, recipe, tensors_of

MODELS = ("a", "b", "c")


@dataclass
class Road:
    """What happened to one family; an empty text is good news.

    lost: tensors of the inputs that the finished merge lacks, and strange ones that it has besides.
    wrong: tensors whose numbers are not the reference's.
    """

    name: str
    inputs: int = 0
    merged: int = 0
    merge: str = ""
    inspect: str = ""
    finish: str = ""
    transformers: str = ""
    lost: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def write_inputs(name: str, folder: Path) -> list[Path]:
    """Three models of a family: `a` is the donor, `b` and `c` are noisy copies."""
    first = write_family(folder / "a", name)
    return [first, *(fine_tune(first, folder / m, seed=k) for k, m in enumerate(MODELS[1:], 1))]


def merge_yaml(inputs: Sequence[Path], **parameters: object) -> str:
    """The YAML that merges them by `yoyo_fusion`, the first being base_model."""
    return recipe([str(path) for path in inputs], f"base_model: {inputs[0]}\n", **parameters)


def travel(name: str, folder: Path) -> Road:
    """Take a family down the road in this process; all it makes is in `folder`."""
    from mergekit.scripts.run_yaml import main

    road = Road(name)
    inputs = write_inputs(name, folder)
    (folder / "merge.yml").write_text(merge_yaml(inputs))
    merged, finished = folder / "merged", folder / "finished"
    road.inputs = len(names_of(inputs[0]))
    try:
        main([str(folder / "merge.yml"), str(merged)], standalone_mode=False)
    except Exception as error:
        road.merge = f"{type(error).__name__}: {error}"
        return road
    road.merged = len(names_of(merged))
    road.inspect = _inspect(folder / "merge.yml")
    road.finish = _finish(merged, finished)
    if road.finish:
        return road
    judge(road, inputs, finished)
    road.transformers = compare_loads(name, inputs[0], merged, finished)
    return road


def judge(road: Road, inputs: Sequence[Path], finished: Path) -> None:
    """Hold a finished merge against its inputs: names, and numbers by the reference."""
    wanted, found = names_of(inputs[0]), names_of(finished)
    road.lost, road.strange = sorted(wanted - found), sorted(found - wanted)
    models, merged = [tensors_of(path) for path in inputs], tensors_of(finished)
    for name in sorted(wanted & found):
        parts = [_parts(name, tensors[name], road.name) for tensors in (merged, *models)]
        for result, *ours in zip(*parts, strict=True):
            try:
                assert_is_merge(result, ours, name)
            except AssertionError as error:
                road.wrong.append(str(error).splitlines()[0])
                break


def _parts(name: str, tensor: torch.Tensor, family: str) -> list[torch.Tensor]:
    """A tensor as the family's checkpoints store it: packed experts taken apart."""
    if not FAMILIES[family].packed or tensor.ndim != 3 or "experts" not in name:
        return [tensor]
    if name.endswith("gate_up_proj"):
        return [half.contiguous() for expert in tensor for half in expert.chunk(2)]
    return [expert.contiguous() for expert in tensor]


def _inspect(file: Path) -> str:
    from mergekit_yoyo.inspection import inspect

    for quick in (True, False):
        found = inspect(file, quick=quick).of_level("error")
        if found:
            return "; ".join(found)
    return ""


def _finish(merged: Path, finished: Path) -> str:
    from mergekit_yoyo.finish import finish, plan_finish

    try:
        finish(plan_finish(merged, name=finished.name), output=finished)
        again = plan_finish(finished).differences
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"a second run changes {again}" if again else ""


def compare_loads(name: str, donor: Path, merged: Path, finished: Path) -> str:
    """Whether transformers loads a merge whole, and the same before and after finish."""
    import transformers

    model_class: Any = getattr(transformers, FAMILIES[name].architecture)
    states, reports = [], []
    for folder in (donor, merged, finished):
        model, report = model_class.from_pretrained(folder, output_loading_info=True)
        states.append(model.state_dict())
        reports.append(report)
        if report["missing_keys"] or report["mismatched_keys"]:
            return f"{folder.name}: missing {sorted(report['missing_keys'])[:3]}"
    if reports[0]["unexpected_keys"] != reports[2]["unexpected_keys"]:
        return f"unexpected {sorted(reports[2]['unexpected_keys'] - reports[0]['unexpected_keys'])}"
    differing = [key for key, value in states[1].items() if not torch.equal(value, states[2][key])]
    return f"{differing[:3]} differ before and after finish" if differing else ""


def config_of(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values
