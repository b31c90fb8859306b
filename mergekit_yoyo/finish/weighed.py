"""What each input weighed, for the card: from the record of the merge, if there is one."""

import math
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.record.location import places_of
from mergekit_yoyo.record.quantities import Quantity, totals
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.record.statistics import models_of, statistics_of

Weighed = dict[Quantity, dict[str, float]]


def weights_of(merge: Path, merge_yaml: MergeYaml) -> tuple[Weighed, list[str]]:
    """What a card shows of each input, by its name in the YAML, and notes on why there is nothing.

    The record is looked for where the YAML's `report` says: see `places_of`.
    """
    report = (merge_yaml.config.parameters or {}).get("report")
    if not isinstance(report, str):
        return {}, []
    found = next((place for place in places_of(report, merge) if place.is_file()), None)
    if found is None:
        return {}, [f"{report}: no such record: the card does not say what each input weighed"]
    try:
        record = read_record(found)
    except YoyoError as error:
        return {}, [f"the card does not say what each input weighed: {error}"]
    if (
        not set(record.header.inputs) <= {str(model) for model in merge_yaml.inputs}
        or record.missing
    ):
        return {}, [f"{found}: the record of another merge, or of one that did not end: not used"]
    names = models_of(record)
    found_totals = totals(statistics_of(record.tensors, names), len(names))
    return {
        quantity: {n: x for n, x in zip(names, values.tolist(), strict=True) if math.isfinite(x)}
        for quantity, values in found_totals.items()
        if quantity.card
    }, []
