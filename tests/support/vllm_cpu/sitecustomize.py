"""Lets torchvision be imported where its compiled operators do not fit the installed torch (one without CUDA).

Put this folder on PYTHONPATH of the test-only vLLM environment and nowhere else. Importing torchvision registers shape
functions for two operators of its compiled part, which fails when that part could not be loaded. Declaring the two
first is enough: images are decoded and resized without them.
"""

from __future__ import annotations

import sys
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
