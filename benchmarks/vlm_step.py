"""The small VLM's GRPO step beside TRL's GRPOTrainer: CPU seconds a step, tokens a CPU second, held-out accuracy over CPU time.

    python benchmarks/vlm_step.py                            # 100 steps of each, seeds 1 2 3, on an idle machine
    python benchmarks/vlm_step.py --steps 4 --seeds 1 --snapshots 2 4     # whether it runs

Both train assets/vlm_base on the quickstart's questions with the same two rewards, 16 x 12 answers of at most 20 tokens, vision
frozen, AdamW at a constant rate, one thread; the two take turns, and which begins alternates. TRL 1.16.0 runs in an environment of
its own, .venv-trl, which sees this one's torch and transformers, so that both compute with the same. Ours is
`python -m trainer train configs/vlm_quickstart.yaml` without evaluations; its rewards go over HTTP to the rules service, and the
service's CPU time is a column of its own. TRL calls the same functions in its process. Imports and set-up are in no number: a step is
what lies between two optimizer steps, and the first is left out.

Weights at the steps `--snapshots` are scored afterwards on the held-out questions, both by the same sampling and seeds, at temperature 1
and greedily; that is in no CPU time. Our loop is also run beside `generate()` on the same 192 rows, and their greedy tokens are compared.

Exits with 1 where greedy tokens differ, a step of TRL costs less than 4 of ours, or `generate()` makes more than 1 / 2.5 of our tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRL = "1.16.0"
DATASETS = "5.2.0"
RECIPE, BASE, QUESTIONS = "configs/vlm_quickstart.yaml", ROOT / "assets/vlm_base", ROOT / "assets/vlm_quickstart"
SAMPLES = 192
LEAST_STEP, LEAST_TOKENS = 4.0, 2.5


def environment(folder: Path) -> Path:
    """The Python of an environment with TRL, which is made where it is missing."""
    python = folder / "bin" / "python"
    check = f"import trl, datasets; assert trl.__version__ == {TRL!r}"
    if python.exists() and not subprocess.run([python, "-c", check], capture_output=True, check=False).returncode:
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "base.pth").write_text(
        ours + "\n"
    )  # pip sees what is there, and changes nothing outside its own folder
    subprocess.run([python, "-m", "pip", "install", "-q", f"trl=={TRL}", f"datasets=={DATASETS}"], check=True)
    return python


def ours(steps: int, seed: int, lr: float, snapshots: Sequence[int], out: Path) -> None:
    """Train the recipe in this process; write weights at the steps `snapshots`, and CPU seconds and tokens as JSON."""
    import psutil
    import torch

    import trainer.policies.tokens.policy as policies
    from trainer.policies.tokens.llama.drawer import LlamaDrawer

    kept: dict[str, Any] = {"cpu": [], "services": [], "paused": 0.0, "generate_s": 0.0, "tokens": 0}
    networks: list[Any] = []
    me, made, draw = psutil.Process(), policies.TokenPolicy.__init__, LlamaDrawer.draw

    def built(self: Any, model: Any, **given: Any) -> None:
        networks.append(model.network)
        made(self, model, **given)

    def counted(self: Any, *args: Any) -> Any:
        begun = time.process_time()
        found = draw(self, *args)
        kept["generate_s"] += time.process_time() - begun
        kept["tokens"] += sum(len(answer.tokens_S) for answer in found)
        return found

    class Stamping(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().step(*args, **kwargs)
            kept["cpu"].append(time.process_time() - kept["paused"])
            times = [child.cpu_times() for child in me.children(recursive=True)]
            kept["services"].append(sum(each.user + each.system for each in times))
            if len(kept["cpu"]) in snapshots:
                begun = time.process_time()
                torch.save(networks[0].state_dict(), out / f"step{len(kept['cpu'])}.pt")
                kept["paused"] += time.process_time() - begun
            return result

    policies.TokenPolicy.__init__, LlamaDrawer.draw = built, counted  # type: ignore[method-assign]
    torch.optim.AdamW = Stamping  # type: ignore[misc]
    fields = {
        "max_steps": steps,
        "seed": seed,
        "output_dir": out / "runs",
        "evaluation": {},
        "logging": "{report_to: [], report_every: 100000}",
        "distributed.num_threads": 1,
        "rewards.ready_timeout_s": 1200,
        "optim": f"{{lr: {lr}, betas: [0.9, 0.99], warmup_steps: 5, schedule: constant, ema_decay: 0.0}}",
    }
    sys.argv = ["trainer", "train", RECIPE, *(f"{name}={value}" for name, value in fields.items())]
    try:
        runpy.run_module("trainer", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    (out / "run.json").write_text(json.dumps(kept))


def held_out(snapshots: Sequence[Path]) -> list[dict[str, float]]:
    """Accuracy of each snapshot on the held-out questions: sampled at temperature 1, and greedy."""
    import torch

    from services.kit.scorer import Item, Score
    from services.rules import answers
    from trainer.policies.tokens.draw import TokenPlan
    from trainer.policies.tokens.llama.drawer import LlamaDrawer

    model, prompts = policy_model()
    readings = [model.read(prompt) for prompt in prompts]
    found = []
    for path in snapshots:
        network: Any = model.network
        network.load_state_dict(torch.load(path, weights_only=True))
        row = {}
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            plan = TokenPlan(micro_batch_size=len(prompts), max_new_tokens=20, temperature=temperature)
            drawn = LlamaDrawer(model).draw(readings, 1, range(len(prompts)), plan)
            results = [
                answers.answer(Item("", "", completion=model.decode(answer.tokens_S), targets=prompt.targets))
                for answer, prompt in zip(drawn, prompts, strict=True)
            ]
            row[name] = statistics.fmean(result.value for result in results if isinstance(result, Score))
        found.append(row)
    return found


def policy_model() -> tuple[Any, list[Any]]:
    """The base as the recipe builds it, and the held-out prompts."""
    import torch

    from trainer.config import Config
    from trainer.config.file import load_config
    from trainer.policies.registry import build_model
    from trainer.programs.rl import read_material

    config = load_config(ROOT / RECIPE, Config)
    return build_model(config.policy, torch.device("cpu")), list(read_material(config).sets[0].prompts)


def sampling(rounds: int) -> dict[str, Any]:
    """Tokens a CPU second of our loop and of `generate()`, taking turns on the same rows, and whether greedy tokens are equal."""
    import torch

    from trainer.policies.tokens.draw import TokenPlan
    from trainer.policies.tokens.llama.drawer import LlamaDrawer

    torch.set_num_threads(1)
    model, prompts = policy_model()
    readings = [model.read(prompt) for prompt in prompts[:16]]
    batch = model.collate([reading for reading in readings for _ in range(12)])
    network, ends = model.network, torch.tensor(model.ends)
    given = {"pad_token_id": model.pad_id, "suppress_tokens": model.banned_N.tolist(), "max_new_tokens": 20}

    def generated(inputs: Any, **how: Any) -> list[list[int]]:
        with torch.no_grad():
            written = network.generate(**inputs, **given, **how)[:, inputs["input_ids"].shape[1] :]
        is_end = torch.isin(written, ends)
        lengths = ((is_end.int().cumsum(1) - is_end.int()) == 0).sum(1).tolist()
        return [row[:length] for row, length in zip(written.tolist(), lengths, strict=True)]

    greedy = TokenPlan(micro_batch_size=16, max_new_tokens=20, temperature=0.0)
    mine = [answer.tokens_S.tolist() for answer in LlamaDrawer(model).draw(readings, 1, range(16), greedy)]
    same = mine == generated(model.collate(readings), do_sample=False)
    plan = TokenPlan(micro_batch_size=SAMPLES, max_new_tokens=20)
    speed: dict[str, list[float]] = {"loop": [], "generate": []}
    for number in range(rounds + 1):
        for side, counts in speed.items():
            begun = time.process_time()
            if side == "loop":
                drawn = LlamaDrawer(model).draw(readings, 12, range(number * SAMPLES, (number + 1) * SAMPLES), plan)
                count = sum(len(answer.tokens_S) for answer in drawn)
            else:
                count = sum(map(len, generated(batch, do_sample=True)))
            if number:  # the first round warms up
                counts.append(count / (time.process_time() - begun))
    return {"same": same, **{side: statistics.median(each) for side, each in speed.items()}}


def child(python: Path | str, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def train_both(args: argparse.Namespace, python: Path, work: Path) -> list[dict[str, Any]]:
    """A row for each run: median CPU seconds of a step, tokens a CPU second of sampling, held-out accuracy over CPU time."""
    rows = []
    for number, seed in enumerate(args.seeds):
        sides = ["ours", "trl"] if number % 2 == 0 else ["trl", "ours"]
        for side in sides:
            out = work / f"{side}{seed}"
            out.mkdir()
            common = ["--steps", str(args.steps), "--seed", str(seed), "--lr", str(args.lr), "--out", str(out)]
            common += ["--snapshots", *map(str, args.snapshots)]
            if side == "ours":
                child(sys.executable, ["benchmarks/vlm_step.py", "--child", *common])
            else:
                files = ["--base", str(BASE), "--data", str(QUESTIONS / "train.jsonl")]
                child(python, ["benchmarks/vlm_trl.py", *files, *common])
            run = json.loads((out / "run.json").read_text())
            steps = [later - earlier for earlier, later in itertools.pairwise(run["cpu"])]
            serving = [later - earlier for earlier, later in itertools.pairwise(run.get("services", [0.0, 0.0]))]
            accuracy = held_out([out / f"step{step}.pt" for step in args.snapshots])
            begun = run.get("begun", run["cpu"][0] - statistics.median(steps))
            rows.append(
                {
                    "side": side,
                    "seed": seed,
                    "step_s": statistics.median(steps),
                    "service_s": statistics.median(serving),
                    "tokens_per_s": run["tokens"] / run["generate_s"],
                    "curve": [
                        {"step": step, "cpu_s": run["cpu"][step - 1] - begun, **each}
                        for step, each in zip(args.snapshots, accuracy, strict=True)
                    ],
                }
            )
            print(line_of(rows[-1]), flush=True)
    return rows


def line_of(row: dict[str, Any]) -> str:
    curve = ", ".join(f"{each['sampled']:.3f} / {each['greedy']:.3f} ({each['cpu_s']:.0f} s)" for each in row["curve"])
    return f"| {row['side']} | {row['seed']} | {row['step_s']:.3f} | {row['service_s']:.3f} | {row['tokens_per_s']:.0f} | {curve} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--snapshots", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--rounds", type=int, default=10, help="Rollouts of our loop and of generate() side by side.")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-trl", help="Where TRL is, or is installed.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/vlm_step.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        ours(args.steps, args.seed, args.lr, args.snapshots, args.out)
        return 0
    if max(args.snapshots) > args.steps or args.steps < 3:
        parser.error("--snapshots must lie within --steps, which must be at least 3")
    python = environment(args.environment)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread; python {' '.join(sys.argv)}\n"
    )
    print("| run | seed | CPU s a step | of the service | tokens a CPU s | sampled / greedy (after CPU s) |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = train_both(args, python, Path(folder))
    beside = sampling(args.rounds)
    step = {side: statistics.median([row["step_s"] for row in rows if row["side"] == side]) for side in ("ours", "trl")}
    cheaper, faster = step["trl"] / step["ours"], beside["loop"] / beside["generate"]
    print(f"\nA step of TRL costs {cheaper:.2f} of ours.")
    print(f"Our loop: {beside['loop']:.0f} tokens a CPU s, generate(): {beside['generate']:.0f}; {faster:.2f} times.")
    print(f"Greedy tokens are {'equal' if beside['same'] else 'NOT equal'}.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows, "sampling": beside, "cheaper": cheaper}, indent=1) + "\n")
    return int(not beside["same"] or cheaper < LEAST_STEP or faster < LEAST_TOKENS)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
