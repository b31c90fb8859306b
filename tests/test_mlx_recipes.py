"""Recipes and plans without weights: which module gets which bits."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3_moe
from mlx_lm.models import qwen3_5 as qwen3_5_module

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import Recipe, load_recipe, parse_recipe, recipe_names
from mergekit_yoyo.mlx.plan import plan_model


@pytest.fixture(scope="module")
def qwen3_moe_48():
    """Qwen3-30B-A3B as published, bfloat16: 48 layers of 128 experts, nothing of it computed."""
    args = qwen3_moe.ModelArgs(
        model_type="qwen3_moe",
        hidden_size=2048,
        num_hidden_layers=48,
        intermediate_size=6144,
        num_attention_heads=32,
        num_experts=128,
        num_experts_per_tok=8,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=768,
        rms_norm_eps=1e-6,
        vocab_size=151936,
        num_key_value_heads=4,
        head_dim=128,
        rope_theta=1e6,
        tie_word_embeddings=False,
        max_position_embeddings=40960,
        norm_topk_prob=True,
    )
    return _bfloat16(qwen3_moe.Model(args))


def tied_llama(hidden_size=64, intermediate_size=128, layers=6):
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        intermediate_size=intermediate_size,
        num_attention_heads=4,
        rms_norm_eps=1e-6,
        vocab_size=256,
        tie_word_embeddings=True,
    )
    return _bfloat16(llama.Model(args))


def _bfloat16(model):
    model.set_dtype(mx.bfloat16)
    return model


def _bits(plan):
    return {p.path: p.bits for p in plan.placements if p.kind != "other"}


def _written_bytes(model):
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


@pytest.mark.parametrize(
    ("name", "thin", "width"), [("qx86-hi", False, 7.1), ("qx86p4-hi", True, 7.06)]
)
def test_qx86_hi_on_a_48_layer_mixture_of_experts(qwen3_moe_48, name, thin, width):
    plan = plan_model(qwen3_moe_48, parse_recipe(name))
    expected = {"model.embed_tokens": 8, "lm_head": 8}
    for layer in range(48):
        path = f"model.layers.{layer}"
        attention = 8 if layer % 4 == 0 or not thin else 6
        expected |= {f"{path}.self_attn.{name}_proj": attention for name in "qkvo"}
        expected |= {f"{path}.mlp.gate": 8}
        expected |= {f"{path}.mlp.switch_mlp.{name}_proj": 6 for name in ("up", "gate", "down")}
    assert _bits(plan) == expected
    assert {p.group_size for p in plan.placements if p.bits} == {32}
    assert plan.parameters == 30_532_122_624
    assert round(plan.bits_per_weight, 2) == width
    assert plan.notes == []


def qwen3_5(hidden, intermediate, layers, heads, value_heads):
    """A dense Qwen3.5, its weights as shapes only (mlx computes nothing that is not asked for)."""
    args = qwen3_5_module.TextModelArgs(
        model_type="qwen3_5_text",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=248_320,
        linear_num_value_heads=value_heads,
        linear_num_key_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        tie_word_embeddings=False,
    )
    return _bfloat16(qwen3_5_module.TextModel(args))


@pytest.fixture(scope="module")
def qwen3_5_9b():
    """The dimensions are the defaults of transformers' Qwen3_5TextConfig."""
    return qwen3_5(4096, 12_288, 32, 16, 32)


def test_the_published_sizes_of_a_9b_qwen3_5(qwen3_5_9b):
    """q6-hi 14.61 GB at its peak, qx86-hi 15.71, q8-hi 16.86: what they share falls out."""
    low, mixed, high = 14.61, 15.71, 16.86
    q6, qx86, q8 = (
        plan_model(qwen3_5_9b, parse_recipe(name)).bits_per_weight
        for name in ("q6-hi", "qx86-hi", "q8-hi")
    )
    published = q6 + (mixed - low) / (high - low) * (q8 - q6)
    assert qx86 == pytest.approx(published, rel=0.02)
    thin = plan_model(qwen3_5_9b, parse_recipe("qx86p4-hi")).bits_per_weight
    assert thin < 0.97 * published


def test_a_27b_qwen3_5_at_qx64_hi_is_below_what_its_published_size_implies():
    """5.96 by its size, of which nobody published how much is cache and overhead: ours is 4 %
    below, all attention, and a fourth of the layers would be 10 %."""
    model = qwen3_5(5120, 17_408, 64, 24, 48)
    ours, thin = (
        plan_model(model, parse_recipe(name)).bits_per_weight for name in ("qx64-hi", "qx64p4-hi")
    )
    assert ours == pytest.approx(0.96 * 5.96, rel=0.01)
    assert thin == pytest.approx(0.90 * 5.96, rel=0.01)


def test_layers_are_counted_by_kind(qwen3_5_9b):
    """Full attention stands in layers 3, 7, 11, ...: none of it is a multiple of 4."""
    bits = _bits(plan_model(qwen3_5_9b, parse_recipe("qx86p4")))
    high = {path for path, width in bits.items() if width == 8 and "_attn" in path}
    blocks = {(path.split(".")[-2], int(path.split(".")[-3])) for path in high}
    full = {layer for name, layer in blocks if name == "self_attn"}
    linear = {layer for name, layer in blocks if name == "linear_attn"}
    assert full == {3, 19}
    assert linear == {0, 5, 10, 16, 21, 26}


def test_x_raises_the_first_layer_altogether(qwen3_moe_48):
    plain, first = (
        _bits(plan_model(qwen3_moe_48, parse_recipe(name))) for name in ("qx64", "qx64x")
    )
    raised = {path for path, bits in first.items() if bits != plain[path]}
    assert raised == {
        f"model.layers.0.mlp.switch_mlp.{name}_proj" for name in ("up", "gate", "down")
    }
    assert {first[path] for path in raised} == {6}


def test_the_router_is_never_below_what_its_model_class_protects(qwen3_moe_48):
    for name in ("q4", "qx53", "mxfp4", "nvfp4"):
        plan = plan_model(qwen3_moe_48, parse_recipe(name))
        routers = [p for p in plan.placements if p.kind == "router"]
        assert len(routers) == 48
        assert {(p.bits, p.mode) for p in routers} == {(8, "affine")}
        assert any("model class protects it" in note for note in plan.notes)
    lowered = parse_recipe("q8").changed(modules={r"mlp\.gate$": 2})
    plan = plan_model(qwen3_moe_48, lowered)
    assert {p.bits for p in plan.placements if p.kind == "router"} == {8}


def test_a_tied_embedding_is_the_head_and_gets_the_high_width():
    plan = plan_model(tied_llama(), parse_recipe("qx86"))
    expected = {"model.embed_tokens": 8}
    for layer in range(6):
        path = f"model.layers.{layer}"
        expected |= {f"{path}.self_attn.{name}_proj": 8 for name in "qkvo"}
        expected |= {f"{path}.mlp.{name}_proj": 6 for name in ("up", "gate", "down")}
    assert _bits(plan) == expected
    assert plan.rows()[0][:3] == ("embedding = head", "8", "64")


@pytest.mark.parametrize("name", recipe_names())
def test_planned_bytes_are_those_of_the_quantized_model(name):
    model = tied_llama()
    plan = plan_model(model, parse_recipe(name))
    plan.cast(model)
    plan.quantize(model)
    assert _written_bytes(model) == plan.bytes


def test_every_part_of_the_definition_can_be_overridden():
    recipe = parse_recipe("qx86").changed(
        period=3, offset=1, projections=("[vo]_proj",), group_size=32, modules={"down_proj": 3}
    )
    bits = _bits(plan_model(tied_llama(), recipe))
    high = {path for path, width in bits.items() if width == 8}
    assert high == {"model.embed_tokens"} | {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (1, 4) for name in "vo"
    }
    assert {path.rpartition(".")[2] for path, width in bits.items() if width == 3} == {"down_proj"}
    assert recipe.name == "qx86 (changed)"


def test_a_recipe_file_starts_from_a_named_one(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("base: qx64-hi\nperiod: 2\nmodules: {'embed_tokens$': 0}\n")
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert (recipe.bits_low, recipe.bits_high, recipe.group_size, recipe.period) == (4, 6, 32, 2)
    assert _bits(plan_model(tied_llama(), recipe))["model.embed_tokens"] is None


def test_widths_that_the_group_size_does_not_divide_are_told():
    """mlx-lm skips such layers before it asks its predicate, unseen."""
    model = tied_llama(hidden_size=96, intermediate_size=100, layers=1)
    plan = plan_model(model, parse_recipe("q6"))
    groups = {p.path.rpartition(".")[2]: (p.bits, p.group_size) for p in plan.placements}
    assert groups["q_proj"] == groups["embed_tokens"] == (6, 32)
    assert groups["down_proj"] == (None, None)
    assert any("groups of 32: 64 does not divide 96 inputs" in note for note in plan.notes)
    assert any(
        note.startswith("model.layers.0.mlp.down_proj: not quantized: no group size of affine")
        for note in plan.notes
    )
    plan.cast(model)
    plan.quantize(model)
    assert _written_bytes(model) == plan.bytes


def test_config_records_each_module_that_differs_from_the_default():
    quantization = plan_model(tied_llama(), parse_recipe("qx86p4")).quantization()
    assert quantization is not None
    high = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert {key: quantization[key] for key in high} == high | {"bits": 6}
    assert quantization["model.layers.4.self_attn.q_proj"] == high
    assert "model.layers.1.self_attn.q_proj" not in quantization


def test_a_recipe_file_takes_the_names_of_the_options_too(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("base: qx86\nbits: {down_proj: 4}\nprojection: out_proj\nperiod: 2\n")
    recipe = load_recipe(path)
    assert (recipe.modules, recipe.projections, recipe.period) == (
        {"down_proj": 4},
        ("out_proj",),
        2,
    )
    path.write_text("base: qx86\nbits: {down_proj: 4}\nmodules: {up_proj: 4}\n")
    with pytest.raises(YoyoError, match="bits and modules are the same: give one of them"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "nearest"), [("qx87", "qx86"), ("qx68", "qx86"), ("q7", "q8"), ("mxfp6", "mxfp4")]
)
def test_an_unknown_recipe_lists_the_nearest(name, nearest):
    with pytest.raises(
        YoyoError, match=rf"--quant {name}: no such recipe\. Did you mean .*{nearest}"
    ):
        parse_recipe(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: qx86\nperoid: 2\n", r"peroid: no such field\. Did you mean period\?"),
        ("bits_low: 7\nbits_high: 8\n", r"bits: expected one of .*; got 7"),
        ("base: q4\ngroup_size: 48\n", "group_size: expected 32, 64 or 128; got 48"),
        ("base: qx86\nprojections: ['(']\n", r"projections: '\(' is not a regular expression"),
        ("- q4\n", "expected `field: value` lines; got list"),
        ("base: 4\n", "--quant 4: no such recipe"),
    ],
)
def test_a_bad_recipe_file_is_explained(text, message, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    with pytest.raises(YoyoError, match=message):
        load_recipe(path)


def test_there_is_a_name_for_every_pair_of_widths():
    names = recipe_names()
    assert len(names) == len(set(names)) == 12 + 15 * 8 + 3 + 3
    assert all(isinstance(parse_recipe(name), Recipe) for name in names)
