"""Tiny models of the families that transformers and mlx-lm share: the parity matrix.

`RIGHT`: configs that must export with transformers' logits. `REFUSED`: configs that mlx-lm cannot
express or implements otherwise, with a pattern for the reason that the user must be given.
"""

from pathlib import Path

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 50000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 20000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _family(model_type, **changes):
    return SMALL | {"model_type": model_type} | changes


def _theta(value, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value, **more}}


RIGHT = {
    "llama-theta": _family("llama", **_theta(500000.0)),
    "llama-llama3": _family("llama", rope_parameters=LLAMA3),
    "llama-tied": _family("llama", tie_word_embeddings=True, **_theta(77000.0)),
    "llama-linear": _family(
        "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "mistral": _family("mistral", sliding_window=None, head_dim=32, **_theta(1e6)),
    "qwen2": _family("qwen2", **_theta(33000.0)),
    "qwen3": _family("qwen3", head_dim=32, **_theta(33000.0)),
    "qwen3-yarn": _family("qwen3", head_dim=32, rope_parameters=YARN),
    "qwen3_moe": _family("qwen3_moe", head_dim=32, **MOE, **_theta(33000.0)),
    "qwen2_moe": _family("qwen2_moe", shared_expert_intermediate_size=48, **MOE, **_theta(33000.0)),
    "mixtral": _family(
        "mixtral",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        **_theta(33000.0),
    ),
    "gemma": _family("gemma", head_dim=32, tie_word_embeddings=True, **_theta(33000.0)),
    "gemma2": _family(
        "gemma2",
        head_dim=32,
        tie_word_embeddings=True,
        num_hidden_layers=4,
        sliding_window=512,
        query_pre_attn_scalar=24,
        **_theta(33000.0),
    ),
    "gemma3_text": _family(
        "gemma3_text",
        head_dim=32,
        tie_word_embeddings=True,
        num_hidden_layers=8,
        sliding_window=8,
        sliding_window_pattern=4,
        query_pre_attn_scalar=24,
    ),
    "gemma3_text-linear": _family(
        "gemma3_text",
        head_dim=32,
        tie_word_embeddings=True,
        num_hidden_layers=8,
        sliding_window=64,
        sliding_window_pattern=3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "phi3": _family("phi3", **_theta(33000.0, partial_rotary_factor=0.5)),
    "phi3-longrope": _family(
        "phi3", original_max_position_embeddings=128, rope_parameters=LONGROPE
    ),
    "olmo2": _family("olmo2", **_theta(33000.0)),
    "olmo3": _family("olmo3", num_hidden_layers=8, sliding_window=8, **_theta(33000.0)),
    "gpt_oss": _family(
        "gpt_oss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=4,
        sliding_window=8,
        rope_parameters=YARN | {"truncate": True},
    ),
    "glm4_moe": _family(
        "glm4_moe",
        head_dim=32,
        num_hidden_layers=3,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
        **_theta(33000.0, partial_rotary_factor=0.5),
    ),
    "glm4": _family("glm4", head_dim=16, **_theta(33000.0, partial_rotary_factor=0.5)),
    "cohere": _family("cohere", tie_word_embeddings=True, **_theta(33000.0)),
    "cohere2": _family(
        "cohere2",
        tie_word_embeddings=True,
        num_hidden_layers=6,
        sliding_window=8,
        sliding_window_pattern=3,
        **_theta(33000.0),
    ),
    "granite": _family(
        "granite",
        embedding_multiplier=2.0,
        logits_scaling=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        **_theta(33000.0),
    ),
    "granitemoe": _family(
        "granitemoe", num_local_experts=4, num_experts_per_tok=2, **_theta(33000.0)
    ),
    "granitemoehybrid": _family(
        "granitemoehybrid",
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=48,
        position_embedding_type="rope",
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_d_state=16,
    ),
    "stablelm": _family("stablelm", **_theta(33000.0, partial_rotary_factor=0.5)),
    "starcoder2": _family("starcoder2", sliding_window=None, **_theta(33000.0)),
    "phi": _family("phi", **_theta(33000.0, partial_rotary_factor=0.5)),
    "phimoe": _family(
        "phimoe",
        attention_bias=True,
        lm_head_bias=True,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        **_theta(33000.0),
    ),
    "gpt_bigcode": _family(
        "gpt_bigcode",
        n_inner=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        tie_word_embeddings=True,
    ),
    "nemotron": _family("nemotron", **_theta(33000.0, partial_rotary_factor=0.5)),
    "helium": _family("helium", head_dim=16, **_theta(33000.0)),
    "olmoe": _family("olmoe", num_experts=4, num_experts_per_tok=2, **_theta(33000.0)),
    "exaone4": _family(
        "exaone4",
        num_hidden_layers=4,
        sliding_window=8,
        sliding_window_pattern=4,
        head_dim=16,
        **_theta(33000.0),
    ),
    "ernie4_5": _family("ernie4_5", head_dim=16, **_theta(33000.0)),
    "hunyuan_v1_dense": _family("hunyuan_v1_dense", head_dim=16, **_theta(33000.0)),
    "smollm3": _family("smollm3", num_hidden_layers=4, no_rope_layer_interval=2, **_theta(33000.0)),
    "seed_oss": _family("seed_oss", head_dim=16, **_theta(33000.0)),
    "apertus": _family("apertus", mlp_bias=False, **_theta(33000.0)),
    "dots1": _family(
        "dots1",
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        head_dim=16,
        **_theta(33000.0),
    ),
    "deepseek_v3": _family(
        "deepseek_v3",
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_group=1,
        topk_group=1,
        num_hidden_layers=3,
        **_theta(33000.0),
    ),
    "lfm2": _family(
        "lfm2",
        tie_word_embeddings=True,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        block_dim=64,
    ),
    "mamba": _family("mamba", state_size=8),
    "ministral3": _family("ministral3", head_dim=16, sliding_window=None),
    "qwen3_next": _family(
        "qwen3_next",
        head_dim=32,
        num_hidden_layers=4,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        shared_expert_intermediate_size=32,
        **MOE,
    ),
    "gemma4_text": _family(
        "gemma4_text",
        head_dim=16,
        global_head_dim=32,
        num_hidden_layers=6,
        sliding_window=8,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=128,
        tie_word_embeddings=True,
    ),
    "falcon_h1": _family(
        "falcon_h1", mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, head_dim=16
    ),
}

REFUSED = {
    "mistral-window": (
        _family("mistral", sliding_window=8, **_theta(1e6)),
        r"window of 8 tokens.*--max-context 8",
    ),
    "qwen2-window": (
        _family("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
        r"window of 8 tokens",
    ),
    "gemma2-window": (
        _family(
            "gemma2",
            head_dim=32,
            tie_word_embeddings=True,
            num_hidden_layers=4,
            sliding_window=64,
            **_theta(33000.0),
        ),
        r"window of 64 tokens",
    ),
    "qwen3_moe-yarn": (
        _family("qwen3_moe", head_dim=32, **MOE, rope_parameters=YARN),
        r"rope scaling 'yarn'",
    ),
    "gpt_oss-untruncated": (
        _family(
            "gpt_oss",
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            num_hidden_layers=4,
            sliding_window=8,
            rope_parameters=YARN | {"truncate": False},
        ),
        r"yarn without truncation",
    ),
    "glm": (
        _family("glm", head_dim=16, **_theta(33000.0, partial_rotary_factor=0.5)),
        r"rotary factor of 0.5",
    ),
    "olmo": (_family("olmo", **_theta(33000.0)), r"olmo model cannot be imported"),
    "ernie4_5_moe": (
        _family(
            "ernie4_5_moe",
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            **_theta(33000.0),
        ),
        r"does not compute what transformers computes",
    ),
    "jamba": (
        _family(
            "jamba",
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
            mamba_d_state=8,
        ),
        r"does not compute what transformers computes",
    ),
    "nanochat": (_family("nanochat"), r"does not take this checkpoint"),
    "gpt2": (
        _family("gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=512, tie_word_embeddings=True),
        r"does not take this checkpoint",
    ),
    "minimax": (
        _family(
            "minimax",
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=16,
            layer_types=["linear_attention", "full_attention"],
        ),
        r"needs .*rotary_dim",
    ),
}

PICTURES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WITH_PICTURES = {
    "gemma3": {
        "model_type": "gemma3",
        "vision_config": PICTURES,
        "text_config": SMALL
        | {
            "head_dim": 32,
            "num_hidden_layers": 6,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
            "tie_word_embeddings": True,
        },
    },
    "qwen3_vl": {"model_type": "qwen3_vl", "vision_config": PICTURES, "text_config": SMALL},
}


def tiny_model(spec, folder: Path, *, original_layout: bool, dtype="float32"):
    """A seeded random model of `spec`, saved to `folder` with a byte-level tokenizer.

    Weights are scaled so that logits are of the order of 1 and depend on every part.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    spec = dict(spec)
    config = AutoConfig.for_model(spec.pop("model_type"), **spec)
    torch.manual_seed(1)
    pictures = "vision_config" in spec
    model_class = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    model = model_class.from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(values / parameter.shape[-1] ** 0.5)
            elif "norm" in name:
                parameter.add_(values * 0.1)
            else:
                parameter.copy_(values * 0.1)
    model.save_pretrained(folder, save_original_format=original_layout)
    tiny_tokenizer().save_pretrained(folder)
    return model


def tiny_tokenizer():
    """One token per byte below 127, and an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:127]
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"<eos>": 127}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
