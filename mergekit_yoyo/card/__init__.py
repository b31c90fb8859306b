"""Model cards: marked sections of the body, checked front matter, and what inputs hand on."""

from mergekit_yoyo.card.carrying import Carried, carry, listed
from mergekit_yoyo.card.front_matter import (
    check_card,
    read_card,
    read_metadata,
    update_metadata,
    validate_online,
)
from mergekit_yoyo.card.sections import read_section, write_section
from mergekit_yoyo.card.template import render

__all__ = [
    "Carried",
    "carry",
    "check_card",
    "listed",
    "read_card",
    "read_metadata",
    "read_section",
    "render",
    "update_metadata",
    "validate_online",
    "write_section",
]
