"""The Hub's model-card metadata as a pydantic schema; keys it does not know are left to the user.

Refused is what the Hub's documentation calls malformed. Its lists of licenses and tasks grow: a
word that ours lack is a note, never an error.

Source: the Hub's documentation, "Model Cards" (metadata specification) and "Licenses", and the
task list of huggingface.js.
"""

import re
from typing import Annotated, Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, model_validator

from mergekit_yoyo.errors import nearest

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
"""

_TASKS = """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition
    depth-estimation document-question-answering feature-extraction fill-mask graph-ml
    image-classification image-feature-extraction image-segmentation image-text-to-image
    image-text-to-text image-text-to-video image-to-3d image-to-image image-to-text image-to-video
    keypoint-detection mask-generation multiple-choice object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering
    table-to-text tabular-classification tabular-regression tabular-to-text text-classification
    text-generation text-ranking text-retrieval text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video text2text-generation time-series-forecasting token-classification
    translation unconditional-image-generation video-classification video-text-to-text
    video-to-video visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification zero-shot-image-classification zero-shot-object-detection
"""


def _repo_id(value: str) -> str:
    try:
        validate_repo_id(value)
    except HFValidationError:
        raise ValueError(
            "expected a name on the Hub, `owner/name`, not a path or address"
        ) from None
    return value


def _language(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual", value):
        raise ValueError("expected an ISO 639 code, such as `de` or `pt-BR`")
    return value


def _identifier(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", value):
        raise ValueError("expected an identifier in small letters, such as `apache-2.0`")
    return value


def _stated(value: Any) -> Any:
    if value is None:
        raise ValueError("expected a value for the metric")
    return value


def _reserved_words_quoted(value: Any) -> Any:
    # YAML 1.1 reads a bare `no` (Norwegian) as false.
    if False in (value if isinstance(value, list) else [value]):
        raise ValueError('YAML reads a bare `no` as false: write "no" for Norwegian')
    return value


Text = Annotated[StrictStr, Field(min_length=1)]
RepoId = Annotated[StrictStr, AfterValidator(_repo_id)]
Identifier = Annotated[StrictStr, AfterValidator(_identifier)]
Language = Annotated[StrictStr, AfterValidator(_language)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


class _Typed(_Open):
    """`task` of a `model-index` result."""

    type: Text
    name: Text | None = None


class _Dataset(_Typed):
    name: Text


class _Metric(_Typed):
    value: Annotated[Any, AfterValidator(_stated)]


class _Result(_Open):
    task: _Typed
    dataset: _Dataset
    metrics: list[_Metric] = Field(min_length=1)


class _Evaluated(_Open):
    """One model of `model-index`."""

    name: Text
    results: list[_Result]


class FrontMatter(_Open):
    """Metadata of a model card as the Hub accepts it; unknown keys pass through unchecked."""

    base_model: RepoId | list[RepoId] | None = None
    base_model_relation: Literal["adapter", "finetune", "merge", "quantized"] | None = None
    new_version: RepoId | None = None
    library_name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")] | None = None
    license: Identifier | list[Identifier] | None = None
    license_name: Identifier | None = None
    license_link: Text | None = None
    language: Language | list[Language] | None = None
    pipeline_tag: Identifier | None = None
    tags: Text | list[Text] | None = None
    datasets: RepoId | list[RepoId] | None = None
    metrics: Text | list[Text] | None = None
    thumbnail: Text | None = None
    inference: bool | dict[str, Any] | None = None
    widget: list[dict[str, Any]] | None = None
    co2_eq_emissions: float | dict[str, Any] | None = None
    model_index: list[_Evaluated] | None = Field(None, alias="model-index")

    @model_validator(mode="before")
    @classmethod
    def _languages_are_text(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _reserved_words_quoted(data.get("language"))
        return data

    @model_validator(mode="after")
    def _license_has_a_name(self) -> "FrontMatter":
        if self.license == "other" and not self.license_name:
            raise ValueError("license_name: expected a name, since license is `other`")
        return self

    def unknown_words(self) -> list[str]:
        """A sentence for each license and task that is well-formed and not on our lists."""
        licenses = self.license if isinstance(self.license, list) else [self.license]
        return [
            f"{key}: the Hub had no {word} when this list was made, and may refuse it. "
            f"{nearest(word, known.split())}".rstrip()
            for key, words, known in (
                ("license", licenses, _LICENSES),
                ("pipeline_tag", [self.pipeline_tag], _TASKS),
            )
            for word in words
            if word and word not in known.split()
        ]
