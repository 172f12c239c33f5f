"""What DeepGen-RL's flags say about data and rewards, in our fields: services, columns, data sets, the length of an epoch."""

from __future__ import annotations

import argparse
import difflib
import os
from typing import Any

from trainer.config.base import ConfigError
from trainer.migration.deepgen.dataset_yaml import prompt_format, read_dataset_yaml
from trainer.migration.deepgen.eval_yaml import read_eval_yaml
from trainer.migration.deepgen.rewards import PORTS, REWARDS, Served
from trainer.migration.recipe_text import Line


def count_prompts(args: argparse.Namespace) -> int:
    """The prompts of an epoch. Raises ConfigError when the files are not here."""
    from trainer.data.prompts import DataError, read_prompt_file

    try:
        if not args.dataset_config:
            sets = [_prompts_file(args)]
        else:
            sets = read_dataset_yaml(args.dataset_config, tell=False)["train"]  # data_lines tells
        return sum(len(read_prompt_file(s["path"], dataset="d", format=s.get("format", "auto")).prompts) for s in sets)
    except DataError as error:
        raise ConfigError(f"--num_train_epochs counts prompts, but {error}. Or give --max_steps") from error


def data_lines(args: argparse.Namespace) -> dict[str, Line]:
    """`rewards` and `data`. Raises ConfigError: a file is not here or wrong, or no reward of it has a service."""
    names, lines = _with_dataset_config(args) if args.dataset_config else _with_reward_funcs(args)
    columns = {f"rewards.columns.{name}": served for name in names if isinstance(served := REWARDS.get(name), Served)}
    if not columns:
        known = ", ".join(name for name, served in REWARDS.items() if isinstance(served, Served))
        raise ConfigError(f"none of the rewards {', '.join(names)} is given by a service of ours; known are {known}")
    rewards = {field: Line({"service": s.service, "reward": s.reward}, s.remark) for field, s in columns.items()}
    services = [served.service for served in columns.values()]
    if _asks_for_judge(args):
        judge = {"service": "eval", "reward": "unigenbench", "canary": "none"}
        rewards["rewards.columns.unigenbench"] = Line(judge, "for the evaluation file")
        services.append("eval")
    urls = {f"rewards.services.{name}": Line(_service(name)) for name in dict.fromkeys(services)}
    return urls | rewards | lines


def _with_reward_funcs(args: argparse.Namespace) -> tuple[list[str], dict[str, Line]]:
    for name in args.reward_funcs:
        if not isinstance(REWARDS.get(name), Served):
            remedy = "leave it out" if name in REWARDS else _nearest(name)
            raise ConfigError(f"--reward_funcs {name}: {_why_not(name)}; {remedy}")
    rewards = dict.fromkeys(args.reward_funcs, 1.0)
    return args.reward_funcs, {"data.train": Line([_prompts_file(args) | {"rewards": rewards}])}


def _prompts_file(args: argparse.Namespace) -> dict[str, Any]:
    return {"path": os.path.abspath(args.prompts_file), **prompt_format(args.prompts_file)}


def _with_dataset_config(args: argparse.Namespace) -> tuple[list[str], dict[str, Line]]:
    lines = {"data.dataset_config": Line(os.path.abspath(args.dataset_config))}
    sets = read_dataset_yaml(args.dataset_config)["train"]
    for i, each in enumerate(sets):
        for name in each["rewards"]:
            if name not in REWARDS:
                where = f"{args.dataset_config}: datasets.{i}.rewards"
                raise ConfigError(f"{where}: {name}: {_why_not(name)}; {_nearest(name)}")
    names = list(dict.fromkeys(name for each in sets for name in each["rewards"]))
    ignored = [name for name in names if not isinstance(REWARDS.get(name), Served)]
    if ignored:
        reasons = "; ".join(f"{name}: {_why_not(name)}" for name in ignored)
        lines["data.ignore_rewards"] = Line(ignored, reasons)
    return names, lines


def _why_not(name: str) -> str:
    return str(REWARDS.get(name, "DeepGen-RL has no such reward"))


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, REWARDS, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(REWARDS)}; leave out any other"


def _service(name: str) -> dict[str, Any]:
    judged = (
        {"timeout_s": 600.0} if name in ("unifiedreward", "eval") else {}
    )  # a judge answers in minutes, not seconds
    return {"urls": [f"http://127.0.0.1:{PORTS[name]}"], **judged}


def _asks_for_judge(args: argparse.Namespace) -> bool:
    if not args.eval_dataset_config or not args.eval_freq:
        return False
    return any(each.scoring is not None for each in read_eval_yaml(args.eval_dataset_config))
