"""Where the repair takes hold of mergekit: two functions of `MergePlanner`, wrapped.

mergekit has no extension point for this. The wrappers are made for one version, known by the text
of what they wrap and rely on; with another, nothing is repaired, and a merge that would lose
something is refused. `MERGEKIT_YOYO_REPAIR=0` asks for the same.
"""

import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib.metadata import version
from typing import Any, Literal

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.planning.law import Account, account
from mergekit_yoyo.planning.opened import opened_anew
from mergekit_yoyo.planning.repair import Repair
from mergekit_yoyo.planning.slices import layers_of, readers_of

LOG = logging.getLogger(__name__)

SWITCH = "MERGEKIT_YOYO_REPAIR"
MERGEKIT = "0.1.5"
# sha256 of the source text of what is wrapped and of what the repair leans on
FINGERPRINTS = {
    "mergekit.plan:MergePlanner._plan": "7d1537dbe8fa7495",
    "mergekit.plan:MergePlanner.normalize_config": "9e2d66c807a0472d",
    "mergekit.plan:MergePlanner.plan_tensor": "14342e40ba15bc9e",
    "mergekit.plan:MergePlanner.plan_layer": "841f83811fecb9e9",
    "mergekit.plan:MergePlanner.plan_slice": "65367403d21ae676",
    "mergekit.plan:MergePlanner.plan_module": "29a6a74ee95b5fd5",
    "mergekit.plan:MergePlanner.plan_to_disk": "8c10e5aa9f389ea4",
    "mergekit.io.tasks:GatherTensors": "1e9d032493ca2ccc",
    "mergekit.io.tasks:LoadTensor": "8c9216a72d98173e",
    "mergekit.merge_methods.task_adapter:ExecuteMergeMethodTask": "532c546fc338d931",
}
# mends: plan what would be lost. refuses: refuse what is lost even so. watches: only tell it.
Mode = Literal["mends", "refuses", "watches"]
METHODS = ("yoyo_fusion",)  # which are repaired without being asked

_mode: ContextVar[Mode | None] = ContextVar("mode", default=None)


@contextmanager
def planning(mode: Mode | None) -> Iterator[None]:
    """Plan merges of every method so, whatever the default for a method is (None)."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def watching(method: str) -> Iterator[None]:
    """Watch what the plan of a method loses, unless it is mended or somebody asked for more."""
    with planning(_mode.get() or (None if method in METHODS else "watches")):
        yield


def lost_in(planner: Any) -> Account:
    """What a plan that was made would lose; nothing if nobody watched."""
    found: Account | None = getattr(planner, "_account", None)
    return Account() if found is None else found


def notes_on(planner: Any) -> list[str]:
    """What a person should know of a plan that was mended."""
    repair: Repair | None = getattr(planner, "_repair", None)
    return [] if repair is None else repair.notes


def install(refuse: Callable[[str], Exception], check: Callable[[Any, str], None]) -> None:
    """Wrap mergekit's planner. Harmless if it is wrapped already.

    Args:
        refuse: makes the exception that a plan is refused with, of its sentence.
        check: refuses a task of `METHODS` by raising; called for each, with the YAML of the merge,
            before a tensor is read.
    """
    from mergekit.plan import MergePlanner

    if hasattr(MergePlanner._plan, "__wrapped__"):
        return
    plan, plan_tensor = MergePlanner._plan, MergePlanner.plan_tensor
    MergePlanner._plan = _whole(plan, plan_tensor, refuse, check)
    MergePlanner.plan_tensor = _checked(plan_tensor)


@cache
def differing() -> tuple[str, ...]:
    """What of mergekit is not what the repair was made for; nothing in the known version."""
    return tuple(name for name, known in FINGERPRINTS.items() if fingerprint(name) != known)


def is_switched_off() -> bool:
    """Whether the environment says that nothing is to be repaired."""
    return os.environ.get(SWITCH) == "0"


def fingerprint(name: str) -> str:
    """sha256 of the source of a function of mergekit, by `module:Class.function`."""
    from importlib import import_module

    module, path = name.split(":")
    found: Any = import_module(module)
    try:
        for part in path.split("."):
            found = getattr(found, part)
        text = inspect.getsource(inspect.unwrap(found))
    except (AttributeError, OSError, TypeError):
        return "missing"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(
    plan: Callable[[Any], None],
    plan_tensor: Callable[..., None],
    refuse: Callable[[str], Exception],
    check: Callable[[Any, str], None],
) -> Callable[[Any], None]:
    """`MergePlanner._plan`, after which nothing is lost, or the merge is refused."""

    @wraps(plan)
    def whole(planner: Any) -> None:
        with opened_anew():
            planned(planner)

    def planned(planner: Any) -> None:
        mode = _mode_of(planner)
        if mode is None:
            plan(planner)
            return
        yaml = planner.config.to_yaml()  # as it is before the planner rewrites it
        if mode == "mends":
            planner._repair = Repair(planner, plan_tensor)
        try:
            plan(planner)
            tasks = [task for _, task in planner._tensors]
            _check(tasks, check, yaml)
            if mode == "mends":
                planner._account = planner._repair.plan_rest()
                _check([task for _, task in planner._tensors[len(tasks) :]], check, yaml)
                planner._repair.tell_config()
            else:
                planner._account = account(tasks, layers_of(planner), readers_of(planner))
        except YoyoError as error:
            raise refuse(str(error)) from error
        if planner._account.lost and mode != "watches":
            raise refuse(refusal(planner._account, mode))

    return whole


def _check(tasks: list[Any], check: Callable[[Any, str], None], yaml: str) -> None:
    for task in tasks:
        if task.method_name in METHODS:
            check(task, yaml)


def _checked(plan_tensor: Callable[..., None]) -> Callable[..., None]:
    @wraps(plan_tensor)
    def checked(planner: Any, *args: Any, **kwargs: Any) -> None:
        repair: Repair | None = getattr(planner, "_repair", None)
        (plan_tensor if repair is None else Repair.plan_weight)(
            planner if repair is None else repair, *args, **kwargs
        )

    return checked


def refusal(found: Account, mode: Mode) -> str:
    """The sentence that refuses a plan which loses something, with the way out."""
    if is_switched_off():
        out = f"Unset {SWITCH}, which switches off their repair"
    elif differing():
        out = (
            f"mergekit {version('mergekit')} is not the {MERGEKIT} that they could be repaired in: "
            f"install mergekit=={MERGEKIT}"
        )
    elif mode == "mends":
        out = "They could not be planned: please report these names"
    else:
        out = (
            "`mergekit-yoyo merge` brings them along, by any method; what mergekit-yaml merged "
            "is completed with `mergekit-yoyo finish MERGE --complete`"
        )
    if found.known:
        out += (
            "; or save each input anew with transformers' "
            "save_pretrained(save_original_format=False)"
        )
    return f"mergekit would leave out of the merge, without a word, {found}. {out}."


def _mode_of(planner: Any) -> Mode | None:
    mode = _mode.get()
    if mode is None and planner.config.merge_method in METHODS:
        mode = "mends"
    if mode == "mends" and (is_switched_off() or is_unknown()):
        return "refuses"
    return mode


@cache
def is_unknown() -> bool:
    """Whether this mergekit is another than the repair was made for; said once."""
    if differing():
        LOG.warning(
            "mergekit %s differs from %s in %s: what it leaves out is not repaired, and such "
            "merges are refused",
            version("mergekit"),
            MERGEKIT,
            ", ".join(differing()),
        )
    return bool(differing())
