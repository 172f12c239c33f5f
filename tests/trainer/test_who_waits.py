"""Every estimator beside every objective: whose updates wait for the last score, and that a run says so and why."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.advantages import ESTIMATORS
from trainer.config import Config
from trainer.objectives import OBJECTIVES
from trainer.objectives.tokens.policy import TOKENS
from trainer.programs.early import APART, goes_apart, why_waits
from trainer.programs.rl import RlProgram

TREE: dict[str, Any] = {
    "run_name": "x",
    "max_steps": 1,
    "policy": {"type": "tiny"},
    "rewards": {"services": {"x": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"x": {"service": "x"}}},
    "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"x": 1.0}}]},
}
TASK = {"group_size": 2, "micro_batch_size": 2, "rewards": {"x": 1.0}}
TASKS: dict[str, Any] = {
    "policy": {"type": "janus", "pretrained": "p"},
    "data": {"train": [{"path": "assets/quickstart/train.jsonl", "format": "pairs"}]},
    "sampling": {"prompts_per_step": 2, "tasks": {"understand": TASK, "generate": TASK}},
}
ALWAYS = {"early_gradient": "always"}
BY_GROUP, BY_BATCH = ("grpo", "dr_grpo"), ("gdpo", "grpo_global_std")
UNSCALED = {"diffusion_nft", "diffusion_dpo", "own", "own_forward"}


def config_of(**changes: Any) -> Config:
    return Config.model_validate({**TREE, **changes})


@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("advantage", ESTIMATORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_every_estimator(objective: str, advantage: str, kl_beta: float) -> None:
    """`auto` and `always` differ only where a KL stands beside a factor of the batch."""
    code = {"code": "mine.py:mine"} if objective.startswith("own") else {}
    section = {"type": objective, "kl_beta": kl_beta, **code}
    policy: dict[str, Any] = {"policy": {"type": "vlm", "pretrained": "p"}} if objective in TOKENS else {}
    policy |= {"sampling": {"kind": "flow_sde"}} if objective == "grpo_guard" else {}
    found = {}
    for early in ("auto", "always", "never"):
        config = config_of(objective=section, advantage={"type": advantage}, optim={"early_gradient": early}, **policy)
        found[early] = why_waits(config)
        assert goes_apart(config) == (
            early == "always" and found[early] is None and bool(kl_beta) and advantage in BY_BATCH
        )
    assert found["never"] == "optim.early_gradient is never"
    if advantage not in (*BY_GROUP, *BY_BATCH):
        expected = f"{advantage} compares samples of different groups"
    elif objective in UNSCALED:
        expected = f"{objective} need not scale with the advantage"
    elif kl_beta and advantage in BY_BATCH:
        assert found["always"] is None
        assert re.search(f"kl_beta .* {advantage} .*early_gradient = always", found["auto"] or ""), found
        return
    else:
        expected = ""
    for early in ("auto", "always"):
        assert (found[early] is None) == (not expected), found
        assert expected in (found[early] or "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"advantage": {"type": "gdpo", "std_floor": 0.3}}, None),
        (
            {"advantage": {"type": "grpo_global_std", "std_floor": 0.3}},
            "std_floor with advantage.type = grpo_global_std",
        ),
        ({"objective": {"type": "awm", "old_decay": 0.5}}, "old_decay the averaged weights look"),
        (
            {"objective": {"kl_beta": 0.1}, "distributed": {"deepspeed": "configs/deepspeed/zero2.json"}},
            "deepspeed keeps one gradient",
        ),
        (
            {
                "objective": {"kl_beta": 0.1},
                "distributed": {"deepspeed": "configs/deepspeed/zero2.json"},
                "optim": ALWAYS,
            },
            "deepspeed keeps one",
        ),
        ({"distributed": {"deepspeed": "configs/deepspeed/zero2.json"}}, None),
        ({"sampling": {"max_resamples": 1}}, "max_resamples exchanges groups"),
        ({"rewards": {**TREE["rewards"], "shuffle_control": True}}, "shuffle_control deals scores out"),
        ({"sft": {"path": "rows.jsonl"}}, "supervised loss of sft"),
        ({"optim": {"early_gradient": False}}, "early_gradient is never"),
        ({"optim": {"early_gradient": True}}, None),
        (TASKS, "losses of sampling.tasks have a factor each"),
        ({**TASKS, "optim": ALWAYS}, "losses of sampling.tasks have a factor each"),
    ],
)
def test_what_else_waits(changes: dict[str, Any], reason: str | None) -> None:
    found = why_waits(config_of(**changes))
    assert (found is None) == (reason is None), found
    assert re.search(reason or "", found or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"objective": {"kl_beta": 0.1}}, ["An update waits for its step's last score: objective.kl_beta"]),
        ({"objective": {"kl_beta": 0.1}, "optim": ALWAYS}, [APART]),
        (TASKS, ["An update waits for its step's last score: the losses of sampling.tasks"]),
    ],
)
def test_a_run_says_it_when_it_begins(
    changes: dict[str, Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.programs.rl.prove_on_prompts", lambda *_: None)
    config, notes = config_of(**changes), list[str]()
    session: Any = SimpleNamespace(
        config=config,
        scorers=SimpleNamespace(changed=[]),
        world=SimpleNamespace(is_main=True),
        recorder=SimpleNamespace(note=notes.append),
    )
    program = RlProgram.__new__(RlProgram)
    program.session, program.sampler = session, cast(Any, None)
    program.waits, program.goes_apart = why_waits(config), goes_apart(config)
    program.begin()
    told = [note for note in notes if not note.startswith("old_logp")]
    assert len(told) == len(said) and all(map(str.startswith, told, said)), notes
