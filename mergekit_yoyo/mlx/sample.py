"""A prompt with a picture, and what transformers' model says to it.

The processor is the one that `mlx_vlm.load` makes, since it is what the export will be used with;
both models get the same arrays from it.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.mlx.drift import running
from mergekit_yoyo.mlx.reference import reference_model

QUESTION = "What is this?"
WIDTH, HEIGHT = 112, 84


def load_processor(folder: Path) -> Any:
    """The processor that mlx-vlm makes of a checkpoint's files.

    Raises:
        YoyoError: there is none, or it takes no pictures.
    """
    from mlx_vlm import utils

    try:
        with _quiet():
            utils.get_model_and_args(utils.load_config(folder))  # which brings its processor along
            processor = utils.load_processor(folder, trust_remote_code=False)
            own = utils.load_image_processor(folder)
    except Exception as error:  # processors of every kind fail in ways of their own
        reason = first_line(error)
        raise YoyoError(f"{folder}: mlx-vlm cannot load its processor: {reason}") from None
    if own is not None:
        processor.image_processor = own
    if getattr(processor, "image_processor", None) is None:
        raise YoyoError(f"{folder}: mlx-vlm finds no processor of pictures in it")
    return processor


def sample_inputs(processor: Any, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What a processor makes of a question about a seeded picture, by the names that models take.

    Args:
        processor: of `load_processor`.
        config: for mlx-vlm.

    Raises:
        YoyoError: the processor fails.
    """
    from mlx_vlm.prompt_utils import apply_chat_template
    from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

    try:
        if getattr(processor, "chat_template", None) or processor.tokenizer.chat_template:
            prompt = apply_chat_template(processor, config, QUESTION, num_images=1)
        else:
            place = getattr(processor, "boi_token", None) or processor.image_token
            prompt = f"{place} {QUESTION}"
        with _quiet():
            made = prepare_inputs(
                processor,
                images=[_picture()],
                prompts=prompt,
                image_token_index=config.get("image_token_index"),
                add_special_tokens=should_add_special_tokens(config["model_type"], processor),
            )
        inputs = {name: _array(value) for name, value in made.items() if value is not None}
    except Exception as error:  # as in `load_processor`
        reason = first_line(error)
        raise YoyoError(f"its processor makes no input of a picture: {reason}") from None
    return inputs


def reference_logits(
    folder: Path, declared: Any, inputs: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """transformers' float32 logits of every position of a prompt with a picture.

    Args:
        folder: the checkpoint.
        declared: its config.
        inputs: of `sample_inputs`; what the model has no parameter for is left aside.

    Raises:
        YoyoError: transformers cannot run the model.
    """
    import torch

    model = reference_model(folder, declared)
    known = inspect.signature(model.forward).parameters
    arrays = {**inputs, **_arranged(folder, inputs)}
    given: dict[str, Any] = {k: torch.from_numpy(v) for k, v in arrays.items() if k in known}
    places = (given["input_ids"] == getattr(declared, "image_token_id", -1)).long()
    given = {k: places for k in ("token_type_ids", "mm_token_type_ids") if k in known} | given
    with torch.inference_mode(), running("transformers", folder):
        return np.asarray(model(**given, use_cache=False).logits[0].float().numpy())


def _arranged(folder: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A picture as transformers' own model takes it, where mlx-vlm's wants another arrangement."""
    from transformers import AutoImageProcessor

    try:
        with _quiet():
            made = AutoImageProcessor.from_pretrained(folder)(_picture(), return_tensors="np")
        arrays = {name: _array(value) for name, value in made.items()}
    except Exception:  # it may need torchvision, which mlx-vlm does without
        return {}
    theirs, ours = arrays.get("pixel_values"), inputs.get("pixel_values")
    same = theirs is None or ours is None or theirs.shape == ours.shape
    return {} if same else arrays


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice to who writes a processor."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _picture() -> Any:
    """Colors that run across the picture, and noise: no two patches are alike."""
    from PIL import Image

    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    ramps = np.stack([255 * x / WIDTH, 255 * y / HEIGHT, 127 + 127 * np.sin(x * y / 500)], axis=-1)
    noise = np.random.default_rng(0).integers(-40, 40, ramps.shape)
    return Image.fromarray((ramps + noise).clip(0, 255).astype(np.uint8))


def _array(value: Any) -> NDArray[Any]:
    array = np.array(value)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)
