"""A trainer whose collectives are counted by who asks for them; `main` is run on several ranks.

Every function of torch.distributed by which ranks meet is wrapped, and so is what ends a step: what is counted between two ends is a step's.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch.distributed as dist

import trainer.loop
from trainer.__main__ import main as train

NAMES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "barrier", "reduce_scatter_tensor")
NAMES += ("reduce", "gather", "scatter", "all_to_all", "all_gather_object", "broadcast_object_list")
ROOT = Path(__file__).resolve().parents[2]
_OURS = str(ROOT / "trainer") + "/"


def asker() -> str:
    """The innermost function of the trainer that is not `World`'s own, as module and name."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if path.startswith(_OURS) and not path.endswith("processes/distributed.py"):
            return f"{path.removeprefix(_OURS).removesuffix('.py')}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def counted(call: Callable[..., Any], count: Counter[str]) -> Callable[..., Any]:
    @wraps(call)
    def meet(*args: Any, **options: Any) -> Any:
        count[asker()] += 1
        return call(*args, **options)

    return meet


def main(argv: list[str]) -> int:
    """`argv`: the file that the main rank writes, a list of {who asks: how often} for each step, then the trainer's arguments."""
    out, *arguments = argv
    count, steps = Counter[str](), list[dict[str, int]]()
    for name in NAMES:
        setattr(dist, name, counted(getattr(dist, name), count))
    keep_step = trainer.loop.keep_step

    def ends(*args: Any) -> None:
        steps.append(dict(count))
        keep_step(*args)
        count.clear()  # a save or an evaluation is not what every step costs

    trainer.loop.keep_step = ends
    code = train(arguments)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(steps))
    return code
