"""Trains the example experts: one base model on five kinds of text, one fine-tune on each kind.

    python examples/train_experts.py          # everything anew, under ten minutes on two free cores

Needs Debian's `apt-get` and `dpkg` for the texts (see `corpora.py`); nothing comes from the Hub.
The models are small on purpose (230 thousand parameters, bytes for tokens): they ship with the
repository, so that a first merge runs offline in seconds. All the same they are what merges are
made of: fine-tunes that share a base, each better than it on its own text and little worse on the
others. That takes replay, a quarter of each batch from the other texts: trained on its own text
alone, a model this small forgets the others faster than it learns.
"""

import math
import time
from pathlib import Path

import click
import torch
from corpora import SOURCES, read_corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

SEED = 20261124
BATCH = 16
LENGTH = 256  # tokens per training sequence
BASE_STEPS, BASE_RATE = 1_200, 5e-3
EXPERT_STEPS, EXPERT_RATE = 300, 5e-4
OWN_ROWS = 12  # of an expert's batch; each other text has one, as replay
WARMUP = 60
BOS, EOS = "<s>", "</s>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: 256 bytes, a beginning and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [BOS, EOS, *alphabet]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """The untrained model. Groups of 32 and 64 divide its widths, so it quantizes everywhere."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=0,
            eos_token_id=1,
            dtype="bfloat16",
        )
    ).float()


def train(
    model: LlamaForCausalLM, texts: list[torch.Tensor], steps: int, rate: float, label: str
) -> None:
    """Trains in place on random windows of the texts, each text equally often (AdamW, cosine)."""
    random = torch.Generator().manual_seed(SEED)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    beginning = torch.zeros(1, dtype=torch.int16)  # BOS, as the tokenizer puts it
    started, recent = time.monotonic(), 0.0
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        rows = []
        for row in range(BATCH):
            text = texts[row % len(texts)]
            start = int(torch.randint(len(text) - LENGTH, (), generator=random))
            rows.append(torch.cat((beginning, text[start : start + LENGTH])))
        batch = torch.stack(rows).long()
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            click.echo(
                f"{label}: step {step + 1}/{steps}, loss {recent / 100:.4f}, {seconds:.0f} s"
            )
            recent = 0.0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a bfloat16 copy of the model, with tokenizer and generation config, to a folder."""
    published = new_model(model.config.vocab_size)
    published.load_state_dict(model.state_dict())
    published.to(torch.bfloat16)
    published.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, do_sample=True, temperature=0.7, top_p=0.95
    )
    published.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--cache", type=click.Path(path_type=Path), default=Path("build/corpora"))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent)
def main(cache: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    transformers_logging.disable_progress_bar()
    tokenizer = byte_tokenizer()
    byte_ids = torch.tensor(
        [tokenizer.convert_tokens_to_ids(c) for c in _byte_symbols()], dtype=torch.int16
    )
    texts = {}
    (out / "held_out").mkdir(parents=True, exist_ok=True)
    for domain in SOURCES:
        corpus = read_corpus(domain, cache)
        (out / "held_out" / f"{domain}.txt").write_bytes(corpus.held_out)
        texts[domain] = byte_ids[torch.frombuffer(bytearray(corpus.train), dtype=torch.uint8).int()]
        click.echo(f"{domain}: {len(corpus.train):,} bytes, {len(corpus.held_out):,} held out")

    base = new_model(len(tokenizer))
    train(base, list(texts.values()), BASE_STEPS, BASE_RATE, "base")
    save(base, tokenizer, out / "experts" / "base")
    for domain, text in texts.items():
        expert = LlamaForCausalLM.from_pretrained(out / "experts" / "base", dtype=torch.float32)
        others = [texts[other] for other in texts if other != domain]
        train(expert, [text] * OWN_ROWS + others, EXPERT_STEPS, EXPERT_RATE, domain)
        save(expert, tokenizer, out / "experts" / domain)


def _byte_symbols() -> list[str]:
    """The visible character that stands for each byte 0..255 in a byte-level vocabulary."""
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    symbols = {byte: chr(byte) for byte in shown}
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    assert encode("\n")[0][0] == symbols[10]
    return [symbols[byte] for byte in range(256)]


if __name__ == "__main__":
    main()
