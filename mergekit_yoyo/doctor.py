"""What `mergekit-yoyo doctor` looks at: the start-up hook, the registration, versions, devices."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mergekit_yoyo import __version__

TESTED = {"mergekit": "0.1.5", "torch": "2.13.0", "transformers": "5.24.0", "safetensors": "0.8.0"}
REINSTALL = "Install it again in this environment, from its folder: pip install --force-reinstall ."


@dataclass(frozen=True)
class Finding:
    """One line of the examination, and what to do about it."""

    ok: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.text}"
        return f"{line}\n     {self.remedy}" if self.remedy else line


def examine() -> list[Finding]:
    """Findings in the order in which things depend on each other."""
    return [*_versions(), _hook(), _registration(), _repair(), _devices()]


def _versions() -> list[Finding]:
    findings = [Finding(True, f"mergekit-yoyo {__version__}, Python {sys.version.split()[0]}")]
    for package, tested in TESTED.items():
        try:
            text = f"{package} {version(package)} (tested with {tested})"
            findings.append(Finding(True, text))
        except PackageNotFoundError:
            remedy = f"pip install '{package}>={tested}'"
            findings.append(Finding(False, f"{package} is not installed", remedy))
    return findings


def _hook() -> Finding:
    """A fresh interpreter tells whether the .pth file is where Python runs it."""
    probe = "import sys; sys.exit('mergekit_yoyo.autoload' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0:
        return Finding(True, "the start-up hook runs: every mergekit command knows the method")
    text = "the start-up hook does not run: mergekit's own commands do not know the method"
    return Finding(False, text, REINSTALL)


def _registration() -> Finding:
    try:
        from mergekit import merge_methods

        from mergekit_yoyo.method import register

        register()
        merge_methods.get("yoyo_fusion")
    except Exception as error:
        return Finding(False, f"merge_method: yoyo_fusion is not registered: {error!r}", REINSTALL)
    return Finding(True, "merge_method: yoyo_fusion is registered")


def _repair() -> Finding:
    """Whether merges lose nothing: the repair of mergekit's plans, or the refusal without it."""
    try:
        from mergekit_yoyo.planning import differing, is_switched_off
    except Exception as error:
        return Finding(False, f"mergekit's plans cannot be repaired: {error!r}", REINSTALL)
    if is_switched_off():
        return Finding(
            True, "mergekit's plans are not repaired, as asked: lossy merges are refused"
        )
    if names := differing():
        text = "mergekit's plans are not repaired: lossy merges are refused"
        remedy = f"It differs from mergekit {TESTED['mergekit']} in {', '.join(names)}."
        return Finding(False, text, remedy)
    return Finding(True, "mergekit's plans are repaired: merges by yoyo_fusion lose nothing")


def _devices() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding(False, f"torch cannot be imported: {error}", "pip install torch")
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    return Finding(True, f"devices: {', '.join(devices)}")
