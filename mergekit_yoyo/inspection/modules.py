"""`slices:` of a model of several modules, written as the `modules:` that mergekit wants."""

from typing import Any

import yaml
from mergekit.architecture import ModelArchitecture

from mergekit_yoyo.model.merge_yaml import MergeYaml

_TEXT = ("language_model", "text", "decoder")  # in the names of modules that speak


class _Dumper(yaml.SafeDumper):
    """Indents lists below their keys, and writes ranges of layers in one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _flow(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    short = all(isinstance(value, int) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


_Dumper.add_representer(list, _flow)


def as_modules(merge_yaml: MergeYaml, architecture: ModelArchitecture, settings: Any) -> str:
    """The part of the YAML that replaces `slices:`: they arrange the layers of the text model.

    The other modules (towers, and what is in no layer) are merged whole, from the models of the
    first slice.

    Args:
        merge_yaml: a YAML with `slices:`.
        architecture: mergekit's, of several modules.
        settings: the transformers config of the merge.
    """
    slices = yaml.safe_load(merge_yaml.text)["slices"]
    models = [{"model": source["model"]} for source in slices[0]["sources"]]
    text = _text_module(architecture, settings)
    modules = {
        name: {"slices": slices} if name == text else {"models": models}
        for name in sorted(architecture.modules, key=lambda name: (name == text, name))
    }
    written: str = yaml.dump({"modules": modules}, Dumper=_Dumper, sort_keys=False, width=100)
    return written


def _text_module(architecture: ModelArchitecture, settings: Any) -> str:
    """The module of the text model: by its name, else by its number of layers."""
    wanted = settings.get_text_config().num_hidden_layers

    def fit(name: str) -> tuple[bool, bool]:
        layers = architecture.modules[name].architecture.num_layers(settings)
        return layers == wanted, any(part in name for part in _TEXT)

    names: list[str] = sorted(architecture.modules)
    return max(names, key=fit)
