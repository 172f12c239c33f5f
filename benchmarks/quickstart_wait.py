"""How long the quickstart stands still for rewards, with the gradient of scored groups computed meanwhile and after all scores.

    python benchmarks/quickstart_wait.py
    python benchmarks/quickstart_wait.py --repeats 1 --steps 3

Whole runs of configs/quickstart.yaml with their services, with `optim.early_gradient` off and on in turn. Printed are medians over the
runs of `reward_wait_share` (a run's seconds of waiting by its seconds of training steps), and of its steps the medians of what a step takes and what
of its update is hidden. Exits with 1 when the median share is not halved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, name: str, early: bool, steps: int) -> dict[str, float]:
    """What one run says of its waiting."""
    overrides = {
        "run_name": name,
        "output_dir": str(folder),
        "max_steps": steps,
        "optim.early_gradient": early,
        "evaluation": {},
        "checkpoint.save_every": 1_000_000,
        "logging": {"report_to": [], "progress": False, "report_every": 1_000_000},
    }
    command = [sys.executable, "-m", "trainer", "train", "configs/quickstart.yaml"]
    command += [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := json.loads(line))["step"] > 1]  # the first step gives rewards their spread
    keys = {"step_s": "time/total", "update_s": "time/update", "hidden_s": "time/update_hidden", "cpu_s": "time/cpu"}
    middles = {name: statistics.median(row[key] for row in rows) for name, key in keys.items()}
    return {"share": summary["reward_wait_share"], **middles}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each kind, in turn.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/quickstart_wait.json"))
    args = parser.parse_args()
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for early in (False, True) if repeat % 2 == 0 else (True, False):
                found[early].append(run(Path(folder), f"{early}_{repeat}", early, args.steps))
                print(json.dumps({"early_gradient": early, **found[early][-1]}), flush=True)
    print(
        "\n| early_gradient | reward_wait_share | step s | update s | of it hidden s | CPU s a step |\n|---|---|---|---|---|---|"
    )
    for early, runs in found.items():
        cells = [
            f"{statistics.median(each[key] for each in runs):.3f}"
            for key in ("share", "step_s", "update_s", "hidden_s", "cpu_s")
        ]
        print(f"| {early} | {' | '.join(cells)} |")
    write_results(
        args.out, "quickstart_wait", [{"early": early, **each} for early, runs in found.items() for each in runs]
    )
    before, after = (statistics.median(each["share"] for each in found[early]) for early in (False, True))
    return int(after > before / 2)


if __name__ == "__main__":
    sys.exit(main())
