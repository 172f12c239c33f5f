"""The NVIDIA GPUs that this machine shows, known without torch; and a refusal where torch cannot use them.

A torch that is built for a newer CUDA than the driver knows says that there is no GPU. What follows `auto` then would run
on the CPU, hundreds of times slower, and look healthy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DEVICES = Path("/dev")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_PCI = Path("/sys/bus/pci/devices")
_SMI_TIMEOUT_S = 60.0
# The CUDA toolkit's release notes, table of driver versions; later minor versions run on the same drivers.
_OLDEST_DRIVER = {"13": "580", "12": "525"}


@dataclass(frozen=True)
class Gpus:
    """What is shown.

    Attributes:
        here: GPUs of the machine.
        visible: those of them that CUDA_VISIBLE_DEVICES leaves to this process; all where it is not set.
        driver: its version; empty where it is not said.
        cuda: the newest CUDA that the driver knows; empty where it is not said.
    """

    here: int
    visible: int
    driver: str = ""
    cuda: str = ""

    def __str__(self) -> str:
        number = f"{self.here} NVIDIA GPU{'s are' if self.here > 1 else ' is'} here"
        driver = f"driver {self.driver or 'of unknown version'}, CUDA up to {self.cuda or 'an unknown version'}"
        hidden = f"; CUDA_VISIBLE_DEVICES leaves {self.visible}" if self.visible != self.here else ""
        return f"{number} ({driver}{hidden})"


class GpuError(ValueError):
    """The GPUs that the machine shows cannot be used as asked; the message says why, and the remedy."""


def shown(environment: Mapping[str, str] = os.environ) -> Gpus:
    """GPUs that nvidia-smi lists, or, where it does not work, those with a device file.

    A GPU that a container was not given shows neither.
    """
    listed = _smi(environment, "-L")
    here = len(re.findall(r"^GPU ", listed, re.MULTILINE)) or len(
        [path for path in _DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name)]
    )
    if not here:
        return Gpus(0, 0)
    table = _smi(environment)
    driver = _after(r"Driver Version:\s*", table) or _after(
        "", _smi(environment, "--query-gpu=driver_version", "--format=csv,noheader")
    )
    if not driver and _DRIVER_FILE.is_file():
        driver = _after(r"Kernel Module\D*", _DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    return Gpus(
        here, _visible(environment.get("CUDA_VISIBLE_DEVICES"), here), driver, _after(r"CUDA.*?Version:\s*", table)
    )


def without_driver() -> str:
    """A sentence where an NVIDIA GPU is built in and none is shown: no driver, or a container without it; else empty."""
    if shown().here:
        return ""
    for device in _PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return f"an NVIDIA GPU is built into this machine (PCI {device.name}), but nothing here reaches it"
    return ""


def check_torch_uses(gpus: Gpus, instead: str) -> None:
    """Do nothing where no GPU is visible, or torch sees at least one.

    Args:
        instead: what to write to use the CPU on purpose.

    Raises:
        GpuError: torch can use none of them; the message has driver, CUDA and remedy.
    """
    if not gpus.visible:
        return
    import torch

    if torch.cuda.is_available():
        return
    built = torch.version.cuda
    remedy = "Update the driver, or install a build of torch for it"
    if built is None:
        why, remedy = "is built without CUDA", "Install a build of torch for this driver"
    elif gpus.cuda and _numbers(gpus.cuda) < _numbers(built)[:1]:
        oldest = _OLDEST_DRIVER.get(built.partition(".")[0])
        why = f"is built for CUDA {built}, newer than this driver knows{f' (it needs {oldest})' if oldest else ''}"
    else:
        why = f"is built for CUDA {built} and says: {_words_of_torch()}"
    raise GpuError(
        f"{gpus}, but torch {torch.__version__} cannot use {'them' if gpus.visible > 1 else 'it'}: it {why}. {remedy} "
        f"(docs/installation.md, GPUs). To use the CPU on purpose: {instead}"
    )


def check_processes(gpus: Gpus, count: int) -> None:
    """Raises GpuError when so many processes of this node would not have a GPU each. A machine without any is not judged."""
    if 0 < gpus.visible < count:
        raise GpuError(
            f"NGPUS={count} asks for {count} processes with a GPU each, but of this node's GPUs {gpus.visible} can be "
            f"used: {gpus}. Set NGPUS={gpus.visible}, or distributed.device=cpu"
        )


def _words_of_torch() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "no device"


def _visible(named: str | None, here: int) -> int:
    """CUDA takes the devices in the order named, up to the first that is not there; names other than numbers are taken
    to be there."""
    if named is None:
        return here
    count = 0
    for name in map(str.strip, named.split(",")):
        if not name or name.startswith("-") or (name.isdecimal() and int(name) >= here):
            break
        count += 1
    return count


def _smi(environment: Mapping[str, str], *arguments: str) -> str:
    """What nvidia-smi prints; nothing where there is none, it fails, or it hangs as it does with a broken GPU."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _after(words: str, text: str) -> str:
    """The first version number that follows `words`, a regular expression; empty where there is none."""
    found = re.search(words + r"([0-9]+(?:\.[0-9]+)+)", text)
    return found.group(1) if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
