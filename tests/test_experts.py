"""The experts that ship: their size, their worth, and the benchmarks' tools around them."""

import pytest
import torch
from broken import KINDS, break_model
from held_out import DOMAINS, EXPERTS, HELD_OUT, held_out_losses
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

pytestmark = pytest.mark.slow

MODELS = ("base", *DOMAINS)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Nats per byte, from `python benchmarks/held_out.py ./examples/experts/*`.
LOSSES = {
    "base": (1.4352, 1.8135, 1.5756, 1.6099, 1.5047),
    "code": (1.3650, 1.8437, 1.5891, 1.6202, 1.5400),
    "german": (1.4774, 1.6728, 1.6252, 1.6335, 1.5577),
    "manual": (1.4559, 1.8714, 1.4899, 1.6181, 1.5295),
    "headers": (1.4729, 1.8620, 1.6088, 1.5164, 1.5419),
    "french": (1.4694, 1.8664, 1.5898, 1.6349, 1.3949),
}
TOLERANCE = 2e-3  # float32 sums differ between processors and thread counts in the sixth digit


@pytest.fixture(scope="module")
def losses() -> dict[str, dict[str, float]]:
    return {model: held_out_losses(EXPERTS / model) for model in MODELS}


def test_all_models_together_are_under_three_megabytes():
    files = [path for path in EXPERTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    for model in MODELS:
        assert {path.name for path in (EXPERTS / model).iterdir()} == FILES


def test_held_out_texts_are_small_and_whole():
    assert sorted(path.stem for path in HELD_OUT.iterdir()) == sorted(DOMAINS)
    sizes = [path.stat().st_size for path in HELD_OUT.iterdir()]
    assert min(sizes) > 16_000
    assert sum(sizes) < 200_000


@pytest.mark.parametrize("model", MODELS)
def test_config_and_weights_are_what_merges_and_exports_expect(model):
    config = AutoConfig.from_pretrained(EXPERTS / model)
    assert config.model_type == "llama"
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 50_000.0
    assert config.hidden_size % 64 == config.intermediate_size % 64 == 0
    weights = load_file(EXPERTS / model / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    assert len(AutoTokenizer.from_pretrained(EXPERTS / model)) == config.vocab_size


def test_tokenizer_is_one_token_per_byte_and_round_trips():
    tokenizer = AutoTokenizer.from_pretrained(EXPERTS / "base")
    text = "".join(map(chr, range(0x250))) + " naïve\r\n\tGröße — 東京 🙂  "
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    files = {(EXPERTS / model / "tokenizer.json").read_bytes() for model in MODELS}
    assert len(files) == 1


@pytest.mark.parametrize("model", MODELS)
def test_losses_are_those_written_down(losses, model):
    written = dict(zip(DOMAINS, LOSSES[model], strict=True))
    assert losses[model] == pytest.approx(written, abs=TOLERANCE)


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_expert_is_the_best_model_of_its_own_domain(losses, domain):
    own = losses[domain][domain]
    assert own < losses["base"][domain] - 0.05
    assert all(own < losses[other][domain] for other in MODELS if other != domain)


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_expert_forgets_little_of_the_other_domains(losses, domain):
    others = [other for other in DOMAINS if other != domain]
    forgotten = [losses[domain][other] - losses["base"][other] for other in others]
    assert sum(forgotten) / len(forgotten) < 0.05


def test_broken_copies_are_broken_as_named(tmp_path):
    source = load_file(EXPERTS / "german" / "model.safetensors")
    for kind in KINDS:
        break_model(kind, EXPERTS / "german", tmp_path / kind)
        assert {path.name for path in (tmp_path / kind).iterdir()} == FILES
        broken = load_file(tmp_path / kind / "model.safetensors")
        assert broken.keys() == source.keys()
        for name, weight in source.items():
            assert broken[name].dtype == weight.dtype
            before, after = weight.double(), broken[name].double()
            if kind == "noise":
                rms = before.square().mean().sqrt()
                noise = (after - before).square().mean().sqrt() / rms
                assert noise == pytest.approx(1.0, abs=0.35), name
            elif kind == "shuffled":
                assert not torch.equal(before, after), name
                assert torch.equal(before.flatten().sort()[0], after.flatten().sort()[0]), name
            elif kind == "flipped":
                assert torch.equal(after, -before), name
            else:
                torch.testing.assert_close(after, 100 * before, rtol=2**-8, atol=0)


def test_broken_copies_are_seeded(tmp_path):
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        break_model("noise", EXPERTS / "base", tmp_path / name, seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
