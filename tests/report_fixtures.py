"""For the tests of `report`: records with plausible numbers."""

from pathlib import Path

import numpy as np

from mergekit_yoyo.record.schema import Finding, Header, TensorLine, pairs

REJECTED = 1e-3


def tensor_line(
    name: str,
    shape: list[int],
    models: list[str],
    random: np.random.Generator,
    *,
    problems: int = 1,
    broken: str | None = None,
    **fields: object,
) -> TensorLine:
    """A line whose residuals are those of random vectors around their mean."""
    count = len(models)
    elements = int(np.prod(shape)) // problems
    vectors = random.normal(size=(problems, count, 24)) * 0.1
    if broken in models:
        vectors[:, models.index(broken)] *= 12
    residuals = vectors - vectors.mean(1, keepdims=True)
    lengths = np.linalg.norm(residuals, axis=2)
    gram = residuals @ residuals.transpose(0, 2, 1)
    cosines = [gram[:, i, j] / (lengths[:, i] * lengths[:, j]) for i, j in pairs(count)]
    weights = random.uniform(0.6, 1.0, size=(problems, count))
    if broken in models:
        weights[:, models.index(broken)] = random.choice([0.0, 0.0, 0.0, 0.02], size=problems)
    findings = [
        Finding(kind="rejected", model=model, problems=int(rejected))
        for model, rejected in zip(models, (weights < REJECTED).sum(0), strict=True)
        if rejected
    ]
    values = {
        "name": name,
        "shape": shape,
        "dtype": "bfloat16",
        "consensus": "tukey",
        "norms": rounded(np.sqrt(elements) * random.uniform(0.9, 1.1, size=(problems, count))),
        "cosines": rounded(np.stack(cosines, axis=1)),
        "residual_norms": rounded(lengths / np.sqrt(24) * np.sqrt(elements)),
        "weights": rounded(weights),
        "center_weights": rounded(random.dirichlet(np.ones(count), size=problems)),
        "rank": [count - 1] * problems,
        "energy": [1.0] * problems,
        "energy_scale": [1.0] * problems,
        "iterations": random.integers(4, 12, size=problems).tolist(),
        "warnings": findings,
        **fields,
    }
    return TensorLine.model_validate(values)


def rounded(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.6g}") for x in row] for row in values]


def header(models: list[str], **fields: object) -> Header:
    values: dict[str, object] = {
        "versions": {"mergekit-yoyo": "0.1.0", "mergekit": "0.1.5", "torch": "2.13.0"},
        "started": "2026-11-25T16:37:22+00:00",
        "inputs": models,
        "parameters": {"center": "geometric_median", "rescale": "mean", "tukey_c": 4.685},
        **fields,
    }
    return Header.model_validate(values)


def write_record(path: Path, head: Header, lines: list[TensorLine]) -> Path:
    text = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in [head, *lines])
    path.write_text(text)
    return path


def small_lines(
    models: list[str],
    *,
    layers: int = 3,
    experts: int = 4,
    seed: int = 0,
    broken: str | None = None,
) -> list[TensorLine]:
    """Attention, a norm and packed experts in each layer, and what lies outside of them."""
    random = np.random.default_rng(seed)

    def line(name: str, *shape: int, problems: int = 1) -> TensorLine:
        return tensor_line(name, list(shape), models, random, problems=problems, broken=broken)

    lines = [line("model.embed_tokens.weight", 50, 8), line("model.norm.weight", 8)]
    for layer in range(layers):
        start = f"model.layers.{layer}"
        lines += [
            line(f"{start}.input_layernorm.weight", 8),
            line(f"{start}.self_attn.q_proj.weight", 8, 8),
            line(f"{start}.mlp.experts.gate_up_proj", experts, 12, 8, problems=2 * experts),
            line(f"{start}.mlp.experts.down_proj", experts, 8, 6, problems=experts),
        ]
    return lines
