"""The rewards of both programs as columns: services of ours, and one that a user adds."""

from __future__ import annotations

from pathlib import Path

from trainer.config.base import ConfigError
from trainer.migration.command_line import CommandLine
from trainer.migration.recipe_text import Line

REWARDS = ("hps", "git", "gdino", "orm")  # T2I-R1's scorers
_HPS_FILE = "reward_weight/HPS_v2.1_compressed.pt"
_DETECTOR = "models/grounding-dino-tiny"
_GIT = "http://127.0.0.1:18095"
_JUDGE = "http://127.0.0.1:8001"


def rewards_of(line: CommandLine, task: str) -> dict[str, float]:
    """Column to weight of a task. Raises ConfigError: a reward that is not known."""
    if line.program == "pairuni":
        return {"accuracy": 1.0} if task == "understand" else {"hps": 1.0}
    names = list(dict.fromkeys(line["reward_funcs"]))
    if unknown := [name for name in names if name not in REWARDS]:
        raise ConfigError(f"--reward_funcs: {', '.join(unknown)} is none of {', '.join(REWARDS)}")
    return dict.fromkeys(names, 1.0)


def reward_lines(line: CommandLine) -> dict[str, Line]:
    """Services and columns. What we serve is started with the run; what we do not has the address that it is to have."""
    asked = rewards_of(line, "generate")
    lines = {"rewards.launch": Line("local", "the services of ours are started with the run")}
    if line.program == "pairuni":
        lines |= {
            "rewards.services.rules.module": Line("rules"),
            "rewards.columns.accuracy.service": Line("rules"),
            "rewards.columns.accuracy.reward": Line(
                "option_letter", "the letter, alone or within <answer> tags; `answer` also takes numbers and texts"
            ),
        }
    if "hps" in asked:
        lines |= {
            "rewards.services.hps.module": Line("hps"),
            "rewards.services.hps.args.checkpoint": Line(line.path(line["hps_ckpt_path"] or _HPS_FILE)),
            "rewards.columns.hps.service": Line("hps", "raw scores, as there"),
        }
    if "gdino" in asked:
        lines |= {
            "rewards.services.geneval.module": Line("geneval"),
            "rewards.services.geneval.args.detector": Line(
                line.path(_DETECTOR), "a folder of Grounding DINO as transformers has it; the .pth is of another layout"
            ),
            "rewards.columns.gdino.service": Line("geneval"),
            "rewards.columns.gdino.reward": Line("gdino", "its formula, quirks included"),
        }
    if "orm" in asked:
        judge = Path(line["orm_ckpt_path"]).name if line["orm_ckpt_path"] else "ORM-T2I-R1"
        lines |= {
            "rewards.services.vqa.module": Line("vqa"),
            "rewards.services.vqa.args.judge_url": Line(_JUDGE, "where vLLM serves the model: docs/vllm.md"),
            "rewards.services.vqa.args.model": Line(judge),
            "rewards.columns.orm.service": Line("vqa"),
            "rewards.columns.orm.reward": Line("vqa_yes_ratio", "yes in yes and no, asked in our own words"),
        }
    if "git" in asked:
        lines |= {
            "rewards.services.git.urls": Line([_GIT], "a file of your own, served as docs/rewards.md shows"),
            "rewards.columns.git.service": Line("git"),
            "rewards.columns.git.canary": Line("none", "probes name no nouns"),
        }
    return lines
