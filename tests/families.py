"""Tiny random models of today's families, with the tensor names and files of the Hub's checkpoints.

transformers makes and saves them; what its classes do not have (multi-token prediction) is added
by hand under the names that published checkpoints use.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from finish_fixtures import write_tokenizer
from safetensors.torch import load_file, save_file

VOCABULARY = 64
HIDDEN = 32
Tensors = dict[str, torch.Tensor]

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_hidden_layers": 3,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
_QWEN_EYES = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
_EYES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
# ids that lie outside of these small vocabularies by default
_IMAGE = {"image_token_id": 60, "video_token_id": 61}
_VISION = {**_IMAGE, "vision_start_token_id": 62, "vision_end_token_id": 63}


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    values: of its configuration. text: those of its text model, for several modalities. older:
    what config.json holds in the spelling of before transformers 5, else transformers 5 wrote it.
    packed: the tensors are saved in transformers 5's layout. dress: what else the Hub's checkpoints
    have. renamed: (pattern, replacement) that gives the Hub's names. mlx: mlx-lm has it.
    """

    model_type: str
    architecture: str
    values: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None
    older: dict[str, Any] | None = None
    packed: bool = False
    dress: Callable[[Tensors], Tensors] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    renamed: tuple[str, str] | None = None
    mlx: bool = True


def _new(like: torch.Tensor) -> torch.Tensor:
    return (torch.randn(like.shape) * 0.2).to(like.dtype)


def _qwen_mtp(prefix: str, layer: int) -> Callable[[Tensors], Tensors]:
    """`mtp.*` beside the model, as Qwen3-Next and Qwen3.5 have it: a layer like the last."""

    def dress(tensors: Tensors) -> Tensors:
        start = f"{prefix}layers.{layer}."
        block = {
            f"mtp.layers.0.{name.removeprefix(start)}": _new(tensor)
            for name, tensor in tensors.items()
            if name.startswith(start)
        }
        norm = tensors[f"{prefix}norm.weight"]
        return {
            **tensors,
            **block,
            "mtp.fc.weight": _new(torch.empty(HIDDEN, 2 * HIDDEN, dtype=norm.dtype)),
            "mtp.norm.weight": _new(norm),
            "mtp.pre_fc_norm_embedding.weight": _new(norm),
            "mtp.pre_fc_norm_hidden.weight": _new(norm),
        }

    return dress


def _layer_mtp(layers: int) -> Callable[[Tensors], Tensors]:
    """A further `model.layers.N`, as DeepSeek-V3 and GLM-4.5 have it."""

    def dress(tensors: Tensors) -> Tensors:
        last, more = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
        block = {
            more + name.removeprefix(last): _new(tensor)
            for name, tensor in tensors.items()
            if name.startswith(last)
        }
        norm, table = tensors["model.norm.weight"], tensors["model.embed_tokens.weight"]
        return {
            **tensors,
            **block,
            f"{more}embed_tokens.weight": table.clone(),
            f"{more}enorm.weight": _new(norm),
            f"{more}hnorm.weight": _new(norm),
            f"{more}eh_proj.weight": _new(torch.empty(HIDDEN, 2 * HIDDEN, dtype=norm.dtype)),
            f"{more}shared_head.norm.weight": _new(norm),
            f"{more}shared_head.head.weight": _new(table),
        }

    return dress


_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
_OLD_ROPE = {"rope_theta": 500000.0, "rope_scaling": None}
_QWEN3_5 = {**_LINEAR, "rope_parameters": {**_M_ROPE, "partial_rotary_factor": 0.5}}
_QWEN3_5_MOE = {**_QWEN3_5, **_MOE, "shared_expert_intermediate_size": 16}
_DEEPSEEK = {**_ROUTED, **_MLA, "num_nextn_predict_layers": 1}

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _ROPE, older=_OLD_ROPE),
    "llama-5": Family("llama", "LlamaForCausalLM", _ROPE, packed=True),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", {**_ROPE, "tie_word_embeddings": True}),
    "qwen3": Family(
        "qwen3", "Qwen3ForCausalLM", {**_ROPE, "tie_word_embeddings": True}, older=_OLD_ROPE
    ),
    "qwen3_moe": Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_ROPE, **_MOE},
        older={**_OLD_ROPE, "num_experts": 4},
    ),
    "qwen3_moe-5": Family("qwen3_moe", "Qwen3MoeForCausalLM", {**_ROPE, **_MOE}, packed=True),
    "qwen3_next": Family(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        {
            **_LINEAR,
            **_MOE,
            "shared_expert_intermediate_size": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        older={
            "rope_theta": 10000000,
            "rope_scaling": None,
            "partial_rotary_factor": 0.25,
            "num_experts": 4,
        },
        dress=_qwen_mtp("model.", 3),
    ),
    "qwen3_5": Family(
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        {"vision_config": _QWEN_EYES, **_VISION},
        text=_QWEN3_5,
        dress=_qwen_mtp("model.language_model.", 3),
        config={"text_config.mtp_num_hidden_layers": 1},
    ),
    "qwen3_5_moe": Family(  # packed, as Qwen publishes it
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        {"vision_config": _QWEN_EYES, **_VISION},
        text=_QWEN3_5_MOE,
        packed=True,
        dress=_qwen_mtp("model.language_model.", 3),
        config={"text_config.mtp_num_hidden_layers": 1},
    ),
    "qwen3_5_moe-experts": Family(
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        {"vision_config": _QWEN_EYES, **_VISION},
        text=_QWEN3_5_MOE,
        dress=_qwen_mtp("model.language_model.", 3),
        config={"text_config.mtp_num_hidden_layers": 1},
    ),
    "qwen3_vl": Family(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        {
            "vision_config": {**_QWEN_EYES, "deepstack_visual_indexes": [0, 1, 2]},
            **_VISION,
        },
        text={"rope_parameters": _M_ROPE},
    ),
    "qwen3_vl_moe": Family(
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        {
            "vision_config": {**_QWEN_EYES, "deepstack_visual_indexes": [0, 1, 2]},
            **_VISION,
        },
        text={"rope_parameters": _M_ROPE, **_MOE},
    ),
    "mistral3": Family(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        {
            "vision_config": {**_EYES, "model_type": "pixtral", "head_dim": 16},
            "image_token_index": 60,
        },
        text={"model_type": "mistral", **_ROPE},
    ),
    "gemma3": Family(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {"vision_config": _EYES, "image_token_index": 60, "mm_tokens_per_image": 4},
        text={"layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True},
        renamed=(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
    ),
    "gemma4": Family(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        {
            "vision_config": {**_EYES, "head_dim": 16, "global_head_dim": 16},
            "audio_config": None,
            "image_token_id": 60,
            "video_token_id": 61,
            "audio_token_id": 62,
            "boi_token_id": 58,
            "eoi_token_id": 59,
            "boa_token_id": 57,
            "eoa_token_index": 56,
        },
        text={
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "tie_word_embeddings": True,
        },
    ),
    "gemma4-moe": Family(
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "tie_word_embeddings": True,
        },
    ),
    "gemma4_text": Family(
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "tie_word_embeddings": True,
        },
    ),
    "glm4_moe": Family(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            **_ROUTED,
            "num_nextn_predict_layers": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        older={
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "partial_rotary_factor": 0.5,
            "n_routed_experts": 4,
        },
        dress=_layer_mtp(3),
    ),
    "glm4v": Family(
        "glm4v",
        "Glm4vForConditionalGeneration",
        {
            "vision_config": {
                **_EYES,
                "depth": 2,
                "num_heads": 2,
                "out_hidden_size": HIDDEN,
                "spatial_merge_size": 2,
            },
            **_IMAGE,
            "image_start_token_id": 58,
            "image_end_token_id": 59,
            "video_start_token_id": 62,
            "video_end_token_id": 63,
        },
        text={"rope_parameters": {**_M_ROPE, "partial_rotary_factor": 1.0}},
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        _DEEPSEEK,
        older={"rope_theta": 10000, "rope_scaling": None, "n_routed_experts": 4},
        dress=_layer_mtp(3),
    ),
    "deepseek_v2": Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {**_ROUTED, **_MLA, "topk_method": "greedy"},
    ),
    "gpt_oss": Family(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "intermediate_size": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        older={
            "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "num_local_experts": 4,
        },
    ),
    "llama4": Family(
        "llama4",
        "Llama4ForConditionalGeneration",
        {
            "vision_config": {
                **_EYES,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
            "image_token_index": 60,
            "boi_token_index": 58,
            "eoi_token_index": 59,
        },
        text={
            "num_hidden_layers": 4,  # mlx-lm has a layer without rope in four
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
    ),
    "ernie4_5_moe": Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "num_hidden_layers": 3,
        },
    ),
    "falcon_h1": Family(
        "falcon_h1",
        "FalconH1ForCausalLM",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "granitemoehybrid": Family(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "granite-4-dense": Family(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 32,
            "layer_types": ["attention", "attention"],
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
    ),
    "kimi_linear": Family(
        "kimi_linear",
        "KimiLinearForCausalLM",
        {
            **_MLA,
            **_MOE,
            "linear_attn_config": {
                "full_attn_layers": [2],  # counted from 1
                "kda_layers": [1],
                "head_dim": 8,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
        },
    ),
    "phi4_multimodal": Family(
        "phi4_multimodal",
        "Phi4MultimodalForCausalLM",
        {
            "vision_config": {**_EYES, "crop_size": 28},
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "nemo_conv_channels": 16,
                "input_size": 16,
                "depthwise_separable_out_channel": 16,
            },
            "tie_word_embeddings": True,
        },
    ),
    "llava": Family(
        "llava",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {**_EYES, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 60,
            "vision_feature_layer": -1,
        },
        text={"model_type": "llama", **_ROPE},
        renamed=(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
    ),
    "paligemma": Family(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        {"vision_config": _EYES, "image_token_index": 60, "projection_dim": HIDDEN},
        text={"model_type": "gemma", "tie_word_embeddings": True},
        renamed=(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
    ),
    # what mergekit's own definitions refuse
    "phi3-tied": Family("phi3", "Phi3ForCausalLM", {**_ROPE, "tie_word_embeddings": True}),
    "cohere": Family(
        "cohere", "CohereForCausalLM", {"use_qk_norm": False, "tie_word_embeddings": True}
    ),
    "gpt_neox": Family("gpt_neox", "GPTNeoXForCausalLM", {"intermediate_size": 64}),
    "falcon-tied": Family(
        "falcon",
        "FalconForCausalLM",
        {
            "tie_word_embeddings": True,
            "new_decoder_architecture": False,
            "multi_query": True,
            "head_dim": None,
        },
    ),
    "whisper": Family(
        "whisper",
        "WhisperForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
            "tie_word_embeddings": True,
        },
        mlx=False,
    ),
    "t5-gated": Family(
        "t5",
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
        mlx=False,
    ),
    "t5-gated-tied": Family(
        "t5",
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
            "tie_word_embeddings": True,
        },
        mlx=False,
    ),
}


def write_family(folder: Path, name: str | Family, seed: int = 0) -> Path:
    """Write a tiny bfloat16 checkpoint of a family as the Hub has it, and return `folder`."""
    import transformers

    family = FAMILIES[name] if isinstance(name, str) else name
    values = dict(family.values)
    if family.text is None:
        values = {**_TEXT, **values}
    else:
        values["text_config"] = {**_TEXT, **family.text}
        values["tie_word_embeddings"] = bool(family.text.get("tie_word_embeddings"))
    values = {key: value for key, value in values.items() if value is not None}
    config = transformers.AutoConfig.for_model(family.model_type, **values)
    torch.manual_seed(seed)
    model = getattr(transformers, family.architecture)(config).to(torch.bfloat16)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            center = tensor.float().mean().round() if "norm" in key else 0.0  # 0 where 1 is added
            tensor.normal_(std=0.2).add_(center)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.data = torch.randn(buffer.shape, dtype=torch.float32)
    model.save_pretrained(folder, save_original_format=not family.packed)
    _dress(folder, family)
    _spell(folder / "config.json", family)
    write_tokenizer(folder)
    return folder


def _dress(folder: Path, family: Family) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if family.dress is not None:
        tensors = family.dress(tensors)
    if family.renamed is not None:
        pattern, replacement = family.renamed
        tensors = {re.sub(pattern, replacement, name): t for name, t in tensors.items()}
    save_file(tensors, file, {"format": "pt"})


def _spell(path: Path, family: Family) -> None:
    config = json.loads(path.read_text())
    for place, value in family.config.items():
        *sections, key = place.split(".")
        section: Any = config
        for part in sections:
            section = section[part]
        section[key] = value
    if family.older is not None:
        for key in ("rope_parameters", "num_local_experts", "num_experts", "n_routed_experts"):
            config.pop(key, None)
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.51.0"
        config |= family.older
    path.write_text(json.dumps(config, indent=2) + "\n")


def names_of(folder: Path) -> set[str]:
    """The tensor names of a checkpoint, read with the safetensors library."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= set(opened.keys())
    return found
