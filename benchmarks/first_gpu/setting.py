"""What every part is told, and the words of its rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.first_gpu.rows import Row, Value

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """Where a part is measured.

    Attributes:
        tiny: at the size of a test; the numbers say nothing of speed.
        scratch: a folder that is removed afterwards.
    """

    part: str
    tiny: bool
    scratch: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def row(
        self, what: str, value: Value = None, *, goal: str = "", reached: bool | None = None, note: str = ""
    ) -> Row:
        return Row(self.part, what, value, goal, reached, note)

    def on_a_gpu(self, reached: bool) -> bool | None:
        """A verdict that a tiny run or a CPU cannot give."""
        return reached if self.is_gpu and not self.tiny else None

    def on_an_h200(self, reached: bool) -> bool | None:
        """A verdict on a goal that was set for that card."""
        return self.on_a_gpu(reached) if self.is_gpu and "H200" in torch.cuda.get_device_name() else None

    def peak_gib(self) -> float | None:
        """The most that this process has had of the card since `forget_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else None

    def forget_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def trainer(self, *words: str) -> None:
        """Run a command of the trainer as a person does; what it prints goes to the log. Raises RuntimeError with its last line."""
        threads = ["distributed.num_threads=1"] if self.tiny else []
        command: Sequence[str] = [sys.executable, "-m", "trainer", *words, *threads]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "nothing said")
            raise RuntimeError(f"`trainer {words[0]}` ended with {done.returncode}: {last}")
