"""Small runs whose rows and weights are kept, so that a rebuild that must not move a number is held to the last bit.

`python -m tests.support.goldens` records them anew, which only a change that is meant to move them may do.
The quickstart's rewards come from tapes that were recorded with its real services; the other runs need none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "integration" / "goldens"
_CLOCKS = (
    "time/",
    "perf/",
    "memory/",
    "latency_ms/",
    "wait/",
    "reward_wait_share",
    "images_per_s",
    "tokens_per_s",
    "texts_per_s",
    "packs_per_s",
    "cached/",
)

_SMALL: dict[str, Any] = {
    "seed": 3,
    "max_steps": 3,
    "policy": {"type": "tiny", "num_layers": 2, "num_heads": 2, "head_dim": 16},
    "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8, "num_inference_steps": 3},
    "rewards": {
        "launch": "local",
        "services": {"rules": {"module": "rules"}},
        "columns": {
            "color": {"service": "rules", "reward": "color_match"},
            "small": {"service": "rules", "reward": "jpeg_compressibility"},
        },
    },
    "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"color": 1.0, "small": 0.5}}]},
    "optim": {"lr": 1e-3},
    "distributed": {"num_threads": 1},
    "evaluation": {},
    "checkpoint": {"save_every": 100},
    "logging": {"report_every": 1000, "report_to": []},
}

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow_grpo": {
        "objective": {"kl_beta": 0.05, "clip_range": 0.001},
        "advantage": {"type": "grpo", "std_floor": 0.2},
        "optim": {"lr": 1e-3, "micro_batch_size": 4, "warmup_steps": 2, "ema_decay": 0.5, "updates_per_rollout": 2},
    },
    "latent_kl": {
        "objective": {"kl_beta": 0.02, "kl_type": "latent"},
        "sampling": {"kind": "flow_sde", "guidance_scale": 2.0, "num_inference_steps": 4, "sde_window": [0, 2]},
    },
    "grpo_guard": {
        "objective": {"type": "grpo_guard", "guard_reweight": True},
        "optim": {"updates_per_rollout": 2},
        "sampling": {"kind": "dance_sde", "noise_level": 0.3},
    },
    "diffusion_nft": {
        "objective": {
            "type": "diffusion_nft",
            "old_decay": 0.5,
            "old_decay_steps": 2,
            "timestep_draws": 2,
            "kl_beta": 0.01,
        },
        "sft": {"path": "CAPTIONS", "batch_size": 2, "coef": 0.1},
        "optim": {"lr": 1e-3, "schedule": "linear"},
    },
    "awm": {"objective": {"type": "awm", "timestep_draws": 2, "timestep_distribution": "logit_normal"}},
    "diffusion_dpo": {"objective": {"type": "diffusion_dpo", "dpo_beta": 10.0, "kl_beta": 0.1}},
    "one_step_off": {
        "objective": {"importance_cap": 2.0},
        "advantage": {"type": "dr_grpo"},
        "sampling": {"pipeline": "one_step_off", "same_noise": True, "sde_window": [1, 2]},
    },
}

RUNS = {**_OBJECTIVES, "two_ranks": _OBJECTIVES["flow_grpo"], "zero": _OBJECTIVES["flow_grpo"]}
"""Every small run by name. `two_ranks` and `zero` (stage 2) are started with two ranks."""

QUICKSTARTS = {
    "quickstart_short": [
        "max_steps=2",
        "sampling.prompts_per_step=2",
        "optim.micro_batch_size=12",
        "evaluation.path=null",
        "evaluation.final_rewards=[]",
        "evaluation.rewards=[]",
    ],
    **{f"quickstart_{seed}": [f"seed={seed}", "max_steps=5"] for seed in (1, 2, 3)},
}
"""Overrides of configs/quickstart.yaml, by name."""


def machine() -> dict[str, str]:
    """What the last bits of a sum depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "cpu": model}


def small_config(name: str, folder: Path) -> Path:
    """The recipe of a small run, written to `folder`."""
    config = {**_SMALL, "run_name": name, "output_dir": str(folder)}
    for section, changes in RUNS[name].items():
        config[section] = {**config.get(section, {}), **changes}
    if "sft" in config:
        config["sft"]["path"] = str(_captions(folder))
    if name == "zero":
        stage = folder / "zero.json"
        stage.write_text(json.dumps({"zero_optimization": {"stage": 2}}), encoding="utf-8")
        config["distributed"] = {**config["distributed"], "deepspeed": str(stage)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _captions(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    rows = []
    for number, (word, color, shade) in enumerate([("CAT", "blue", 90), ("HUT", "red", 160), ("TEA", "green", 40)]):
        pixels = np.full((24, 48, 3), shade, np.uint8)
        pixels[6 + number : 14, 8 : 30 + number] = 220
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image_path": f"{number}.png", "txt": f'the word "{word}" in {color}'})
    path = folder / "captions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """The command line of a run."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return [*launcher, "trainer", "train", str(config), *overrides]


def outcome(run_dir: Path) -> dict[str, Any]:
    """A run's rows without what a clock measured, and a digest of its last weights and their averages."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if not k.startswith(_CLOCKS)} for line in lines]
    checkpoint = Checkpoint.open(max((run_dir / "checkpoints").glob("step_*")))
    digest = hashlib.sha256()
    for name in sorted(checkpoint.names):
        tensors = checkpoint.read(name)
        for kind in ("weight", "average"):
            digest.update(f"{name} {kind}".encode() + tensors[kind].contiguous().numpy().tobytes())
    return {"rows": rows, "weights": digest.hexdigest()}


def write(name: str, result: dict[str, Any]) -> None:
    text = json.dumps({"machine": machine(), **result}, indent=1)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return kept


def unpack_tape(name: str, folder: Path) -> Path:
    """The tape of a quickstart, as a folder that `rewards.tape.path` can name."""
    tape = folder / f"tape_{name}"
    tape.mkdir()
    (tape / "rank_0.jsonl").write_bytes(gzip.decompress((FOLDER / f"{name}.tape.gz").read_bytes()))
    return tape


def replay_overrides(name: str, folder: Path) -> list[str]:
    """What makes a quickstart again from its tape."""
    tape = unpack_tape(name, folder)
    return [
        *QUICKSTARTS[name],
        f"output_dir={folder}",
        f"run_name={name}",
        "distributed.num_threads=1",
        "rewards.tape.mode=replay",
        f"rewards.tape.path={tape}",
    ]


def _record(folder: Path, names: list[str]) -> None:
    for name in RUNS:
        if names and name not in names:
            continue
        ranks = 2 if name in ("two_ranks", "zero") else 1
        subprocess.run(command(small_config(name, folder), ranks=ranks), cwd=ROOT, check=True)
        write(name, outcome(folder / name))
    for name, overrides in QUICKSTARTS.items():
        if names and name not in names:
            continue
        recorded = [*overrides, f"output_dir={folder}", f"run_name={name}", "distributed.num_threads=1"]
        quickstart = ROOT / "configs" / "quickstart.yaml"
        subprocess.run(command(quickstart, *recorded, "rewards.tape.mode=record"), cwd=ROOT, check=True)
        write(name, outcome(folder / name))
        tape = (folder / name / "tape" / "rank_0.jsonl").read_bytes()
        (FOLDER / f"{name}.tape.gz").write_bytes(gzip.compress(tape, mtime=0))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        _record(Path(scratch), sys.argv[1:])
        shutil.rmtree(scratch, ignore_errors=True)
        Path(scratch).mkdir()
