"""A small Mixture-of-Transformers learns a handful of coloured squares: drawn from a text, edited, and after a thought."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.base import SamplingPlan
from trainer.policies.registry import build_policy
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.types import Prompt

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LIKE = {"blood": "red", "grass": "green", "sea": "blue"}
STEPS = 200


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows() -> dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]]:
    """Of each kind those that are trained on, 16 in all, and those that are not: words that were not seen together, or another edit."""
    words = ("draw", "one", "a")
    t2i = {(word, each): {"txt": f"{word} {each}", "image_path": f"{each}.png"} for word in words for each in COLOURS}
    unseen = set(zip(words, COLOURS, strict=True))  # each word and each colour is seen, these three together not
    edits = [
        {"instruction": f"make it {after}", "input_image": f"{before}.png", "output_image": f"{after}.png"}
        for before in COLOURS
        for after in COLOURS
        if before != after
    ]
    thoughts = [
        {"txt": f"{word} like {thing}", "Reasoning": f"it is {each}", "image_path": f"{each}.png"}
        for word in ("draw", "one")
        for thing, each in LIKE.items()
    ]
    return {
        "t2i": ([row for key, row in t2i.items() if key not in unseen], [t2i[key] for key in sorted(unseen)]),
        "edit": (edits[:5], edits[5:]),
        "t2i_reason": (thoughts[:5], thoughts[5:]),
    }


def recipe(folder: Path) -> Config:
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
    groups = []
    for kind, halves in rows().items():
        sets = []
        for name, half in zip(("trained", "unseen"), halves, strict=True):
            path = folder / f"{kind}_{name}.json"
            path.write_text(json.dumps(half))
            sets.append({"name": f"{kind}_{name}", "path": str(path), "format": kind, "held_out": name == "unseen"})
        groups.append({"name": kind, "sets": sets})
    words = ["draw", "one", "a", "make", "it", "is", "like", *COLOURS, *LIKE]
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 128}
    (folder / "think.txt").write_text("it is")
    tree: dict[str, Any] = {
        "run_name": "squares",
        "output_dir": str(folder / "outputs"),
        "program": "supervised",
        "max_steps": STEPS,
        "policy": {
            "type": "mot",
            "initialize": {**sizes, "image_size": 16, "words": words},
            "dtype": "float32",
            "max_latent_size": 8,
        },
        "packed": {
            "groups": groups,
            "expected_tokens": 400,
            "max_tokens": 600,
            "max_row_tokens": 200,
            "buffer_below": 200,
            "think_instruction": str(folder / "think.txt"),
            "noise": {"copies": 2, "shift": 3.0},
        },
        "optim": {"lr": 3e-3, "schedule": "cosine", "min_lr": 1e-4, "warmup_steps": 10, "ema_decay": 0.9},
        "evaluation": {"every": STEPS},
        "checkpoint": {"save_every": STEPS},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }
    path = folder / "squares.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_config(path, Config)


def colour_error(policy: MotPolicy) -> float:
    """Mean distance of what is drawn from the colour that is asked for, in [0, 255]."""
    prompts = [Prompt(each, f"draw {each}") for each in COLOURS]
    plan = SamplingPlan(num_inference_steps=10, micro_batch_size=12, shift=3.0)
    found = []
    for rollout in policy.sample(prompts, 4, list(range(12)), plan):
        for sample in rollout.samples:
            wanted = torch.tensor(COLOURS[sample.prompt.id], dtype=torch.float32)
            found.append((torch.from_numpy(sample.images[0]).float() - wanted).abs().mean().item())
    return sum(found) / len(found)


@pytest.mark.slow
def test_sixteen_coloured_squares_are_learnt_in_200_steps(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    assert sum(len(trained) for trained, _ in rows().values()) == 16
    assert train(config) == 0
    metrics = read_metrics(config.run_dir)
    first, last = metrics[0], metrics[-1]
    errors = [row["loss/mse"] for row in metrics if row.get("loss/mse") is not None]
    texts = [row["loss/ce"] for row in metrics if row.get("loss/ce") is not None]
    assert len(errors) == STEPS
    assert sum(errors[-10:]) <= 0.5 * sum(errors[:10]), "the training error falls by half"
    for level in ("0.25", "0.5", "0.75"):
        assert last[f"heldout/mse/{level}"] < first[f"heldout/mse/{level}"], level
    assert sum(texts[-10:]) < 0.5 * sum(texts[:10]) and last["heldout/ce"] < 0.5 * first["heldout/ce"]

    torch.manual_seed(config.seed)
    policy: MotPolicy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    before = colour_error(policy)
    trained = saved_weights(config.run_dir / "checkpoints" / f"step_{STEPS:06d}", "average")
    missing = policy.trainable.load_state_dict(trained, strict=False)
    assert not missing.unexpected_keys and all(name.endswith("pos_embed") for name in missing.missing_keys)
    after = colour_error(policy)
    print(
        f"MSE {errors[0]:.3f} to {sum(errors[-10:]) / 10:.3f}, CE {texts[0]:.3f} to {sum(texts[-10:]) / 10:.3f}, RGB error {before:.1f} "
        f"to {after:.1f}; held out: "
        + ", ".join(f"{key} {first[key]:.3f} to {last[key]:.3f}" for key in sorted(first) if key.startswith("heldout"))
    )
    assert after < 0.5 * before
