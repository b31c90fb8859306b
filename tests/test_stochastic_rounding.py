"""`rounding: stochastic` against literal rounding, number by number, and the odds it must keep."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finish_fixtures import write_checkpoint
from merging_fixtures import merge
from method_fixtures import fine_tune, mergekit, recipe, tensors_of
from recall_reference import recall
from reference import yoyo_fusion
from tensors import fine_tunes, same_bits

from mergekit_yoyo import fuse, read_record, summarize
from mergekit_yoyo.algorithm import rounding, spaces, streaming
from mergekit_yoyo.cli import main

ABC = ("a", "b", "c")
DRAWS = 200
FLOAT32 = "rounding: stochastic has no effect on tensors merged in float32"
BITS = {torch.bfloat16: 8, torch.float16: 11}  # of the significand
LEAST = {torch.bfloat16: -126, torch.float16: -14}  # exponent of the least normal number


def halves(count, size, dtype=torch.bfloat16, seed=3):
    return [x.to(dtype) for x in fine_tunes(count, 1e-2, size, seed=seed)]


def arrays(tensors):
    return [x.double().numpy() for x in tensors]


def drawn(tensors, **options):
    """[N, ...] merges, each with a draw of its own."""
    names = (f"draw {n}" for n in range(DRAWS))
    return torch.stack(
        [fuse(tensors, rounding="stochastic", name=name, **options).tensor for name in names]
    )


def neighbors(exact, dtype):
    """The numbers of the dtype at and below, and at and above float64 ones, and how far up from
    the lower to the upper, 0 to 1."""
    exponents = np.floor(np.log2(np.abs(np.where(exact == 0, 1.0, exact))))
    steps = 2.0 ** (np.maximum(exponents, LEAST[dtype]) - BITS[dtype] + 1)
    lower, upper = np.floor(exact / steps) * steps, np.ceil(exact / steps) * steps
    return lower, upper, exact / steps - np.floor(exact / steps)


def check_odds(draws, exact, dtype):
    """draws: [N, ...] roundings of one tensor, each with other odds. Only neighbors are drawn; each
    as often as it is near, element by element and on average over all."""
    lower, upper, up = neighbors(exact, dtype)
    taken = draws.double().numpy()
    assert ((taken == lower) | (taken == upper)).all()
    between = lower != upper
    off = ((taken == upper).mean(0) - up)[between]
    odds = up[between] * (1 - up[between])
    # float32 and 13 or 16 bits: what is less likely than that is hardly ever drawn
    assert (np.abs(off) < 5.5 * np.sqrt(odds / len(draws)) + 2**-10).all()
    assert np.abs(off.mean()) < 4 * np.sqrt(odds.sum() / len(draws)) / between.sum() + 2**-14


@pytest.mark.parametrize("dtype", list(BITS))
@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median", "anchor"])
def test_either_neighbor_as_often_as_it_is_near(center, dtype):
    tensors = halves(3, (10, 12), dtype)
    options = {"center": center, "anchor": 0 if center == "anchor" else None}
    check_odds(drawn(tensors, **options), yoyo_fusion(arrays(tensors), **options).merge, dtype)


@pytest.mark.parametrize("kind", ["linear", "transposed", "embedding", "vector"])
def test_recall_too(kind):
    tensors = halves(4, (6, 9) if kind != "vector" else (40,))
    options = {"consensus": "recall", "kind": kind, "recall_precision": "float64"}
    check_odds(drawn(tensors, **options), recall(arrays(tensors), kind).merge, torch.bfloat16)


def test_boosted_updates_too():
    tensors = halves(3, (8, 10))
    exact = fuse([x.double() for x in tensors], matrix_boost=True).tensor.numpy()
    check_odds(drawn(tensors, matrix_boost=True), exact, torch.bfloat16)


@pytest.mark.parametrize("dtype", list(BITS))
def test_near_zero_and_at_the_ends(dtype):
    """Below the least normal number, at powers of two, at zeros, and where nothing is above."""
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    exact = [least * x for x in (0.1, 0.5, 1.0, 2.75, 100.3)] + [0.0, 1.0, 2.0 + info.eps / 3]
    exact += [info.smallest_normal * (1 - info.eps / 4), 4.0 - info.eps / 2, info.max * 0.999]
    exact = torch.tensor([exact, [-x for x in exact]], dtype=torch.float64)
    many = exact.float().expand(4096, 2, -1)
    seeds = torch.arange(4096, dtype=torch.int32)
    bits = rounding.random_bits(0, exact.numel(), seeds).view(many.shape)
    draws = rounding.stochastic(many, dtype, bits)
    assert torch.equal(draws.to(dtype).float(), draws)
    check_odds(draws, exact.float().double().numpy(), dtype)
    zeros = torch.tensor([[0.0, -0.0]])
    assert same_bits(rounding.stochastic(zeros, dtype, bits[0, :1, :2]), zeros)
    # beyond the largest number chance would make infinity of what is finite to nearest
    beyond = torch.full((1, 4096), info.max * (1 + info.eps / 8))
    written = rounding.stochastic(beyond, dtype, bits.flatten()[None, :4096])
    assert torch.equal(written.to(dtype), beyond.to(dtype))


def literal_bits(name, problem, element):
    """What is drawn for an element, in whole numbers."""
    crc = 0xFFFFFFFF  # CRC-32 of the name and the problem's number, bit by bit
    for byte in f"{name}/{problem}".encode():
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    seed = crc ^ 0xFFFFFFFF
    bits = element % 2**32
    bits = (bits ^ bits >> 16) * 0x85EBCA6B % 2**32 ^ seed
    bits = (bits ^ bits >> 13) * 0xC2B2AE35 % 2**32
    bits = (bits ^ bits >> 16) * 0x7FEB352D % 2**32
    return bits >> 16


@pytest.mark.parametrize("first", [0, 2**31 - 5, 2**32 - 5, 2**33 + 1])
def test_what_is_drawn_is_what_is_documented(first):
    """Far out in huge tensors too; that a machine or a release draws alike rests on this."""
    out = rounding.Destination.of(torch.empty(3, 4, dtype=torch.bfloat16), "stochastic", "a.weight")
    found = rounding.random_bits(first, first + 40, out.seeds)
    expected = [[literal_bits("a.weight", p, first + n) for n in range(40)] for p in range(3)]
    assert found.tolist() == expected


@cache
def long_draw():
    seeds = rounding.Destination.of(
        torch.empty(2, 1, dtype=torch.bfloat16), "stochastic", "x"
    ).seeds
    return rounding.random_bits(0, 2**21, seeds).numpy()


@pytest.mark.parametrize("lag", [1, 2, 64, 576, 1024, 4096, "other problem"])
def test_draws_know_nothing_of_each_other(lag):
    """Pairs of draws fill the square evenly: rows of a matrix, and tensors beside each other."""
    one, other = long_draw() >> 8
    first, second = (one, other) if isinstance(lag, str) else (one[:-lag], one[lag:])
    counts = np.bincount(first.astype(np.int64) * 256 + second, minlength=2**16)
    even = len(first) / 2**16
    chi_squared = ((counts - even) ** 2 / even).sum()
    assert abs(chi_squared - 2**16) < 5 * np.sqrt(2 * 2**16)


def test_every_bit_is_a_fair_coin():
    for bit in range(16):
        heads = (long_draw() >> bit & 1).mean()
        assert abs(heads - 0.5) < 5 * 0.5 / np.sqrt(long_draw().size)


@pytest.mark.parametrize("center", ["geometric_median", "coordinate_median"])
@pytest.mark.parametrize("strided", [False, True])
def test_tiles_threads_and_strides_draw_alike(center, strided, monkeypatch):
    packed = halves(3, (4, 90, 70))
    options = {
        "center": center, "experts": "separate", "rounding": "stochastic", "name": "gate_up_proj",
    }  # fmt: skip
    whole = fuse(packed, **options).tensor
    if strided:
        packed = [x.mT.contiguous().mT for x in packed]
    monkeypatch.setattr(streaming, "scratch_bytes", lambda device: 1)
    monkeypatch.setattr(rounding, "DRAWN_AT_ONCE", 7)
    assert torch.equal(fuse(packed, **options).tensor, whole)
    monkeypatch.undo()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert torch.equal(fuse(packed, **options).tensor, whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["linear", "transposed", "embedding"])
def test_groups_of_experts_and_blocks_of_rows_draw_alike(kind, monkeypatch):
    """With recall, whose products may differ in their last bits where they are cut otherwise."""
    packed = halves(3, (5, 60, 40))
    options = {
        "consensus": "recall", "experts": "separate", "rounding": "stochastic", "kind": kind,
        "recall_precision": "float64",
    }  # fmt: skip
    whole = fuse(packed, **options).tensor
    monkeypatch.setattr(spaces, "MATRICES_BYTES", 1)
    monkeypatch.setattr(spaces, "scratch_bytes", lambda device: 50_000)
    assert (fuse(packed, **options).tensor != whole).double().mean() < 1e-3


def test_small_numbers_of_float16_need_no_denormals_of_float32():
    """A library that was built with -ffast-math has them taken for zero."""
    tensors = [x * 1e-3 for x in halves(3, (40, 50), torch.float16)]
    whole = fuse(tensors, rounding="stochastic").tensor
    assert torch.set_flush_denormal(True)
    try:
        flushed = fuse(tensors, rounding="stochastic").tensor
    finally:
        torch.set_flush_denormal(False)
    assert (whole.abs() < torch.finfo(torch.float16).tiny).double().mean() > 0.9
    assert same_bits(flushed, whole)


def test_tensors_of_one_seed_draw_alike():
    tensors = halves(3, (20, 30))
    first, second = (
        fuse(tensors, rounding="stochastic", name=name, seed="vocabulary").tensor for name in "ab"
    )
    assert torch.equal(first, second)


def test_no_two_experts_or_tensors_draw_alike():
    one = halves(3, (60, 50))
    packed = [x.expand(4, -1, -1).contiguous() for x in one]
    merged = fuse(packed, experts="separate", rounding="stochastic").tensor
    other = fuse(one, rounding="stochastic", name="another").tensor
    each = [*merged, other]
    for n, x in enumerate(each):
        for y in each[:n]:
            # two draws of one number differ with odds of 2 p (1 - p), a third on average
            assert 0.2 < (x != y).double().mean() < 0.45


def test_identical_inputs_and_wider_floats_are_left_alone():
    tensors = halves(3, (30, 20))
    same = [tensors[0], tensors[0].clone(), tensors[0].clone()]
    assert same_bits(fuse(same, rounding="stochastic").tensor, tensors[0])
    for wide in ([x.float() for x in tensors], [x.double() / 3 for x in tensors]):
        assert same_bits(fuse(wide, rounding="stochastic").tensor, fuse(wide).tensor)


def test_what_it_changes_is_measured():
    tensors = halves(3, (30, 41))
    exact = yoyo_fusion(arrays(tensors)).merge
    result = fuse(tensors, rounding="stochastic")
    lost = np.linalg.norm(result.tensor.double().numpy() - exact) / np.linalg.norm(exact)
    assert float(result.rounding) == pytest.approx(lost, rel=1e-5)
    assert float(result.rounding) > 1.2 * float(fuse(tensors).rounding)  # sqrt(2) for even numbers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stochastic")
    base = write_checkpoint(folder / "base", "llama")
    for seed, name in enumerate(ABC):
        fine_tune(base, folder / name, seed, change=lambda tensors: tensors | wide(tensors))
    return folder


def wide(tensors):
    """The last norm in float32."""
    return {"model.norm.weight": tensors["model.norm.weight"].float()}


@pytest.mark.slow
def test_a_merge_is_the_same_in_every_run(place):
    """By mergekit-yaml, and by our command with two workers; its record says how it rounded, and
    the log that there is a tensor in which the option does nothing."""
    options = {"consensus": "recall", "recall_precision": "float64", "rounding": "stochastic"}
    text = recipe([f"./{x}" for x in ABC], report="./yaml.jsonl", **options)
    done = mergekit("yaml", text, place / "merged", cwd=place)
    assert not done.returncode, done.stderr
    assert done.stderr.count(FLOAT32) == 1
    merged = tensors_of(place / "merged")
    summary = summarize(read_record(place / "yaml.jsonl"))
    assert summary.parameters["rounding"] == "stochastic"
    assert summary.rounding.startswith("Rounding (stochastic) to bfloat16 moved the merge by ")

    (place / "again.yml").write_text(text.replace("./", f"{place}/").replace("yaml.", "again."))
    status, said = merge(place / "again.yml", place / "again", "--workers", 2)
    assert not status, said
    again = tensors_of(place / "again")
    assert merged.keys() == again.keys()
    for tensor, value in merged.items():
        assert torch.equal(again[tensor], value), tensor

    inputs = [tensors_of(place / model) for model in ABC]
    assert merged["model.norm.weight"].dtype == torch.float32
    for tensor in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"):
        values = arrays([x[tensor] for x in inputs])
        exact = recall(values, "vector" if values[0].ndim == 1 else "linear").merge
        lower, upper, up = neighbors(exact, torch.bfloat16)
        taken = merged[tensor].double().numpy()
        assert ((taken == lower) | (taken == upper)).all()
        # the farther neighbor is taken with odds of a quarter, if all shares are alike
        farther = taken != np.where(up < 0.5, lower, upper)
        assert farther.mean() == pytest.approx(0.25, abs=4 * np.sqrt(3 / 16 / farther.size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtypes", "idle"),
    [
        ("", True),
        ("dtype: bfloat16", False),
        ("dtype: float32", True),
        ("dtype: float32\nout_dtype: bfloat16", True),
        ("dtype: bfloat16\nout_dtype: float32", False),
    ],
)
def test_where_it_does_nothing_inspect_says_so(dtypes, idle, place):
    file = place / "inspected.yml"
    file.write_text(recipe([str(place / x) for x in ABC], dtypes, rounding="stochastic"))
    result = CliRunner().invoke(main, ["inspect", str(file), "--quick"])
    assert (FLOAT32 in " ".join(result.output.split())) == idle, result.output


@pytest.mark.slow
def test_a_head_that_is_stored_beside_its_twin_stays_its_twin(place):
    """Some tied models store both; loaders untie them where they differ."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    for seed, name in enumerate(ABC):
        fine_tune(
            place / "base",
            place / f"tied-{name}",
            seed + 9,
            change=lambda tensors: tensors | {names[1]: tensors[names[0]].clone()},
            config={"tie_word_embeddings": True},
        )
    file = place / "tied.yml"
    file.write_text(recipe([str(place / f"tied-{x}") for x in ABC], rounding="stochastic"))
    status, said = merge(file, place / "tied")
    assert not status, said
    merged = tensors_of(place / "tied")
    inputs = [tensors_of(place / f"tied-{x}")[names[0]] for x in ABC]
    assert torch.equal(*(merged[name] for name in names))
    assert not torch.equal(merged[names[0]], fuse(inputs).tensor)  # they were drawn
