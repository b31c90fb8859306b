"""`yoyo_fusion` in mergekit-yaml on tiny checkpoints: every tensor against the float64 oracle."""

import json
from pathlib import Path

import pytest
import torch
from finish_fixtures import run_mergekit, write_checkpoint, write_tokenizer
from method_fixtures import (
    Tensors,
    assert_is_merge,
    fine_tune,
    recipe,
    shard,
    sliced,
    tensors_of,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer

from mergekit_yoyo.record.reading import read_record

pytestmark = pytest.mark.slow

ABC = ("a", "b", "c")
FOUR = ("base", *ABC)  # an even number: the two kinds of median differ
OPTIONS = {
    "center": "coordinate_median",  # around the other centers lambda is 1, whatever max_scale is
    "rescale": "median",
    "mad_median": "lower",
    "tukey_c": 2.5,
    "max_scale": 1.0,
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYERS = 3
LORA_SCALE = 1.5  # lora_alpha / r


WEIGHTED = """
merge_method: yoyo_fusion
models:
  - {model: ./a, parameters: {weight: [0.5, 1, 2]}}
  - {model: ./b, parameters: {weight: [{filter: self_attn, value: 0}, {value: 3}]}}
  - model: ./c
parameters: {report: ./weighted.jsonl}
dtype: float32
"""


def local(*names: str) -> list[str]:
    return [f"./{name}" for name in names]


def of_layer(layer: int, tensors: Tensors) -> Tensors:
    return {n: t for n, t in tensors.items() if n.startswith(f"model.layers.{layer}.")}


def without(*endings: str):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(endings)}


def wider(tensors: Tensors) -> Tensors:
    """Eight more words in the vocabulary."""
    return {
        name: torch.cat([t, torch.randn(8, t.shape[1])]) if name in (EMBEDDING, HEAD) else t
        for name, t in tensors.items()
    }


def write_lora(folder: Path, tensors: Tensors) -> Tensors:
    """A LoRA of rank 2 on the query projections. Returns what it adds, by tensor name."""
    folder.mkdir()
    torch.manual_seed(99)
    added, stored = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            down, up = torch.randn(2, tensor.shape[1]) / 5, torch.randn(tensor.shape[0], 2) / 5
            module = f"base_model.model.{name.removesuffix('.weight')}"
            stored |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            added[name] = LORA_SCALE * (up @ down)
    save_file(stored, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 2 * LORA_SCALE,
        "target_modules": ["q_proj"],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return added


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fine-tunes of five families, and their merges (`OUT-...`) of one process."""
    root = tmp_path_factory.mktemp("merges")
    published = write_checkpoint(root / "llama", "llama", values={"num_hidden_layers": LAYERS})
    base = fine_tune(published, root / "base", 0, dtype=torch.float32)
    for k, name in enumerate(ABC):
        fine_tune(base, root / name, seed=k + 1, size=0.05 * (k + 1))
        shard(root / name, root / f"{name}-sharded")
    fine_tune(base, root / "wide", 7, change=wider, config={"vocab_size": 72})
    write_tokenizer(root / "wide", 72)
    write_lora(root / "lora", tensors_of(base))

    for family in ("qwen3", "qwen3_moe", "gpt_oss", "glm4_moe"):
        values = {"attention_bias": True} if family == "glm4_moe" else {}
        source = write_checkpoint(root / family, family, values=values)
        lost = {"b": without("k_proj.bias"), "c": without("k_proj.bias", "q_proj.bias")}
        for k, name in enumerate(ABC):
            change = lost.get(name, without()) if family == "glm4_moe" else without()
            fine_tune(source, root / f"{family}-{name}", k, 0.05 * (k + 1), change=change)
    for k, name in enumerate(ABC):
        float32 = fine_tune(root / "qwen3_moe", root / f"moe32-{name}", k, dtype=torch.float32)
        shard(float32, root / f"moe32s-{name}")

    abc, based = local(*ABC), "base_model: ./base\n"
    jobs = {
        "plain": recipe(abc),
        "sharded": recipe(local("a-sharded", "b", "c-sharded")),
        "bfloat16": recipe(abc, "dtype: bfloat16\n"),
        "out_dtype": recipe(abc, "dtype: float32\nout_dtype: bfloat16\n"),
        "options": recipe(local(*FOUR), **OPTIONS),
        "anchor": recipe(abc, based, center="anchor"),
        "anchor-first": recipe(local("base", *ABC), based, center="anchor"),
        "based": recipe(abc, based),
        "filters": recipe(
            abc,
            center=[
                {"filter": "self_attn", "value": "coordinate_median"},
                {"value": "geometric_median"},
            ],
            tukey_c=[2.0, 4.0, 9.0],
        ),
        "weighted": WEIGHTED,
        "slices": sliced([(abc, 0, 1), (["./b"], 1, 2), (abc, 2, 3)], based),
        "slices-anchor": sliced(
            [(["./base", *abc], 0, 1), (["./base"], 1, 2), (["./base", *abc], 2, 3)],
            f"{based}parameters: {{center: anchor}}\n",
        ),
        "lora": recipe([*abc, "./base+./lora"]),
        "union": recipe(local("a", "wide", "c"), "tokenizer: {source: union}\n" + based),
        "moe32": recipe(local(*(f"moe32-{name}" for name in ABC))),
        "moe32-sharded": recipe(local(*(f"moe32s-{name}" for name in ABC))),
        "moe32-packed": recipe(local(*(f"moe32-{name}" for name in ABC)), experts="packed"),
    }
    for family in ("qwen3", "qwen3_moe", "gpt_oss", "glm4_moe"):
        jobs[family] = recipe(local(*(f"{family}-{name}" for name in ABC)))
    failed = run_mergekit(
        {root / f"out-{name}": text for name, text in jobs.items()},
        root,
        ["--lora-merge-cache", "./lora-cache"],
    )
    assert not any(failed.values()), failed
    return root


def inputs_of(place: Path, *names: str) -> list[Tensors]:
    return [tensors_of(place / name) for name in names]


def assert_all_merged(merged: Tensors, inputs: list[Tensors], **options: object) -> None:
    """Every tensor of the merge, and none but the inputs' own."""
    assert set(merged) == set(inputs[0])
    for name, tensor in merged.items():
        assert_is_merge(tensor, [tensors[name] for tensors in inputs], name, **options)


def test_float32_models_merge_as_the_oracle(place: Path) -> None:
    merged = tensors_of(place / "out-plain")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    assert_all_merged(merged, inputs_of(place, *ABC))


def test_sharded_inputs_make_the_same_merge(place: Path) -> None:
    plain, sharded = tensors_of(place / "out-plain"), tensors_of(place / "out-sharded")
    assert set(plain) == set(sharded)
    assert all(torch.equal(plain[name], sharded[name]) for name in plain)


def test_bfloat16_merges_are_rounded_once(place: Path) -> None:
    inputs = inputs_of(place, *ABC)
    rounded = [{n: t.to(torch.bfloat16) for n, t in tensors.items()} for tensors in inputs]
    for out, taken in (("out-bfloat16", rounded), ("out-out_dtype", inputs)):
        merged = tensors_of(place / out)
        assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
        assert_all_merged(merged, taken)


def test_every_option_reaches_every_tensor(place: Path) -> None:
    merged = tensors_of(place / "out-options")
    inputs = inputs_of(place, *FOUR)
    assert_all_merged(merged, inputs, **OPTIONS)
    for dropped in OPTIONS:  # each of them matters here
        kept = {name: value for name, value in OPTIONS.items() if name != dropped}
        with pytest.raises(AssertionError):
            assert_all_merged(merged, inputs, **kept)


def test_base_model_is_an_input_and_the_anchor(place: Path) -> None:
    added, listed = (*ABC, "base"), FOUR
    assert_all_merged(tensors_of(place / "out-based"), inputs_of(place, *added))
    for out, models in (("out-anchor", added), ("out-anchor-first", listed)):
        anchor = models.index("base")
        inputs = inputs_of(place, *models)
        assert_all_merged(tensors_of(place / out), inputs, center="anchor", anchor=anchor)


def test_filters_and_gradients_set_options_by_tensor(place: Path) -> None:
    merged, inputs = tensors_of(place / "out-filters"), inputs_of(place, *ABC)
    tukey_c = {0: 2.0, 1: 4.0, 2: 9.0}
    for name, tensor in merged.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0  # head and norm: t = 0
        center = "coordinate_median" if "self_attn" in name else "geometric_median"
        taken = [tensors[name] for tensors in inputs]
        assert_is_merge(tensor, taken, name, center=center, tukey_c=tukey_c[layer])


def test_weights_of_models_by_filter_and_gradient(place: Path) -> None:
    merged, inputs = tensors_of(place / "out-weighted"), inputs_of(place, *ABC)
    record = read_record(place / "weighted.jsonl")
    lines = {tensor.name: tensor for tensor in record.tensors}
    for name, tensor in merged.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        weights = [(0.5, 1.0, 2.0)[layer], 0.0 if "self_attn" in name else 3.0, 1.0]
        assert_is_merge(tensor, [tensors[name] for tensors in inputs], name, weights=weights)
        kept = [w for w in weights if w]
        given = None if len(set(kept)) == 1 else [w / (sum(kept) / len(kept)) for w in kept]
        assert lines[name].priors == (given and [pytest.approx(given, rel=1e-5)])
        used = ["./a", "./c"] if "self_attn" in name else ["./a", "./b", "./c"]
        assert (lines[name].inputs or record.header.inputs) == used


def test_a_slice_with_one_source_passes_through(place: Path) -> None:
    """Under slices base_model is an input only where a slice names it; here none does."""
    merged, inputs = tensors_of(place / "out-slices"), inputs_of(place, *ABC)
    copied = of_layer(1, inputs[1])
    assert len(copied) == 9
    assert all(torch.equal(merged.pop(name), tensor) for name, tensor in copied.items())
    assert_all_merged(
        merged, [{n: t for n, t in tensors.items() if n in merged} for tensors in inputs]
    )


def test_anchored_slices_copy_where_the_anchor_is_alone(place: Path) -> None:
    merged = tensors_of(place / "out-slices-anchor")
    inputs = inputs_of(place, "base", *ABC)
    assert all(torch.equal(merged.pop(n), t) for n, t in of_layer(1, inputs[0]).items())
    rest = [{n: t for n, t in tensors.items() if n in merged} for tensors in inputs]
    assert_all_merged(merged, rest, center="anchor", anchor=0)


def test_a_lora_is_merged_into_its_model_first(place: Path, tmp_path: Path) -> None:
    base = tensors_of(place / "base")
    added = write_lora(tmp_path / "same", base)
    with_lora = {name: t + added[name] if name in added else t for name, t in base.items()}
    assert len(added) == LAYERS
    assert_all_merged(tensors_of(place / "out-lora"), [*inputs_of(place, *ABC), with_lora])


def test_union_of_vocabularies_is_merged_after_the_union(place: Path) -> None:
    merged = tensors_of(place / "out-union")
    a, wide, c, base = inputs_of(place, "a", "wide", "c", "base")
    assert merged[EMBEDDING].shape == merged[HEAD].shape == (72, 32)
    words, union = (
        Tokenizer.from_file(str(place / model / "tokenizer.json")).get_vocab()
        for model in ("wide", "out-union")
    )
    rows = [words[word] for word in sorted(union, key=lambda word: union[word])]
    for name in (EMBEDDING, HEAD):
        for tensors in (a, c, base):  # words that only one model knows come from it
            tensors[name] = torch.cat([tensors[name], wide[name][64:]])
        for tensors in (a, wide, c, base):
            tensors[name] = tensors[name][rows]
    assert_all_merged(merged, [a, wide, c, base])
    assert json.loads((place / "out-union" / "config.json").read_text())["vocab_size"] == 72


def test_tied_embeddings_stay_tied(place: Path) -> None:
    merged = tensors_of(place / "out-qwen3")
    assert HEAD not in merged
    assert_all_merged(merged, inputs_of(place, *(f"qwen3-{name}" for name in ABC)))


@pytest.mark.parametrize("stored", ["moe32", "moe32-sharded", "qwen3_moe"])
def test_packed_experts_merge_as_the_separate_tensors(place: Path, stored: str) -> None:
    merged = tensors_of(place / f"out-{stored}")
    family = stored.removesuffix("-sharded")
    inputs = inputs_of(place, *(f"{family}-{name}" for name in ABC))
    seen = set()
    for name, tensor in merged.items():
        if ".experts." not in name:
            parts = {name: tensor}
        else:
            prefix, packed = name.rsplit(".", 1)
            pieces = ("gate_proj", "up_proj") if packed == "gate_up_proj" else ("down_proj",)
            parts = {
                f"{prefix}.{expert}.{piece}.weight": rows
                for expert, of_expert in enumerate(tensor)
                for piece, rows in zip(pieces, of_expert.chunk(len(pieces)), strict=True)
            }
        for part, value in parts.items():
            assert_is_merge(value, [tensors[part] for tensors in inputs], part)
        seen |= set(parts)
    assert seen == set(inputs[0])


def test_experts_packed_merges_them_as_one_tensor(place: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stacked = [
        torch.stack(
            [
                torch.cat(
                    [
                        tensors[f"model.layers.1.mlp.experts.{expert}.{piece}_proj.weight"]
                        for piece in ("gate", "up")
                    ]
                )
                for expert in range(4)
            ]
        )
        for tensors in inputs_of(place, *(f"moe32-{name}" for name in ABC))
    ]
    assert_is_merge(tensors_of(place / "out-moe32-packed")[name], stacked)


def test_experts_that_are_packed_by_design_stay_packed(place: Path) -> None:
    inputs = inputs_of(place, *(f"gpt_oss-{name}" for name in ABC))
    assert inputs[0]["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 32, 64)
    assert_all_merged(tensors_of(place / "out-gpt_oss"), inputs)


def test_optional_weights_that_some_models_lack(place: Path) -> None:
    merged = tensors_of(place / "out-glm4_moe")
    a, b, c = inputs_of(place, *(f"glm4_moe-{name}" for name in ABC))
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        key, query, value = (f"{attention}.{piece}_proj.bias" for piece in "kqv")
        assert torch.equal(merged[key], a[key])
        assert_is_merge(merged[query], [a[query], b[query]], query)
        assert_is_merge(merged[value], [a[value], b[value], c[value]], value)
