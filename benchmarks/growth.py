"""What grows with a run, in two checkouts of this project that take turns: CPU seconds and memory of each part.

    python benchmarks/growth.py --before ../before --after .
    python benchmarks/growth.py --before ../before --after . --parts gdpo resume --rounds 5 --scale 0.1

- `gdpo`: advantages of 160,000 scores (40,000 samples in groups of 16, four rewards, 5 % of them missing), one thread. `plain` is the same
  arithmetic in torch that knows neither missing scores nor an order of its sums.
- `resume`: a recorder on a folder with 100,000 rows of 50 numbers, that goes on from row 99,990.
- `prompts`: a prompt file of 1,000,000 lines read, checked and laid in the order of the first epoch; also the growth of the peak of
  resident memory, pages of files in it. `prompts_other_rank`: the same on a rank of the node that comes after the one that reads, or
  at a later start; `jsonl` and `jsonl_other_rank`: with targets and metadata.

Each measurement is a process of its own, and which checkout begins a round alternates; printed are medians over the rounds and the median of
the rounds' ratios. CPU time is the process's own (`time.process_time`), so that a busy machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PLAIN = "plain"  # a side of `gdpo`: no checkout's code


def gdpo(folder: Path, scale: float, plain: bool) -> float:
    """CPU seconds of one call, the median of five."""
    import torch

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    groups, size, rewards = int(2500 * scale), 16, 4
    scores_BR = torch.rand(groups * size, rewards, generator=draw)
    valid_BR = torch.rand(scores_BR.shape, generator=draw) >= 0.05
    group_B, weights_BR = torch.arange(groups * size) // size, torch.ones_like(scores_BR)

    def without_missing() -> object:
        scores_GNR = scores_BR.double().view(groups, size, rewards)
        z = (scores_GNR - scores_GNR.mean(1, keepdim=True)) / (scores_GNR.std(1, keepdim=True) + 1e-4)
        mixed_B = z.sum(2).flatten()
        return (mixed_B - mixed_B.mean()) / (mixed_B.std() + 1e-4)

    def ours() -> object:
        from trainer.advantages import gdpo as estimate

        return estimate(scores_BR, valid_BR, group_B, weights_BR)

    return _median_of(without_missing if plain else ours)


def resume(folder: Path, scale: float) -> float:
    """CPU seconds until a recorder is ready to write."""
    from trainer.config import LoggingConfig
    from trainer.records.recorder import Recorder

    count = int(100_000 * scale)
    names = [
        "grad_norm",
        "reward/ocr/mean",
        "reward/ocr/std",
        "adv/ocr/zero_group_share",
        *(f"x/{n}" for n in range(46)),
    ]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(count):
            row = {"step": step} | {name: (step * 7919 + n) % 1000 / 997 for n, name in enumerate(names)}
            file.write(json.dumps(row) + "\n")
    logging = LoggingConfig(report_to=[], progress=False)
    started = time.process_time()
    recorder = Recorder(
        folder, config_yaml="{}", is_main=True, resume_step=count - 10, max_steps=2 * count, logging=logging
    )
    took_s = time.process_time() - started
    recorder.close()
    return took_s


def prompts(folder: Path, scale: float, suffix: str = ".txt", *, first: bool = True) -> float:
    """CPU seconds until the first step can draw its prompts, on the rank that is first to read the file, or on another of its node."""
    path = folder / f"train{suffix}"
    with path.open("w") as file:
        for n in range(int(1_000_000 * scale)):
            text = f"a photo of {n} {n * 7919 % 100_003} lamps beside a door"
            row = {"prompt": text, "targets": [f"SALE {n}"], "metadata": {"kind": "lamp", "n": n}}
            file.write(f"{text if suffix == '.txt' else json.dumps(row)}\n")
    if not first and (other := os.fork()) == 0:
        _draw(path)
        os._exit(0)
    if not first and os.waitpid(other, 0)[1]:
        raise SystemExit("the rank that reads failed")
    return _draw(path)


def _draw(path: Path) -> float:
    from trainer.config import DataConfig
    from trainer.data.datasets import load_train_prompts

    try:
        from trainer.data.sampler import PromptSampler
    except ImportError:  # a checkout whose ranks all read
        from trainer.data.datasets import PromptSampler

        load: Callable[..., Any] = load_train_prompts
    else:
        load = partial(load_train_prompts, cache=path.parent / "cache")
    config = DataConfig.model_validate({"train": [{"path": str(path), "rewards": {"ocr": 1.0}}]})
    started = time.process_time()
    sampler = PromptSampler(load(config), prompts_per_step=8, seed=0, rank=0, world=1)
    sampler.draw()
    return time.process_time() - started


PARTS: dict[str, Callable[[Path, float], float]] = {
    "gdpo": lambda folder, scale: gdpo(folder, scale, plain=False),
    "resume": resume,
    "prompts": prompts,
    "prompts_other_rank": partial(prompts, first=False),
    "jsonl": partial(prompts, suffix=".jsonl"),
    "jsonl_other_rank": partial(prompts, suffix=".jsonl", first=False),
}


def _median_of(work: Callable[[], object], times: int = 5) -> float:
    took = []
    for _ in range(times):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return statistics.median(took)


def child(part: str, side: str, checkout: Path, scale: float) -> None:
    """Measure in this process, with the code of `checkout`; print the CPU seconds and the growth of the peak memory in MB as JSON."""
    sys.path.insert(0, str(checkout))
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took_s = gdpo(Path(folder), scale, plain=True) if side == PLAIN else PARTS[part](Path(folder), scale)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"cpu_s": took_s, "grown_mb": grown}))


def measure(part: str, side: str, checkout: Path, scale: float) -> dict[str, float]:
    # -P: neither this folder nor the current one is on the path, so the child imports the checkout and nothing else.
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", part, side, str(checkout)]
    done = subprocess.run(
        [*command, "--scale", str(scale)],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{part} in {checkout} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(part: str, checkouts: dict[str, Path], rounds: int, scale: float) -> dict[str, Any]:
    """All rounds of a part; prints its row of the table."""
    sides = checkouts | ({PLAIN: checkouts["after"]} if part == "gdpo" else {})
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found[side].append(measure(part, side, sides[side], scale))
    cpu_s = {side: [each["cpu_s"] for each in rows] for side, rows in found.items()}
    ratio = statistics.median(before / after for before, after in zip(cpu_s["before"], cpu_s["after"], strict=True))
    told = [f"{statistics.median(cpu_s[side]):.4f}" if side in cpu_s else "" for side in ("before", "after", PLAIN)]
    grown = [statistics.median(each["grown_mb"] for each in found[side]) for side in ("before", "after")]
    print(f"| {part} | {' | '.join(told)} | {ratio:.2f} | {grown[0]:.0f} | {grown[1]:.0f} |", flush=True)
    return {"rounds": found, "ratio": ratio}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--before", type=Path, help="A checkout of the code before.")
    parser.add_argument("--after", type=Path, default=Path(), help="A checkout of the code after.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="Of all sizes; below 1 to rehearse.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/growth.json"))
    parser.add_argument("--child", nargs=3, metavar=("PART", "SIDE", "CHECKOUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], Path(args.child[2]), args.scale)
        return 0
    if args.before is None:
        parser.error("give --before")
    checkouts = {"before": args.before.resolve(), "after": args.after.resolve()}
    print("| part | before CPU s | after CPU s | plain torch CPU s | before / after | before MB | after MB |")
    print("|---|---|---|---|---|---|---|")
    found = {part: compare(part, checkouts, args.rounds, args.scale) for part in args.parts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
