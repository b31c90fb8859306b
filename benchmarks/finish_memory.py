"""Memory and time of `mergekit-yoyo finish` on a large mixture of experts.

    python benchmarks/finish_memory.py           # a minute
    python benchmarks/finish_memory.py --write   # and into docs/finish.md

Writes a merge with packed experts as mergekit would (random bytes, the shapes of Qwen3-MoE), with
a donor that has a config and an index only, then finishes it and prints what that took. "Private
memory" is what the process itself allocated (RssAnon); pages of the mapped input are the kernel's.
Beside the seconds stands how many times as long as a plain copy of the same files they are.
"""

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import click
import torch
from pages import show, write_option

from mergekit_yoyo.finish import finish, plan_finish
from mergekit_yoyo.model.checkpoint import Checkpoint, TensorInfo
from mergekit_yoyo.model.config import config_from, meta_model
from mergekit_yoyo.model.layout import plan_layout
from mergekit_yoyo.model.writing import write_checkpoint
from mergekit_yoyo.staging import format_bytes


def private_memory() -> int:
    """Bytes that this process has allocated (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status: it needs Linux")


def write_merge(root: Path, layers: int, experts: int, hidden: int) -> Path:
    """A merge folder and its donor, with the tensors of a Qwen3-MoE of this size."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 4096,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "moe_intermediate_size": 3 * hidden // 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "rope_theta": 10000000.0,
        "torch_dtype": "bfloat16",
    }
    donor, merge = root / "donor", root / "merge"
    donor.mkdir()
    merge.mkdir()
    (donor / "config.json").write_text(json.dumps(config))
    state = meta_model(config_from(config)).state_dict()
    infos = {name: TensorInfo(tuple(t.shape), torch.bfloat16) for name, t in state.items()}
    names = dict.fromkeys(plan_layout(donor, infos).targets, "model.safetensors")
    (donor / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    tensors = ((name, torch.randn(info.shape).to(info.dtype)) for name, info in infos.items())
    write_checkpoint(merge, infos, tensors)
    config_from(config).save_pretrained(merge)
    (merge / "mergekit_config.yml").write_text(
        f"merge_method: linear\nbase_model: {donor}\nmodels:\n- model: {donor}\n"
        "  parameters: {weight: 1}\n"
    )
    return merge


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=128, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write 3 models' sizes.")
@write_option
def main(layers: int, experts: int, hidden: int, folder: Path | None, write: bool) -> None:
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        click.echo("writing the merge ...", err=True)
        merge = write_merge(root, layers, experts, hidden)
        with Checkpoint(merge) as checkpoint:
            largest = max(info.nbytes for info in checkpoint.tensors.values())
            total = checkpoint.nbytes
        click.echo("copying it ...", err=True)
        start = time.perf_counter()
        shutil.copytree(merge, root / "copy")
        copied = time.perf_counter() - start
        shutil.rmtree(root / "copy")
        before, peak, stop = private_memory(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not stop.wait(0.002):
                peak = max(peak, private_memory() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        click.echo("finishing it ...", err=True)
        start = time.perf_counter()
        plan = plan_finish(merge)
        planned = time.perf_counter()
        finish(plan)
        taken = time.perf_counter() - planned
        stop.set()
        watcher.join()
    finally:
        shutil.rmtree(root)
    lines = [
        "| layers x experts | size | tensors after | largest packed tensor | peak private memory | "
        "planned in | written in | of a plain copy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| {layers} x {experts} | {format_bytes(total)} | {len(plan.layout.targets):,} | "
        f"{format_bytes(largest)} | {peak / largest:.1f} x that | {planned - start:.1f} s | "
        f"{taken:.1f} s | {taken / copied:.1f} |",
    ]
    show(lines, "finish.md", "finish-memory", write=write)


if __name__ == "__main__":
    main()
