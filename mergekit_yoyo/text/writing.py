"""Text that a model writes itself: a sample of what it learned, without data.

A plain model starts from its beginning of text. A chat model first writes what a user might ask,
after the beginning of the user's turn in its own template, then the answer (as Magpie does, arXiv
2406.08464). Temperature 1 and nothing cut off, so that the text is a fair sample of the model's own
distribution. It is kept as JSON lines, the first of which says how it came about.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.folder import fingerprint
from mergekit_yoyo.outside import load_json, read_text
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import write_files
from mergekit_yoyo.text.windows import LEAST_TOKENS, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 16  # samples at once
TRIES = 4  # times as many samples as wanted: short ones do not count
SHARE_OF_QUESTION = 4  # the user's turn has one of so many parts of the tokens
_CONTENT = "\N{WHITE MEDIUM STAR}content\N{WHITE MEDIUM STAR}"
_FORMAT = 1


@dataclass(frozen=True)
class Writing:
    """How a model is to write. samples: how many; tokens: in each, at most."""

    samples: int = 64
    tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """What a model wrote. chat: in its chat template. kept: it was there from an earlier run."""

    windows: tuple[Window, ...]
    chat: bool
    kept: bool


def written_text(
    model: Path,
    file: Path,
    writing: Writing,
    *,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Written:
    """Let the model in folder `model` write, or read what it wrote before with the same settings.

    Args:
        model: a folder with weights and tokenizer, causal.
        file: JSON lines, where the text is kept.
        writing: how much; what is kept in `file` is used if nothing of it differs, nor the model.
        device: for sampling, as torch names it.

    Raises:
        YoyoError: the model cannot be loaded, or writes nothing to speak of.
    """
    provenance = _provenance(model, writing)
    if file.is_file() and (kept := _read(file, provenance)) is not None:
        return kept
    progress.begin(f"{model.name} writes", writing.samples, "samples")
    loaded, tokenizer = _load(model, device)
    chat = bool(tokenizer.chat_template)
    samples: list[tuple[Window, str]] = []
    for sample in _samples(loaded, tokenizer, writing, chat=chat):
        samples.append((sample, tokenizer.decode(sample.tokens)))
        progress.advance()
    if len(samples) < min(writing.samples, 2):
        raise YoyoError(
            f"{model}: this model writes nothing by itself: {len(samples)} of "
            f"{writing.samples} samples have {LEAST_TOKENS} tokens. Give it text with --text."
        )
    head = {**provenance, "chat": chat}
    lines = [json.dumps(head), *(json.dumps({**asdict(w), "text": text}) for w, text in samples)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_files({file: "\n".join([*lines, ""]).encode()})
    return Written(tuple(window for window, _ in samples), chat, kept=False)


def _provenance(model: Path, writing: Writing) -> dict[str, Any]:
    import torch
    import transformers

    names = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "chat_template*")
    files = sorted(file for name in names for file in model.glob(name) if file.is_file())
    return {
        "format": _FORMAT,
        "model": model.name,
        "fingerprint": fingerprint(files),
        **asdict(writing),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def _read(file: Path, provenance: dict[str, Any]) -> Written | None:
    """What is kept in `file`; None if it came about in another way, or is torn."""
    try:
        head, *lines = [load_json(line, file) for line in read_text(file).splitlines()]
        if {key: head.get(key) for key in provenance} != provenance:
            return None
        windows = tuple(
            Window(
                tuple(line["tokens"]),
                tuple((begin, end) for begin, end in line["counted"]),
                line["document"],
            )
            for line in lines
        )
    except (YoyoError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Written(windows, bool(head.get("chat")), kept=True) if len(windows) > 1 else None


def _load(folder: Path, device: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise YoyoError(f"{folder}: transformers cannot load this causal model: {reason}") from None


def _samples(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", writing: Writing, *, chat: bool
) -> Iterator[Window]:
    """As many samples as are wanted, of at least `LEAST_TOKENS` written tokens, or fewer."""
    found = 0
    for batch in range(-(-writing.samples // BATCH) * TRIES):
        count = min(BATCH, writing.samples - found)
        seed = writing.seed * 100_003 + batch
        answers = (_chats if chat else _plain)(model, tokenizer, writing.tokens, count, seed)
        for tokens, counted in answers:
            if sum(end - begin for begin, end in counted) >= LEAST_TOKENS:
                yield Window(tuple(tokens), counted, found)
                found += 1
        if found >= writing.samples:
            return


_Sample = tuple[list[int], tuple[tuple[int, int], ...]]


def _plain(model: Any, tokenizer: Any, tokens: int, count: int, seed: int) -> list[_Sample]:
    start = _beginning(model, tokenizer)
    written = _generate(model, tokenizer, [[start]] * count, tokens, seed)
    return [([start, *new], ((1, 1 + len(new)),)) for new in written]


def _chats(model: Any, tokenizer: Any, tokens: int, count: int, seed: int) -> list[_Sample]:
    """The user's turn, then the answer."""
    before = _user_turn(tokenizer)
    of_question = max(tokens // SHARE_OF_QUESTION, LEAST_TOKENS)
    asked = _generate(model, tokenizer, [before] * count, of_question, seed)
    prompts, questions = [], []
    for question in asked:
        text = tokenizer.decode(question, skip_special_tokens=True).strip()
        if text:
            prompts.append(_ids(tokenizer, text))
            questions.append(question)
    if not prompts:
        return []
    answers = _generate(model, tokenizer, prompts, tokens - of_question, seed + 1)
    return [
        ([*prompt, *answer], ((len(prompt), len(prompt) + len(answer)),))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _user_turn(tokenizer: Any) -> list[int]:
    """The tokens of the chat template up to where the user's words begin."""
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=False
    )
    before, found, _ = shown.partition(_CONTENT)
    if not found:
        raise YoyoError(
            "the chat template of this model does not show what the user says. Give it text with "
            "--text."
        )
    return list(tokenizer(before, add_special_tokens=False)["input_ids"])


def _ids(tokenizer: Any, question: str) -> list[int]:
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(shown, add_special_tokens=False)["input_ids"])


def _beginning(model: Any, tokenizer: Any) -> int:
    """The token that stands before all text: of the tokenizer, else of the config (Qwen)."""
    known = (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.eos_token_id)
    start = next((token for token in known if token is not None), None)
    if start is None:
        raise YoyoError(
            f"{model.config.name_or_path}: this model has no beginning of text to write from. "
            "Give it text with --text."
        )
    return int(start)


def _generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int, seed: int
) -> list[list[int]]:
    """What the model writes after each prompt, its end of text included."""
    import torch
    from transformers import GenerationConfig

    ends = _ends(model, tokenizer)
    filler = ends[0] if ends else 0
    width = max(map(len, prompts))
    ids = torch.tensor([[filler] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    # all of it is said here: what a folder's own generation_config asks for is another distribution
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        eos_token_id=ends or None,
        pad_token_id=filler,
    )
    model.generation_config = settings
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        shown = model.generate(
            ids, attention_mask=mask.to(model.device), generation_config=settings
        )
    return [_until_end(row[width:].tolist(), ends) for row in shown]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text or a turn, by tokenizer and configs."""
    found: list[int] = []
    for ends in (
        tokenizer.eos_token_id,
        model.config.eos_token_id,
        model.generation_config.eos_token_id,
    ):
        found += ends if isinstance(ends, list) else [] if ends is None else [int(ends)]
    return list(dict.fromkeys(found))


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
