"""Tiny models of pictures and text with a processor, as mlx-vlm reads them from a folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from families import FAMILIES, HIDDEN, VOCABULARY, Family, write_family
from safetensors.torch import load_file, save_file

_CLIP = {
    "do_center_crop": True,
    "crop_size": {"height": 56, "width": 56},
    "size": {"shortest_edge": 56},
}
_QWEN_WORDS = {
    "<|image_pad|>": 60,
    "<|video_pad|>": 61,
    "<|vision_start|>": 62,
    "<|vision_end|>": 63,
}
_QWEN = {
    "words": _QWEN_WORDS,
    "prompt": "<|vision_start|><|image_pad|><|vision_end|>",
    "preprocessor": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 256,
        "max_pixels": 1024,
    },
}
# the special words of a family's tokenizer, what its prompt has for a picture, its processor's
# files, and what is larger here than in `families`: a picture of several tokens
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "glm4v": {
        "words": {
            "<|image|>": 60,
            "<|video|>": 61,
            "<|begin_of_image|>": 58,
            "<|end_of_image|>": 59,
        },
        "prompt": "<|begin_of_image|><|image|><|end_of_image|>",
        "preprocessor": {
            "image_processor_type": "Glm4vImageProcessor",
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 112, "longest_edge": 15000},
        },
    },
    "gemma3": {
        "words": {"<start_of_image>": 58, "<end_of_image>": 59, "<image_soft_token>": 60},
        "names": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "prompt": "<start_of_image>",
        "preprocessor": {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 56, "width": 56},
        },
        "processor": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        "eyes": {"image_size": 56, "vision_use_head": False},
    },
    "gemma4": {
        "words": {"<|image|>": 60, "<|video|>": 61, "<|audio|>": 62, "<boi>": 58, "<eoi>": 59},
        "names": {
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "audio_token": "<|audio|>",
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
            "boa_token": "w57",
            "eoa_token": "w56",
        },
        "prompt": "<|image|>",
        "processor": {
            "processor_class": "Gemma4Processor",
            "image_processor": {
                "image_processor_type": "Gemma4ImageProcessor",
                "patch_size": 14,
                "max_soft_tokens": 70,
                "pooling_kernel_size": 3,
            },
        },
        "eyes": {"num_key_value_heads": 2},
    },
    "mistral3": {
        "words": {"[IMG]": 60, "[IMG_BREAK]": 61, "[IMG_END]": 62},
        "prompt": "[IMG]",
        "preprocessor": {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 112},
            "patch_size": {"height": 14, "width": 14},
        },
        "processor": {"processor_class": "PixtralProcessor", "image_token": "[IMG]"},
        "eyes": {"image_size": 112, "hidden_act": "silu"},
    },
    "llava": {
        "words": {"<image>": 60},
        "prompt": "<image>",
        "preprocessor": {"image_processor_type": "CLIPImageProcessor", **_CLIP},
        "processor": {
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
        "eyes": {"image_size": 56},
    },
    "paligemma": {
        "words": {"<image>": 60},
        "prompt": "<image>",
        "preprocessor": {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 56, "width": 56},
            "image_seq_length": 16,
        },
        "processor": {"processor_class": "PaliGemmaProcessor"},
        "whole": {"hidden_size": HIDDEN},
        "eyes": {"image_size": 56, "vision_use_head": False},
    },
    "llama4": {
        "words": {"<|image|>": 59, "<|patch|>": 60, "<|image_start|>": 58, "<|image_end|>": 57},
        "prompt": "<|image|>",
        "preprocessor": {
            "image_processor_type": "Llama4ImageProcessor",
            "size": {"height": 28, "width": 28},
        },
        "eyes": {"intermediate_size": 128},
    },
}
_EYES_2_5 = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
QWEN2_5_VL = Family(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    {
        "vision_config": _EYES_2_5,
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_end_token_id": 63,
    },
    text={
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
    },
)


def write_seeing(folder: Path, name: str, *, float32: bool = False, chat: bool = True) -> Path:
    """A tiny bfloat16 model of a family with a processor, and return `folder`.

    float32: the same numbers in float32. chat: whether its tokenizer has a chat template.
    """
    looks = SEEING[name]
    family = QWEN2_5_VL if name == "qwen2_5_vl" else FAMILIES[name]
    eyes = {**family.values["vision_config"], **looks.get("eyes", {})}
    values = {**family.values, **looks.get("whole", {}), "vision_config": eyes}
    known = replace(family, values=values)
    write_family(folder, known)
    if float32:
        file = folder / "model.safetensors"
        save_file({k: v.float() for k, v in load_file(file).items()}, file, {"format": "pt"})
    _write_tokenizer(folder, looks, chat=chat)
    for part in ("preprocessor", "processor"):
        if part in looks:
            (folder / f"{part}_config.json").write_text(json.dumps(looks[part]))
    return folder


def _write_tokenizer(folder: Path, looks: dict[str, Any], *, chat: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    taken = set(looks["words"].values())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **looks["words"]}
    words = ["What", "is", "this", "?"]
    vocabulary |= {word: i for i, word in enumerate(words, 4)}
    vocabulary |= {f"w{i}": i for i in range(8, VOCABULARY) if i not in taken}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(looks["words"]))
    place = looks["prompt"]
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + place + "{% else %} {{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template if chat else None,
        extra_special_tokens=looks.get("names", {}),
    ).save_pretrained(folder)
