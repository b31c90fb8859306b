"""How a model is loaded and what it is for, by transformers' own auto classes and tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_yoyo.model.config import config_from, model_class

# Where transformers lists an architecture under several auto classes: these say most of it ...
_FIRST = ("AutoModelForImageTextToText", "AutoModelForSpeechSeq2Seq", "AutoModelForSeq2SeqLM")
# ... and these least.
_LAST = (
    "AutoModelForMultimodalLM",
    "AutoModelForPreTraining",
    "AutoModelForTextEncoding",
    "AutoModel",
)
# Tasks of a model without its head, whatever head the checkpoint brings along.
_EMBEDDING = ("feature-extraction", "sentence-similarity")
# Either of them makes a processor of pictures or sound.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Use:
    """How a checkpoint is loaded.

    loader: the class of transformers that loads all of it. task: transformers' name of what that
    class does, which the Hub takes as pipeline_tag; None if it has none. beyond_text: it takes
    pictures or sound. model_type: as config.json has it.
    """

    loader: str
    task: str | None
    beyond_text: bool
    model_type: str


def use_of(config: Mapping[str, Any], stated: str | None = None) -> Use:
    """The use of a model, from the `architectures` and `model_type` of its config.json.

    Args:
        config: what config.json holds.
        stated: the pipeline_tag of its card: a causal model that is said to make embeddings is
            loaded without its head.

    Raises:
        YoyoError: transformers has no such architecture.
    """
    architecture, _ = model_class(config_from(config))
    model_type = str(config["model_type"])
    found = [name for name, known in _auto_classes(model_type) if architecture in known]
    if stated in _EMBEDDING and any(name == "AutoModel" for name, _ in _auto_classes(model_type)):
        found = ["AutoModel"]
    loader = min(found, key=_rank, default=architecture)
    task, kind = next(_tasks(loader), (None, "text"))
    return Use(loader, task, kind != "text", model_type)


def fits(use: Use, task: str) -> bool:
    """Whether a card may call a model's task so: transformers does not say that it is another's."""
    from transformers.pipelines import SUPPORTED_TASKS

    known = SUPPORTED_TASKS.get(task)
    return use.task is None or known is None or use.loader in _names_of(known)


def _auto_classes(model_type: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each auto class of transformers that knows a model type, with the architectures it loads."""
    from transformers.models.auto import modeling_auto

    for name, found in vars(modeling_auto).items():
        if name.startswith("AutoModel") and hasattr(found, "_model_mapping"):
            known = found._model_mapping._model_mapping.get(model_type, ())
            yield name, (known,) if isinstance(known, str) else tuple(known)


def _rank(name: str) -> int:
    if name in _FIRST:
        return _FIRST.index(name)
    return len(_FIRST) + (1 + _LAST.index(name) if name in _LAST else 0)


def _tasks(loader: str) -> Iterator[tuple[str, str]]:
    """The tasks of an auto class, and what goes in: text, image, audio, video or multimodal."""
    from transformers.pipelines import SUPPORTED_TASKS

    for task, known in SUPPORTED_TASKS.items():
        if loader in _names_of(known):
            yield task, known["type"]


def _names_of(task: Mapping[str, Any]) -> list[str]:
    return [found.__name__ for found in task["pt"]]
