"""transformers' own model of a checkpoint, with which the mlx model is compared."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.drift import Logits, running


def reference_model(folder: Path, declared: Any) -> Any:
    """The float32 model of a checkpoint.

    Args:
        folder: the checkpoint.
        declared: its config.

    Raises:
        YoyoError: transformers cannot load it.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # the export shows its own
    # A model of images and text has no automatic class here; its config names its own.
    architecture = (declared.architectures or ["AutoModelForCausalLM"])[0]
    model_class = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    try:
        model = model_class.from_pretrained(
            folder, config=declared, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise YoyoError(f"{folder}: transformers cannot load the model: {error}") from None
    return model


def transformers_logits(
    folder: Path, declared: Any, prompts: Sequence[Sequence[int]], context: int | None
) -> Logits:
    """transformers' float32 logits of every position of every prompt: (tokens, vocabulary) each.

    Args:
        folder: the checkpoint.
        declared: its config.
        prompts: token ids.
        context: tokens that the export is meant for; None: the model's own length.

    Raises:
        YoyoError: transformers cannot load or run the model.
    """
    import torch

    model = reference_model(folder, declared)
    # mlx-lm has the language model alone; where that is whole, so has the comparison (Llama 4's
    # own forward pass does not work without pictures)
    language = getattr(model, "language_model", None)
    if hasattr(language, "lm_head"):
        model = language
    # GPT's own would be embedded like words
    typed = hasattr(declared, "vision_config") and (
        "token_type_ids" in inspect.signature(model.forward).parameters
    )
    start = _longrope_start(declared, context)
    logits = []
    with torch.inference_mode(), running("transformers", folder):
        for tokens in prompts:
            inputs = torch.tensor([list(tokens)])
            places = {}
            if typed:  # as its processor writes for text, without which PaliGemma reads otherwise
                places["token_type_ids"] = torch.zeros_like(inputs)
            if start:
                places["position_ids"] = torch.arange(len(tokens))[None] + start
            logits.append(model(inputs, use_cache=False, **places).logits[0].float().numpy())
    return logits


def _longrope_start(declared: Any, context: int | None) -> int:
    """The position from which transformers uses longrope's long factors, as mlx-lm always does.

    Rotary attention depends on distances only, so a prompt moved there shows the same logits.
    """
    rope = getattr(declared.get_text_config(), "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or 0
    limit = context or declared.get_text_config().max_position_embeddings
    return original if rope.get("rope_type") == "longrope" and limit > original else 0
