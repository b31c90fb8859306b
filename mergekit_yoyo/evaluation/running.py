"""A model that is loaded and can be run: by transformers, or by mlx-lm."""

import platform
import re
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.measured import Run

PROMPT_TOKENS, GENERATED_TOKENS = 512, 128
_RUNS = 3


class Running(Protocol):
    """A loaded model. dtype: what it computes in."""

    dtype: str

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """The logits at every position of a sequence, (positions, words)."""

    def speed(self, prompt: list[int], count: int) -> Run:
        """Read a prompt and write `count` tokens, whatever they are, several times."""


def start(path: Path, loader: str, device: str, model_class: str) -> Running:
    """Load the model in folder `path`.

    Args:
        path: transformers or MLX folder.
        loader: `mlxlm` or `hf`.
        device: for transformers, as torch names it; mlx has its own.
        model_class: of transformers.
    """
    return _Mlx(path) if loader == "mlxlm" else _Transformers(path, device, model_class)


class _Transformers:
    """On the CPU weights are widened to float32: its bfloat16 rounds logits to a 256th of them."""

    def __init__(self, path: Path, device: str, model_class: str) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self._torch, self._device = torch, torch.device(device)
        self._before = _resident_bytes()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._model = (
            getattr(transformers, model_class)
            .from_pretrained(path, dtype=torch.float32 if device == "cpu" else "auto")
            .eval()
            .to(self._device)
        )
        self.dtype = str(self._model.dtype).removeprefix("torch.")

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            inputs = self._torch.tensor([tokens], device=self._device)
            found = self._model(input_ids=inputs, use_cache=False).logits[0]
            return np.asarray(found.float().cpu().numpy())

    def speed(self, prompt: list[int], count: int) -> Run:
        inputs = self._torch.tensor([prompt], device=self._device)

        def seconds(tokens: int) -> float:
            begun = time.perf_counter()
            self._model.generate(
                input_ids=inputs,
                attention_mask=self._torch.ones_like(inputs),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
            self._synchronize()
            return time.perf_counter() - begun

        with self._torch.inference_mode():
            seconds(2)  # the first run compiles kernels
            read = statistics.median(seconds(1) for _ in range(_RUNS))
            whole = statistics.median(seconds(count + 1) for _ in range(_RUNS))
        peak, memory = self._peak()
        return Run(
            device=_torch_device_name(self._torch, self._device),
            library="transformers",
            dtype=self.dtype,
            prompt_tokens=len(prompt),
            generated_tokens=count,
            prompt_speed=len(prompt) / read,
            # a busy machine can make the longer run the faster one
            generation_speed=count / max(whole - read, whole / (count + 1)),
            peak_bytes=peak,
            memory=memory,
        )

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            self._torch.accelerator.synchronize()

    def _peak(self) -> tuple[int, str]:
        if self._device.type == "cuda":
            return self._torch.cuda.max_memory_allocated(self._device), "device"
        if self._device.type == "mps":
            return self._torch.mps.driver_allocated_memory(), "device, at the end"
        grown = max(0, peak_resident_bytes() - self._before)
        return grown, "process"


class _Mlx:
    """As mlx-lm loads it; where mlx cannot compute in the model's dtype, in float32."""

    def __init__(self, path: Path) -> None:
        import mlx.core as mx
        from mlx_lm import load

        self._mx = mx
        mx.reset_peak_memory()
        self._model, self._tokenizer = load(str(path))[:2]
        try:
            mx.eval(self._model(mx.array([[0, 0]])))
        except RuntimeError:  # mlx's CPU build has expert layers in float32 only
            self._model.set_dtype(mx.float32)
        self.dtype = str(self._model(mx.array([[0]])).dtype).rpartition(".")[2]

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        return np.array(self._model(self._mx.array([tokens]))[0].astype(self._mx.float32))

    def speed(self, prompt: list[int], count: int) -> Run:
        from mlx_lm import stream_generate

        self._tokenizer._eos_token_ids = set()  # write on, whatever comes

        def last(tokens: int) -> Any:
            *_, response = stream_generate(
                self._model, self._tokenizer, prompt=prompt, max_tokens=tokens
            )
            return response

        last(2)  # the first run compiles kernels
        runs = [last(count) for _ in range(_RUNS)]
        return Run(
            device=_mlx_device_name(self._mx),
            library="mlx-lm",
            dtype=self.dtype,
            prompt_tokens=len(prompt),
            generated_tokens=count,
            prompt_speed=statistics.median(run.prompt_tps for run in runs),
            generation_speed=statistics.median(run.generation_tps for run in runs),
            peak_bytes=self._mx.get_peak_memory(),
            memory="mlx arrays",
        )


def _mlx_device_name(mx: Any) -> str:
    if mx.default_device().type == mx.cpu:
        return cpu_name()
    return str(mx.device_info()["device_name"])


def _torch_device_name(torch: Any, device: Any) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = cpu_name()  # of an Apple chip: the CPU's, and `mps` for its GPU
    return name if device.type == "cpu" else f"{name} {device.type}"


def cpu_name() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = match[1].strip()
    elif sys.platform == "darwin":
        import subprocess

        told = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        )
        name = told.stdout.strip() or name
    return name


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most memory that this process ever had.

    Linux hands `ru_maxrss` of a parent on to the child that it starts, so there the kernel's mark
    of this address space is read.
    """
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
