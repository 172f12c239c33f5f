"""How many of our files one training step of the quickstart runs through, and which.

    python benchmarks/files_touched.py
    python benchmarks/files_touched.py --step trainer.loop:train_step   # of an older commit, in its tree

The step is a real one in this process, with two prompts of two samples and a rules service beside it. A file counts when a
function in it is called between the start of the step and its end, by any thread that began after this script: also those
of the reward client. Definitions that run at import do not count.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / name) + "/" for name in ("machine", "wire", "services", "trainer"))
SMALL = [
    "max_steps=1",
    "run_name=files_touched",
    "sampling.prompts_per_step=2",
    "sampling.group_size=2",
    "sampling.micro_batch_size=2",
    "sampling.num_inference_steps=3",
    "optim.micro_batch_size=2",
    "evaluation={path: null}",
    "rewards.services={rules: {module: rules}}",
    "rewards.columns={color: {service: rules, reward: color_match}}",
    "data.train.0.rewards={color: 1.0}",
]


class Watch:
    """Notes which of our files are entered while `on` is set, and which of them by the thread that takes the step."""

    def __init__(self) -> None:
        self.on, self.files, self.main = False, set[str](), set[str]()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self.on and event == "call" and frame.f_code.co_filename.startswith(OURS):
            self.files.add(frame.f_code.co_filename)
            if threading.current_thread() is threading.main_thread():
                self.main.add(frame.f_code.co_filename)

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, watched."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.on = True
            try:
                return step(*args, **kwargs)
            finally:
                self.on = False

        return watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", default="trainer.programs.rl:RlProgram.step", help="module:function that is a step")
    module, _, path = parser.parse_args().step.partition(":")
    sys.path.insert(0, str(ROOT))
    from trainer.config import Config
    from trainer.config.file import load_config
    from trainer.loop import train

    owner: Any = importlib.import_module(module)
    *holders, name = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    watch = Watch()
    setattr(owner, name, watch.around(getattr(owner, name)))
    threading.setprofile(watch)
    sys.setprofile(watch)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(ROOT / "configs" / "quickstart.yaml", Config, [*SMALL, f"output_dir={folder}"])
        code = train(config)
    sys.setprofile(None)
    if code:
        sys.exit(code)
    for file in sorted(watch.files):
        print(
            f"{Path(file).relative_to(ROOT)}{'' if file in watch.main else '  (the reward client, in its own threads)'}"
        )
    print(f"{len(watch.main)} files in the thread of the step, {len(watch.files)} in all threads")


if __name__ == "__main__":
    main()
