"""Tiny checkpoints as they are published: original tensor layout, older config, all files."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import deserialize

VOCABULARY = 64
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# name -> (config class, model class, values, keys of config.json in the older spelling)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_scaling": None},
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
            "max_window_layers": 2,
        },
        {"rope_theta": 1000000, "rope_scaling": None, "sliding_window": None},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0},
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 3,
            "mlp_only_layers": [],
        },
        {"rope_theta": 10000000.0, "rope_scaling": None, "num_experts": 4},
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        {"rope_theta": 1000000.0, "num_local_experts": 4},
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.5,
            },
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 0,
        },
        {
            "rope_theta": 1000000,
            "rope_scaling": None,
            "partial_rotary_factor": 0.5,
            "n_routed_experts": 4,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "intermediate_size": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {
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
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "sliding_window_pattern": 2,
        },
    ),
}

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_checkpoint(
    folder: Path, family: str, seed: int = 0, values: Mapping[str, Any] | None = None
) -> Path:
    """Write a tiny checkpoint of `family` as its maker would publish it, and return `folder`.

    transformers saves the tensors in the original layout; the config is rewritten in the spelling
    of before transformers 5 (`torch_dtype`, `rope_theta`, the family's own number of experts).
    """
    import torch
    import transformers

    config_class, model_class, family_values, older = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**_SMALL, **family_values, **(values or {})})
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(std=0.2)
            if "norm" in name:
                tensor.add_(1)
        for name, tensor in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                tensor.data = torch.randn(tensor.shape, dtype=torch.float32)
    model.save_pretrained(folder)
    respell(folder / "config.json", older)
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "eos_token_id": [2, 1]})
    )
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\npipeline_tag: text-generation\n---\n# Donor\n"
    )
    return folder


def respell(path: Path, older: Mapping[str, Any]) -> None:
    """Rewrite a config.json of transformers 5 in the spelling of before."""
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "num_local_experts", "num_experts", "n_routed_experts"):
        config.pop(key, None)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    path.write_text(json.dumps({**config, **older}, indent=2) + "\n")


def write_tokenizer(folder: Path, words: int = VOCABULARY) -> None:
    """A word-level tokenizer with a chat template in a file of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {f"w{i}": i for i in range(4, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)


def passthrough(model: Path | str, layers: int, extra: str = "") -> str:
    """A merge YAML that copies one model."""
    return (
        f"merge_method: passthrough\nslices:\n- sources:\n  - model: {model}\n"
        f"    layer_range: [0, {layers}]\n{extra}"
    )


def run_mergekit(
    jobs: Mapping[Path, str], cwd: Path, options: Sequence[str] = ()
) -> dict[Path, str]:
    """Run mergekit-yaml's own command in `cwd` for each output folder and YAML, in one process.

    Importing mergekit costs several seconds, which is why there is one process and not one each.
    `options` go to every run.

    Returns:
        What was raised, by folder: empty where the merge went well.
    """
    script = (
        "import json, sys, traceback\n"
        "from mergekit.scripts.run_yaml import main\n"
        "failed = {}\n"
        "for arguments in json.load(sys.stdin):\n"
        "    try:\n"
        "        main(arguments, standalone_mode=False)\n"
        "    except Exception as error:\n"
        "        failed[arguments[1]] = repr(error)\n"
        "print('RESULT' + json.dumps(failed))\n"
    )
    arguments = []
    for out, text in jobs.items():
        recipe = out.with_suffix(".yml")
        recipe.write_text(text)
        arguments.append((str(recipe), str(out), *options))
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "RESULT" in done.stdout, done.stderr
    failed = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    return {out: failed.get(str(out), "") for out in jobs}


def tensor_bytes(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a checkpoint, to the byte, read with the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in deserialize(file.read_bytes()):
            assert name not in found
            found[name] = (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
    return found


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with the moment of its last change and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
