"""What is measured of a model beside its tasks: written by `evaluate`, read by `scores`.

It stands in a result file under `measured`, beside what lm-eval writes.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

KEY = "measured"

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Amount = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]
_Word = Annotated[str, Field(min_length=1, max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(_Strict):
    """What the weight files hold.

    bytes: of all tensors, scales of a quantization included, headers and other files not.
    parameters: how many numbers that are without quantization, and bits_per_weight: 8 bytes /
    parameters; None where a quantization is stored in a way that is not known here.
    """

    bytes: Annotated[_Count, Field(gt=0)]
    parameters: Annotated[_Count, Field(gt=0)] | None = None
    bits_per_weight: _Amount | None = None


class Run(_Strict):
    """Speed and memory of one sequence, read and then continued.

    device: as it names itself. library: what ran the model. dtype: what it computed in. Speeds are
    tokens a second, the median of several runs. peak_bytes: the most memory while the model was
    loaded and ran; memory: whose: mlx's arrays, the device's, or the process's beyond what it had
    without the model.
    """

    device: _Word
    library: _Word
    dtype: _Word
    prompt_tokens: Annotated[_Count, Field(gt=0)]
    generated_tokens: Annotated[_Count, Field(gt=0)]
    prompt_speed: _Amount
    generation_speed: _Amount
    peak_bytes: _Count
    memory: _Word


class WindowSums(_Strict):
    """Sums over the predicted tokens of one window.

    loss: -log p of each token, in nats. divergence: Kullback-Leibler from the reference, in nats,
    and agreeing: on how many the most likely token is the reference's; None without one.
    """

    tokens: Annotated[_Count, Field(gt=0)]
    loss: _Amount
    # the sum of a rounded divergence can lie a little below zero
    divergence: Annotated[float, Field(ge=-1, allow_inf_nan=False)] | None = None
    agreeing: _Count | None = None


class Reading(_Strict):
    """How a model read one text. tokens_hash: of all windows, so that only readings of the same
    tokens are compared. dtype: what it computed in."""

    tokens_hash: _Word
    dtype: _Word
    windows: Annotated[list[WindowSums], Field(min_length=2, max_length=1_000_000)]


class Reference(_Strict):
    """The model that others are compared with."""

    name: _Word
    fingerprint: _Word


class Measured(_Strict):
    """All that was measured of one model. `setup`: a hash of how, by which a run goes on."""

    weights: Weights
    run: Run
    readings: dict[_Word, Reading]
    against: Reference | None = None
    setup: _Word
