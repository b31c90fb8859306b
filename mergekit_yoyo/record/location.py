"""Where the record of a merge lies: its YAML says so, and the merge may have moved meanwhile."""

import re
from contextlib import suppress
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.outside import load_yaml, read_text
from mergekit_yoyo.record.reading import Record, read_record


def places_of(report: str, merge: Path) -> list[Path]:
    """Where to look for the record that a YAML calls `report`: there as seen from here and from the
    folder that the merge is in, and within the merge. In this order, each once."""
    path = Path(report)
    with suppress(RuntimeError):  # the home of nobody
        path = path.expanduser()
    return list(dict.fromkeys([path, merge.parent / path, merge / path.name]))


def record_of(merge: Path, yaml: Path) -> Record:
    """The record of the merge in a folder.

    yaml: the merge's, in that folder.

    Raises:
        YoyoError: there is no YAML, it asks for no record, or that is nowhere or of another merge.
    """
    if not yaml.is_file():
        raise YoyoError(
            f"{merge}: no merge: {yaml.name} is missing, which says where the record is. Give the "
            "record itself, a file of JSON lines."
        )
    text = read_text(yaml)
    found = load_yaml(text, yaml)
    parameters = found.get("parameters") if isinstance(found, dict) else None
    report = parameters.get("report") if isinstance(parameters, dict) else None
    if not isinstance(report, str):
        raise YoyoError(
            f"{yaml}: this merge left no record. `parameters: {{report: FILE}}` in a merge's YAML "
            "makes one."
        )
    places = places_of(report, merge)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        looked = " or ".join(map(str, places))
        raise YoyoError(f"{merge}: its record {report} is not there (looked for {looked}).")
    record = read_record(file)
    if strange := [name for name in record.header.inputs if _path_of(name) not in text]:
        raise YoyoError(
            f"{file}: the record of another merge than {merge}: {', '.join(strange)} is no input "
            f"of {yaml}."
        )
    return record


def _path_of(name: str) -> str:
    """Of a model as mergekit names it, without its revision and adapter."""
    return re.split("[@+]", name, maxsplit=1)[0]
