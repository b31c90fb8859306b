"""`--rounding`: codes and scales against literal loops in float64; exports as mlx-lm reads them."""

import itertools
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_families import RIGHT, tiny_model
from mlx_lm.utils import load_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import export_model
from mergekit_yoyo.mlx.rounding import DAMPING, Rounded, fed_forward, searched, searched_mxfp4

ROOT = Path(__file__).resolve().parent.parent
EXPERT = ROOT / "examples" / "experts" / "code"
WIDTHS = (2, 3, 4, 5, 6, 8)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def weights(seed: int, rows: int = 6, inputs: int = 128, scale: float = 0.05) -> np.ndarray:
    """As of a layer: Gaussian with some outliers, in bfloat16's values."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((rows, inputs)) * scale
    found[random.random(found.shape) < 0.01] *= 6
    return f64(mx.array(found.astype(np.float32)).astype(mx.bfloat16))


def f64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def read(rounded, bits: int, group: int) -> np.ndarray:
    """scale * code + bias, literally, in float64; as mlx's own arithmetic is checked elsewhere."""
    scales, biases = f64(rounded.scales)[..., None], f64(rounded.biases)[..., None]
    values = np.array(rounded.codes).astype(np.float64) * scales + biases
    return values.reshape(*values.shape[:-2], -1)


def plain(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What mlx's own scales give, with codes as near as they can be."""
    array = mx.array(weight.astype(np.float32)).astype(mx.bfloat16)
    packed, scales, biases = mx.quantize(array, group_size=group, bits=bits)
    stream = np.unpackbits(np.array(packed).view(np.uint8), axis=-1, bitorder="little")
    codes = stream.reshape(*weight.shape, bits) @ (1 << np.arange(bits))
    grouped = codes.reshape(weight.shape[0], -1, group)
    return (grouped * f64(scales)[..., None] + f64(biases)[..., None]).reshape(weight.shape)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_codes_are_those_that_mlx_reads(bits):
    """In float32 mlx's arithmetic is exact to rounding, so that each code is recognized."""
    weight = mx.array(weights(0).astype(np.float32))
    rounded = searched(weight, bits, 64, mx.float32)
    packed = rounded.packed(bits)
    found = mx.dequantize(packed, rounded.scales, rounded.biases, group_size=64, bits=bits)
    np.testing.assert_allclose(f64(found), read(rounded, bits, 64), rtol=1e-6, atol=1e-7)
    own = mx.quantize(weight, group_size=64, bits=bits)[0]
    assert packed.shape == own.shape
    assert packed.dtype == own.dtype


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from(WIDTHS),
    group=st.sampled_from((32, 64)),
    scale=st.sampled_from((1e-4, 0.05, 30.0)),
)
def test_no_group_is_further_than_by_mlx_own_scales(seed, bits, group, scale):
    weight = weights(seed, scale=scale)
    array = mx.array(weight.astype(np.float32)).astype(mx.bfloat16)
    rounded = searched(array, bits, group, mx.bfloat16)
    ours, theirs = (
        np.square(x - weight).reshape(weight.shape[0], -1, group).sum(-1)
        for x in (read(rounded, bits, group), plain(weight, bits, group))
    )
    assert (ours <= theirs * (1 + 1e-5) + 1e-20).all()
    assert rounded.scales.dtype == mx.bfloat16


def test_search_gains_what_it_should():
    """At 3 bits a fifth of the squared error, on Gaussian weights with outliers."""
    weight = weights(1, rows=200)
    array = mx.array(weight.astype(np.float32))
    ours = read(searched(array, 3, 64, mx.bfloat16), 3, 64)
    ratio = np.square(ours - weight).sum() / np.square(plain(weight, 3, 64) - weight).sum()
    assert ratio < 0.8


def test_what_has_no_spread_stays_as_it_is():
    weight = np.zeros((4, 64), np.float32)
    weight[1] = 0.25
    weight[2, 0] = 1.0
    rounded = searched(mx.array(weight), 4, 64, mx.float32)
    np.testing.assert_allclose(read(rounded, 4, 64), weight, atol=1e-6)


def test_what_is_searched_at_once_changes_nothing(monkeypatch):
    weight = mx.array(weights(10).astype(np.float32))
    together = searched(weight, 4, 32, mx.bfloat16)
    monkeypatch.setattr("mergekit_yoyo.mlx.rounding.AT_ONCE", 2 * 128 + 1)
    apart = searched(weight, 4, 32, mx.bfloat16)
    for name in ("codes", "scales", "biases"):
        assert mx.array_equal(getattr(together, name), getattr(apart, name))


def test_importance_is_heeded():
    """Where one input counts a thousand times, its weight is nearly exact."""
    weight = weights(2, rows=50, inputs=64)
    importance = np.ones(64, np.float32)
    importance[7] = 1000.0
    array = mx.array(weight.astype(np.float32))
    ours = read(searched(array, 3, 64, mx.bfloat16, mx.array(importance)), 3, 64)
    alike = read(searched(array, 3, 64, mx.bfloat16), 3, 64)
    assert np.square(ours - weight)[:, 7].sum() < 0.5 * np.square(alike - weight)[:, 7].sum()


def test_mxfp4_takes_the_best_of_three_powers_of_two():
    weight = weights(3)
    array = mx.array(weight.astype(np.float32)).astype(mx.bfloat16)
    rounded = searched_mxfp4(array)
    _, exponents = mx.quantize(array, mode="mxfp4")
    levels = np.array([*E2M1, *(-v for v in E2M1)])
    for row, group in itertools.product(range(weight.shape[0]), range(weight.shape[1] // 32)):
        part = weight[row, group * 32 : group * 32 + 32]
        own = int(np.array(exponents)[row, group])
        errors = {}
        for exponent in (own, own - 1, own + 1):
            scale = 2.0 ** (exponent - 127)
            near = levels[np.abs(part[:, None] / scale - levels).argmin(-1)] * scale
            errors[exponent] = np.square(near - part).sum()
        codes = np.array(rounded.codes)[row, group]
        chosen = int(np.array(rounded.scales)[row, group])
        found = np.square(levels[codes] * 2.0 ** (chosen - 127) - part).sum()
        assert found == pytest.approx(min(errors.values()), rel=1e-9)
    read_by_mlx = mx.dequantize(rounded.packed(4), rounded.scales, mode="mxfp4")
    scales = 2.0 ** (np.array(rounded.scales).astype(float) - 127)
    expected = levels[np.array(rounded.codes)] * scales[..., None]
    np.testing.assert_array_equal(f64(read_by_mlx), expected.reshape(weight.shape))


def literal_gptq(weight, moments, bits, group, scales, biases):
    """GPTQ (arXiv 2210.17323, algorithm 1), a column at a time, in float64."""
    weight, damped = weight.copy(), moments.astype(np.float64).copy()
    damped += DAMPING * np.diag(damped).mean() * np.eye(len(damped))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    codes = np.empty_like(weight)
    for k in range(weight.shape[1]):
        scale, bias = scales[:, k // group], biases[:, k // group]
        codes[:, k] = np.clip(np.rint((weight[:, k] - bias) / scale), 0, 2**bits - 1)
        error = (weight[:, k] - (scale * codes[:, k] + bias)) / upper[k, k]
        weight[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    return codes


@pytest.fixture(scope="module")
def inputs():
    """Correlated, of 128 numbers."""
    random = np.random.default_rng(4)
    return random.standard_normal((600, 128)) @ (
        np.eye(128) + 0.6 * random.standard_normal((128, 128)) / 128**0.5
    )


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_errors_are_fed_forward_as_gptq_has_it(bits, inputs):
    """With the scales that were found, the codes are those of the literal algorithm, but where a
    weight lies so near the middle of two that float32 decides."""
    weight = weights(5)
    moments = (inputs.T @ inputs).astype(np.float32)
    array = mx.array(weight.astype(np.float32))
    rounded = fed_forward(array, bits, 64, mx.float32, moments)
    codes = literal_gptq(weight, moments, bits, 64, f64(rounded.scales), f64(rounded.biases))
    same = np.array(rounded.codes).reshape(weight.shape) == codes
    assert same[:, :64].mean() > 0.999
    assert same.mean() > 0.98  # one code that differs turns those after it in its row
    off = {
        name: np.square(inputs @ (x - weight).T).sum()
        for name, x in {
            "fed": read(rounded, bits, 64),
            "searched": read(searched(array, bits, 64, mx.float32), bits, 64),
        }.items()
    }
    assert off["fed"] < 0.8 * off["searched"]


def test_inputs_that_never_come_do_no_harm():
    weight = weights(6)
    rounded = fed_forward(
        mx.array(weight.astype(np.float32)), 4, 64, mx.float32, np.zeros((128, 128), np.float32)
    )
    plainly = searched(mx.array(weight.astype(np.float32)), 4, 64, mx.float32)
    assert np.array_equal(np.array(rounded.codes), np.array(plainly.codes))


def test_each_of_stacked_experts_is_rounded_as_if_alone(inputs):
    stacked = np.stack([weights(seed) for seed in (7, 8, 9)]).astype(np.float32)
    moments = (inputs.T @ inputs).astype(np.float32)
    together = fed_forward(mx.array(stacked), 4, 64, mx.bfloat16, moments)
    assert together.packed(4).shape == mx.quantize(mx.array(stacked), 64, 4)[0].shape
    for k, weight in enumerate(stacked):
        alone = fed_forward(mx.array(weight), 4, 64, mx.bfloat16, moments)
        found = Rounded(together.codes[k], together.scales[k], together.biases[k])
        same = read(found, 4, 64) == read(alone, 4, 64)
        assert same.mean() > 0.98  # products of other shapes differ in the last bit


# --- exports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "rounding"), [("q3", "search"), ("mxfp4", "search")])
def test_an_export_holds_what_was_searched(recipe, rounding, tmp_path):
    made = export_model(EXPERT, tmp_path / "out", recipe, rounding=rounding)
    own = export_model(EXPERT, tmp_path / "own", recipe, verify=False)
    whole = mx.load(str(EXPERT / "model.safetensors"))
    model, _ = load_model(made.folder)
    other, _ = load_model(own.folder)
    modules, others = dict(model.named_modules()), dict(other.named_modules())
    for placement in made.plan.placements:
        if placement.bits is None:
            continue
        array = whole[f"{placement.path}.weight"]
        rounded = (
            searched_mxfp4(array)
            if recipe == "mxfp4"
            else searched(array, placement.bits, placement.group_size, array.dtype)
        )
        stored = modules[placement.path]
        assert mx.array_equal(stored.weight, rounded.packed(placement.bits))
        assert mx.array_equal(stored.scales, rounded.scales)
        assert rounded.biases is None or mx.array_equal(stored.biases, rounded.biases)
        weight = f64(array)
        errors = []
        for module in (modules[placement.path], others[placement.path]):
            parts = (module.weight, module.scales, module.get("biases"))
            values = mx.dequantize(*parts, module.group_size, module.bits, module.mode)
            errors.append(np.square(f64(values) - weight).sum())
        assert errors[0] < errors[1]
    assert made.plan.bytes == own.plan.bytes


def test_feedback_is_nearer_on_text_and_says_so(tmp_path):
    (tmp_path / "code.txt").write_bytes((ROOT / "examples/held_out/code.txt").read_bytes()[:2100])
    texts = {"code": tmp_path / "code.txt"}
    made = export_model(
        EXPERT, tmp_path / "fed", "q3", rounding="feedback", texts=texts, verify=False
    )
    own = export_model(EXPERT, tmp_path / "own", "q3", verify=False)
    text = (ROOT / "examples/held_out/code.txt").read_bytes()[4000:4700]
    tokens = mx.array([list(text)])
    whole, _ = load_model(EXPERT)
    expected, *found = (
        np.array(m(tokens)[0].astype(mx.float32)).astype(np.float64)
        for m in (whole, load_model(made.folder)[0], load_model(own.folder)[0])
    )
    shifted = [np.exp(x - x.max(-1, keepdims=True)) for x in (expected, *found)]
    p, fed, plainly = (x / x.sum(-1, keepdims=True) for x in shifted)
    kl = [(p * np.log(p / q)).sum(-1).mean() for q in (fed, plainly)]
    assert kl[0] < 0.8 * kl[1]
    notes = " ".join(made.notes)
    assert "scales by search alone" in notes
    assert "model.embed_tokens" in notes
    assert "on text kept apart, nats per token: code " in notes


@pytest.mark.parametrize("latents", [32, 64])
def test_feedback_leaves_what_is_multiplied_by_its_columns_to_the_search(latents, tmp_path):
    """`embed_q` of latent attention: its inputs are of its outputs' size, here as in the models.

    With stacked experts beside it, which are fed forward: the note does not name them.
    """
    spec = RIGHT["deepseek_v3"] | {"kv_lora_rank": latents, "qk_nope_head_dim": 32}
    tiny_model(spec, tmp_path / "source", original_layout=False)
    text = tmp_path / "code.txt"
    text.write_bytes((ROOT / "examples/held_out/code.txt").read_bytes()[:1100])
    texts = {"code": text}
    fed, searched_alone = (
        export_model(tmp_path / "source", tmp_path / how, "q4-hi", rounding=how, texts=given)
        for how, given in (("feedback", texts), ("search", {}))
    )
    note = next(note for note in fed.notes if note.startswith("scales by search alone"))
    assert "self_attn.embed_q" in note
    assert "switch_mlp" not in note
    ours, theirs = (dict(load_model(x.folder)[0].named_modules()) for x in (fed, searched_alone))
    path = "model.layers.1.self_attn.embed_q"
    assert mx.array_equal(ours[path].weight, theirs[path].weight)
    path = "model.layers.1.mlp.switch_mlp.down_proj"
    assert not mx.array_equal(ours[path].weight, theirs[path].weight)


@pytest.mark.parametrize(
    ("recipe", "rounding", "message"),
    [
        ("bf16", "search", "bf16 quantizes nothing"),
        ("mxfp8", "search", "mxfp8 is rounded as mlx does it"),
        ("mxfp4", "feedback", "it is for affine recipes"),
    ],
)
def test_a_rounding_without_effect_is_refused(recipe, rounding, message, tmp_path):
    with pytest.raises(YoyoError, match=message):
        export_model(EXPERT, tmp_path / "out", recipe, rounding=rounding)
    assert list(tmp_path.iterdir()) == []
