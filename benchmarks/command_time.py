"""CPU seconds of the command `rewards` where it only says something, and of what an importer waits for.

    python benchmarks/command_time.py [--rounds 20]

Each line is a process of its own, started as often as `--rounds` says; the bare interpreter is measured beside them in turn.
Exits with 1 where `rewards --help` takes 0.3 CPU seconds or more (the median), or imports torch or pydantic.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_S = 0.3
CASES = {
    "python": ["-c", "pass"],
    "rewards --help": ["-m", "rewards", "--help"],
    "rewards serve orc": ["-m", "rewards", "serve", "orc"],
    "rewards recipes": ["-m", "rewards", "recipes"],
    "rewards completion bash": ["-m", "rewards", "completion", "bash"],
    "rewards train --help": ["-m", "rewards", "train", "--help"],
    "import rewards": ["-c", "import rewards"],
    "import wire.client": ["-c", "import wire.client"],
    "rewards score --help": ["-m", "rewards", "score", "--help"],
}


def cpu_s(words: list[str]) -> float:
    """User and system seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", *words], env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported() -> set[str]:
    """The packages that `rewards --help` imports."""
    words = ["-P", "-X", "importtime", "-m", "rewards", "--help"]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/benchmarks/command_time.json")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds):
        for name, words in CASES.items():
            seconds[name].append(cpu_s(words))
    print("| process | CPU seconds, median | least | most |\n|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    heavy = imported() & {"torch", "pydantic"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"seconds": seconds, "heavy": sorted(heavy)}, indent=1) + "\n", encoding="utf-8")
    if heavy:
        print(f"rewards --help imports {', '.join(sorted(heavy))}", file=sys.stderr)
    return int(bool(heavy) or statistics.median(seconds["rewards --help"]) >= MOST_S)


if __name__ == "__main__":
    sys.exit(main())
