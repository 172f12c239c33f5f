"""What scorers with a network of their own have in common: where it runs, in which arithmetic, how much at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from services.kit.models.arithmetic import Dtype
from wire.schema import ScorerInfo


class NetworkOptions(TypedDict, total=False):
    """What `NetworkScorer` takes."""

    device: str
    dtype: Dtype
    max_batch: int | None
    threads: int | None


class NetworkScorer:
    """Base of a `Scorer` that runs a network with torch.

    device: auto (the first GPU where there is one), cpu, cuda, cuda:N. dtype: auto is bf16 on a GPU that has it.
    max_batch: items of a `score` call and images of a forward pass; None takes `gpu_batch` or `cpu_batch`.
    threads: torch's threads on the CPU, for the whole process; None leaves torch's own choice.
    Raises ValueError when the device is not there.
    """

    gpu_batch, cpu_batch = 64, 8

    def __init__(
        self, *, device: str = "auto", dtype: Dtype = "auto", max_batch: int | None = None, threads: int | None = None
    ) -> None:
        from services.kit.models.towers import choose_device, choose_dtype

        self._device = choose_device(device)
        self._dtype = choose_dtype(dtype, self._device)
        self._max_batch = max_batch or (self.gpu_batch if self._device.type == "cuda" else self.cpu_batch)
        self._threads = threads
        self._rewards: dict[str, ScorerInfo] = {}

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return self._rewards

    @property
    def max_batch(self) -> int:
        return self._max_batch

    def _take_threads(self) -> None:
        """To be called first in `load`."""
        import torch

        if self._threads is not None:
            torch.set_num_threads(self._threads)
