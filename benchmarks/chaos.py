"""A long run in which ranks, reward services and Redis are killed at random, beside one that is left alone.

    python benchmarks/chaos.py                 # 200 steps, two ranks, a SIGKILL every 20 s
    python benchmarks/chaos.py --steps 40 --every 10

Both runs train the quickstart from the same seed, through `train.sh`, against OCR and rules services that share a
Redis; a keeper brings back whatever dies, as `restart: always` does. One of them loses, every so many seconds, a random
one of: a rank, the OCR service, the rules service, Redis. Afterwards:

- quality: held-out rewards after the last step of both runs, and the difference paired by prompt with a 95 % interval;
- honesty: `rewards.tape` kept every answer with the hash of the picture it was given for. A third run, which nothing
  disturbs and no service answers, takes its rewards from that tape. Its weights must be the disturbed run's, bit for
  bit: then every reward that was trained on is the one its picture got, and none was made up, lost or dealt to another
  sample. Answers that failed are on the tape as failures; their number is shown.

Exits with 1 when the run does not finish, the weights differ, or the disturbed run is worse by more than the interval.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from trainer.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
PORTS = {"redis": 17390, "ocr": 17382, "rules": 17384}


def commands(folder: Path) -> dict[str, list[str]]:
    """What runs beside the trainer, by name."""
    redis_url = f"redis://127.0.0.1:{PORTS['redis']}/0"
    keep = ["--save", "", "--appendonly", "yes", "--dir", str(folder), "--logfile", str(folder / "redis.log")]
    service = [sys.executable, "-m"]
    return {
        "redis": ["redis-server", "--bind", "127.0.0.1", "--port", str(PORTS["redis"]), *keep],
        "ocr": [
            *service,
            "services.ocr",
            f"--port={PORTS['ocr']}",
            "--mode=line",
            "--workers=2",
            f"--redis={redis_url}",
        ],
        "rules": [*service, "services.rules", f"--port={PORTS['rules']}", f"--redis={redis_url}"],
    }


class Keeper:
    """Processes that come back whenever they end."""

    def __init__(self, wanted: Mapping[str, list[str]], folder: Path) -> None:
        self._wanted, self._folder = wanted, folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for process in self._processes.values():
            kill_tree(process.pid)

    def _keep(self) -> None:
        while not self._ending.wait(0.5):
            for name, command in self._wanted.items():
                process = self._processes.get(name)
                if process is None or process.poll() is not None:
                    with (self._folder / f"{name}.log").open("ab") as log:
                        self._processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """SIGKILL to the service and its worker processes."""
        kill_tree(self._processes[name].pid)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, at once."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def ranks(pid: int) -> list[psutil.Process]:
    """The trainer's rank processes below the launcher."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RANK" in process.environ() and process.cmdline()[1:4] and "trainer" in process.cmdline():
                    found.append(process)
    return found


def train(name: str, folder: Path, args: argparse.Namespace, tape: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start the run through train.sh."""
    overrides: dict[str, Any] = {
        "run_name": name,
        "output_dir": str(folder),
        "max_steps": args.steps,
        "sampling.prompts_per_step": args.prompts,
        "optim.micro_batch_size": 12,
        "rewards.launch": "none",
        "rewards.services": {
            service: {"urls": [f"http://127.0.0.1:{PORTS[service]}"], "timeout_s": 20.0} for service in ("ocr", "rules")
        },
        "rewards.columns": {
            "ocr": {"service": "ocr", "reward": "flow_grpo"},
            "color": {"service": "rules", "reward": "color_match"},
        },
        "rewards.tape": dict(tape),
        "evaluation.every": args.steps,
        "evaluation.final_rewards": [],
        "evaluation.rewards": ["ocr", "color"],
        "checkpoint.save_every": 5,
        "distributed.num_threads": 1,
        "logging": {"report_to": [], "progress": False, "report_every": 1_000_000},
    }
    command = ["bash", "train.sh", "configs/quickstart.yaml", *(f"{k}={json.dumps(v)}" for k, v in overrides.items())]
    environment = {**os.environ, "NGPUS": str(args.ranks), "MAX_RESTARTS": "10000", "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def disturb(process: subprocess.Popen[bytes], keeper: Keeper, args: argparse.Namespace) -> Counter[str]:
    """Kill something every so often until the run ends; who was killed how often."""
    rng, killed = random.Random(args.seed), Counter[str]()
    while True:
        try:
            process.wait(args.every)
            return killed
        except subprocess.TimeoutExpired:
            pass
        victim = rng.choice(("rank", "rank", "ocr", "rules", "redis"))
        if victim == "rank":
            alive = ranks(process.pid)
            if not alive:  # between a death and a restart
                continue
            with suppress(psutil.NoSuchProcess):
                os.kill(rng.choice(alive).pid, signal.SIGKILL)
        else:
            keeper.kill(victim)
        killed[victim] += 1
        print(f"  {time.strftime('%H:%M:%S')} killed {victim}", flush=True)


def outcome(run_dir: Path, step: int) -> dict[str, Any]:
    """What the tables need of a finished run."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == list(range(step + 1)), f"{run_dir} has the rows {steps}"
    return {
        "after": summary["eval"]["after"],
        "failed_rewards": summary["failed_by_reward"],
        "trained_share_min": min(row["adv/trained_share"] for row in rows if row["step"]),
        "scores": {
            (outcome["prompt_id"], name): value
            for outcome in map(json.loads, (run_dir / f"eval/step_{step:06d}/scores.jsonl").read_text().splitlines())
            for name, value in outcome["scores"].items()
        },
    }


def paired(disturbed: Mapping[Any, float | None], calm: Mapping[Any, float | None], name: str) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of the difference by prompt."""
    both = [key for key in calm if key[1] == name and calm[key] is not None and disturbed.get(key) is not None]
    differences = [float(disturbed[key] or 0) - float(calm[key] or 0) for key in both]
    return statistics.fmean(differences), 1.96 * statistics.stdev(differences) / len(differences) ** 0.5


def same_weights(one: Path, other: Path, step: int) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    checkpoints = [Checkpoint.open(run_dir / "checkpoints" / f"step_{step:06d}") for run_dir in (one, other)]
    return all(
        torch.equal(*(checkpoint.read(name)["weight"] for checkpoint in checkpoints)) for name in checkpoints[0].names
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=float, default=20.0, help="Seconds between kills.")
    parser.add_argument("--prompts", type=int, default=2, help="Prompts of a step, a multiple of the ranks.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="Of the choice of victims.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/chaos"))
    args = parser.parse_args()
    folder = args.folder.absolute()
    if folder.exists():
        parser.error(f"--folder {folder} is there already: name another, or delete it")
    folder.mkdir(parents=True)
    killed, seconds = Counter[str](), {}
    tapes = {"calm": {"mode": "off"}, "disturbed": {"mode": "record"}}
    tapes["replayed"] = {"mode": "replay", "path": str(folder / "disturbed" / "tape")}
    for name, tape in tapes.items():
        started = time.monotonic()
        wanted = {} if name == "replayed" else commands(folder)
        with Keeper(wanted, folder) as keeper:
            process = train(name, folder, args, tape)
            if name == "disturbed":
                killed = disturb(process, keeper, args)
            if process.wait():
                print((folder / f"{name}.log").read_text(errors="replace")[-3000:])
                raise SystemExit(f"{name}: the trainer ended with {process.returncode}")
        seconds[name] = time.monotonic() - started
        print(f"{name}: {args.steps} steps in {seconds[name]:.0f} s", flush=True)
    runs = {name: outcome(folder / name, args.steps) for name in ("calm", "disturbed")}
    identical = same_weights(folder / "disturbed", folder / "replayed", args.steps)
    rows, worse = [], False
    print(f"\nkilled: {dict(killed)}; failed scores: {runs['disturbed']['failed_rewards'] or 'none'}")
    print(f"least share of samples trained on in a step: {runs['disturbed']['trained_share_min']:.3f}")
    print(f"weights replayed from the tape, without services: {'identical' if identical else 'DIFFERENT'}")
    print("\n| held-out reward | left alone | disturbed | difference, 95 % |\n|---|---|---|---|")
    for reward in ("ocr", "color"):
        calm, disturbed = (runs[name]["after"][reward] for name in ("calm", "disturbed"))
        mean, half = paired(runs["disturbed"]["scores"], runs["calm"]["scores"], reward)
        worse |= mean + half < 0
        rows.append({"reward": reward, "calm": calm, "disturbed": disturbed, "difference": mean, "half_width": half})
        print(f"| {reward} | {calm:.3f} | {disturbed:.3f} | {mean:+.3f} ± {half:.3f} |")
    facts = {"killed": dict(killed), "seconds": seconds, "identical": identical, "steps": args.steps}
    write_results(ROOT / "outputs/benchmarks/chaos.json", "chaos", [facts, *rows])
    return 0 if identical and not worse else 1


if __name__ == "__main__":
    sys.exit(main())
