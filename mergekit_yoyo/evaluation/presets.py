"""Names for sets of tasks: the seven of the published tables, and the five domains of MergeBench.

MergeBench (He et al., 2025, arXiv 2505.10833) judges merges by what their inputs were specialists
of. Its tasks are taken where lm-evaluation-harness has them. Of its safety tests (WildGuardTest,
HarmBench, DoAnythingNow, XSTest) it has none: two others stand in.
"""

from collections.abc import Iterable

from mergekit_yoyo.seven_tasks import SEVEN_TASKS

_MERGEBENCH = {
    "mergebench-math": ("gsm8k", "minerva_math"),
    "mergebench-multilingual": tuple(
        f"{task}_{language}"
        for task in ("m_mmlu", "arc", "hellaswag")
        for language in ("fr", "es", "de", "ru")
    ),
    "mergebench-instruction": ("ifeval",),
    "mergebench-code": ("humaneval_plus", "mbpp_plus"),
    "mergebench-safety": ("toxigen", "truthfulqa_mc2"),
}
PRESETS = {
    "seven": SEVEN_TASKS,
    **_MERGEBENCH,
    "mergebench": tuple(task for tasks in _MERGEBENCH.values() for task in tasks),
}


def expand_presets(names: Iterable[str]) -> list[str]:
    """`names` with each preset replaced by its tasks, each task once."""
    return list(dict.fromkeys(task for name in names for task in PRESETS.get(name, (name,))))
