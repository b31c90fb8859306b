"""What the record of a merge costs, beside the merge itself.

    python benchmarks/record_cost.py           # the table; a minute
    python benchmarks/record_cost.py --write   # and into docs/report.md

One layer of a 30B mixture of experts (packed gate_up and down of 128 experts, attention, norms) and
one of a dense 8B model, three inputs each, in bfloat16.
"""

import tempfile
import time
from pathlib import Path

import click
import torch
from pages import show, write_option

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.packing import Packing
from mergekit_yoyo.record import recorder
from mergekit_yoyo.record.lines import tensor_line

LAYERS = {
    "a 30B mixture of experts": {
        "mlp.experts.gate_up_proj": (128, 2 * 768, 2048),
        "mlp.experts.down_proj": (128, 2048, 768),
        "mlp.gate.weight": (128, 2048),
        "self_attn.q_proj.weight": (4096, 2048),
        "self_attn.k_proj.weight": (512, 2048),
        "self_attn.v_proj.weight": (512, 2048),
        "self_attn.o_proj.weight": (2048, 4096),
        "input_layernorm.weight": (2048,),
        "post_attention_layernorm.weight": (2048,),
    },
    "a dense 8B model": {
        "mlp.gate_proj.weight": (14336, 4096),
        "mlp.up_proj.weight": (14336, 4096),
        "mlp.down_proj.weight": (4096, 14336),
        "self_attn.q_proj.weight": (4096, 4096),
        "self_attn.k_proj.weight": (1024, 4096),
        "self_attn.v_proj.weight": (1024, 4096),
        "self_attn.o_proj.weight": (4096, 4096),
        "input_layernorm.weight": (4096,),
        "post_attention_layernorm.weight": (4096,),
    },
}
INPUTS = 3
ROUNDS = 5


def inputs(shape: tuple[int, ...]) -> list[torch.Tensor]:
    base = torch.randn(shape, dtype=torch.bfloat16)
    return [base + 0.03 * torch.randn(shape, dtype=torch.bfloat16) for _ in range(INPUTS)]


def costs(
    name: str, tensors: list[torch.Tensor], packing: Packing, folder: Path
) -> tuple[float, float]:
    """Best seconds of the merge of a tensor, and of its line of the record, written to disk."""
    merging, recording = [], []
    for round_ in range(ROUNDS):
        started = time.perf_counter()
        result = fuse(tensors, experts=packing)
        merged = time.perf_counter()
        line = tensor_line(
            name,
            result.tensor,
            result,
            inputs=["./a", "./b", "./c"],
            parameters={"consensus": "tukey"},
        )
        recorder.write(str(folder / f"{round_}.jsonl"), line)
        merging.append(merged - started)
        recording.append(time.perf_counter() - merged)
    return min(merging), min(recording)


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    torch.manual_seed(0)
    lines = ["| a layer of | merged in | its record | share |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        for model, shapes in LAYERS.items():
            merging = recording = 0.0
            for name, shape in shapes.items():
                click.echo(f"{model}: {name} ...", err=True)
                packing = Packing("experts" in name, 2 if "gate_up" in name else 1)
                of_tensor = costs(f"{model}.{name}", inputs(shape), packing, Path(folder))
                merging += of_tensor[0]
                recording += of_tensor[1]
            lines.append(
                f"| {model} | {merging:.2f} s | {recording * 1e3:.1f} ms | "
                f"{recording / merging:.2%} |"
            )
    show(lines, "report.md", "record-cost", write=write)


if __name__ == "__main__":
    main()
