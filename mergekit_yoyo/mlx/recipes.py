"""Quantization recipes as data: a name such as `qx86-hi` is parsed into a `Recipe`, nothing else.

The `qx` ("Deckard") recipes as published: data at the low width; embeddings and head at the high
one; selected attention paths too; `x` also the first layer; `hi` means groups of 32 instead of 64.
Which paths, no published list says, and the prose ("every four layers") reads thinner than the
published sizes are: of a 9 B Qwen3.5, q6-hi takes 14.61 GB, qx86-hi 15.71 and q8-hi 16.86, so that
49 % of its weights stand at the high width. Embeddings, head and all attention (that of linear
layers too) are 46 %, and a fourth of the layers 29 %. So `qxHL` is all attention, with the routers
of mixtures of experts; `qxHLp4` is the thinner form, every fourth layer of its kind. Every one of
these is a field of `Recipe`.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mergekit_yoyo.errors import YoyoError, explain_invalid, nearest
from mergekit_yoyo.outside import load_yaml, read_text

AFFINE_WIDTHS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (128, 64, 32)
# mode -> (bits, group size): these formats have one of each.
FLOAT_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Dtype = Literal["bfloat16", "float16", "float32"]
OPTIONS = {"bits": "modules", "projection": "projections"}  # what the command calls the fields


class Recipe(BaseModel):
    """Which width each module gets. `bits_low` None means: not quantized.

    Attributes:
        name: as given by the user, and as written in the card.
        mode: mlx's quantization mode.
        bits_low: width of the data: everything that no other field names.
        bits_high: width of embeddings, head, routers and selected attention paths.
        group_size: weights that share a scale.
        period: attention paths are at the high width in every `period`-th layer of their kind
            (full attention and linear attention are counted apart); 0: in none.
        offset: the first such layer of a kind, from 0.
        projections: regular expressions for the last part of a module path inside an attention
            block: which projections are attention paths.
        first_layers: so many layers from the first are at the high width altogether.
        modules: bits by module path (regular expression, the last match counts); 0: not quantized.
        dtype: of what stays unquantized; None: as the checkpoint has it.
        origin: how the widths were found, if they were measured; for the card.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mode: Literal["affine", "mxfp4", "mxfp8", "nvfp4"] = "affine"
    bits_low: int | None = None
    bits_high: int | None = None
    group_size: int = 64
    period: int = Field(default=1, ge=0)
    offset: int = Field(default=0, ge=0)
    projections: tuple[str, ...] = (".*",)
    first_layers: int = Field(default=0, ge=0)
    modules: dict[str, int] = Field(default_factory=dict)
    dtype: Dtype | None = None
    origin: str = ""

    @field_validator("projections", "modules")
    @classmethod
    def _patterns_compile(cls, value: Any) -> Any:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _widths_exist(self) -> Self:
        if self.mode in FLOAT_MODES:
            bits, group_size = FLOAT_MODES[self.mode]
            if (self.bits_low, self.bits_high, self.group_size) != (bits, bits, group_size):
                raise ValueError(f"{self.mode} has {bits} bits in groups of {group_size} only")
        elif self.group_size not in AFFINE_GROUP_SIZES:
            raise ValueError(f"group_size: expected 32, 64 or 128; got {self.group_size}")
        for width in (self.bits_low, self.bits_high, *self.modules.values()):
            if width and width not in AFFINE_WIDTHS:
                raise ValueError(f"bits: expected one of {AFFINE_WIDTHS}; got {width}")
        if (self.bits_low is None) != (self.bits_high is None):
            raise ValueError("expected bits_low and bits_high, or neither")
        return self

    @property
    def quantizes(self) -> bool:
        """Whether any module becomes narrower than a float."""
        return self.bits_low is not None or any(self.modules.values())

    def changed(self, **changes: Any) -> "Recipe":
        """This recipe with fields replaced, checked again; its name tells that it was changed.

        Raises:
            YoyoError: a field is unknown or its value is not possible.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        data = self.model_dump()
        if all(data.get(key, ...) == value for key, value in changes.items()):
            return self
        if "modules" in changes:
            changes["modules"] = {**self.modules, **changes["modules"]}
        name = self.name if self.name.endswith(" (changed)") else f"{self.name} (changed)"
        return _validated({**data, "name": name, **changes}, f"recipe {self.name}")


def parse_recipe(name: str) -> Recipe:
    """The recipe that `name` spells: `qxHL[pN][x][-hi]`, `qB[-hi]`, a float mode, or a dtype.

    Raises:
        YoyoError: no such recipe; the nearest ones are listed.
    """
    if name in DTYPES:
        return Recipe.model_validate({"name": name, "dtype": DTYPES[name]})
    if name in FLOAT_MODES:
        bits, group_size = FLOAT_MODES[name]
        widths = {"bits_low": bits, "bits_high": bits, "group_size": group_size, "period": 0}
        return Recipe.model_validate({"name": name, "mode": name, **widths})
    match = re.fullmatch(r"q(?:x([2-8])([2-8])(?:p([2-9]))?(x?)|([2-8]))(-hi)?", name)
    widths_exist = match and re.sub(r"p\d", "", name) in recipe_names()
    if match and widths_exist:
        high, low, period, first, plain, hi = match.groups()
        return Recipe(
            name=name,
            bits_low=int(plain or low),
            bits_high=int(plain or high),
            group_size=32 if hi else 64,
            period=0 if plain else int(period or 1),
            first_layers=1 if first else 0,
        )
    problem = f"--quant {name}: no such recipe. {nearest(name, recipe_names())}".rstrip()
    raise YoyoError(
        f"{problem} Recipes are qxHL[pN][x][-hi] with widths H > L of 2 3 4 5 6 8 (pN: attention "
        "at H in every Nth layer of its kind), qB[-hi], mxfp4, mxfp8, nvfp4, bf16, fp16, fp32; "
        "--list shows them all."
    )


def recipe_names() -> list[str]:
    """Every recipe that has a name, from the smallest to the largest by its low width."""
    names = [f"q{bits}{hi}" for bits in AFFINE_WIDTHS for hi in ("", "-hi")]
    for low, high in itertools.combinations(AFFINE_WIDTHS, 2):
        names += [
            f"qx{high}{low}{thin}{first}{hi}"
            for thin in ("p4", "")
            for first in ("", "x")
            for hi in ("", "-hi")
        ]
    return [*names, *FLOAT_MODES, *DTYPES]


def load_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file: fields of `Recipe`, on top of the named one in `base` if given.

    `bits` and `projection`, as the options are called, will do for `modules` and `projections`.

    Raises:
        YoyoError: the file is missing, is no such mapping, or has an impossible value.
    """
    data = load_yaml(read_text(path), path)
    if not isinstance(data, Mapping):
        raise YoyoError(f"{path}: expected `field: value` lines; got {type(data).__name__}.")
    base = parse_recipe(str(data["base"])).model_dump() if "base" in data else {}
    fields = {key: value for key, value in data.items() if key != "base"}
    for option, field in OPTIONS.items():
        if option in fields and field in fields:
            raise YoyoError(f"{path}: {option} and {field} are the same: give one of them.")
        if option in fields:
            fields[field] = fields.pop(option)
    if isinstance(fields.get("projections"), str):
        fields["projections"] = [fields["projections"]]
    return _validated({**base, "name": path.stem, **fields}, str(path))


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as a file that `load_recipe` reads."""
    data = recipe.model_dump(exclude_defaults=True, mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _validated(data: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = explain_invalid(error, data, Recipe.model_fields)
        raise YoyoError(f"{where}: {problems.rstrip('.')}.") from None
