"""`python -m trainer evaluate`: the evaluation sets of a recipe, by the weights of a checkpoint or by the base's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.config import Config, ConfigError
from trainer.data.datasets import load_datasets, sampled
from trainer.evaluation.files import read_outcomes
from trainer.evaluation.results import Results
from trainer.evaluation.rounds import Rounds
from trainer.evaluation.sets import load_sets, trained_on
from trainer.export.source import find_checkpoint, none_yet
from trainer.policies.base import Samples
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World, world
from trainer.programs.prompt_notes import prompt_notes
from trainer.programs.services import addresses, begin_services
from trainer.records.numbers import alike, interval, plain
from trainer.records.progress import Watched
from trainer.records.recorder import plain_numbers, write_atomic
from trainer.rewards import RewardClient, RewardServiceError, resolve_urls
from trainer.rewards.asked import Requests, texts_of
from trainer.rewards.identity import changes_since

Weights = Literal["average", "trained"]
BASE = "base"


def evaluate_checkpoint(
    config: Config, source: str | None, weights: Weights, *, output: Path | None = None, against: Path | None = None
) -> Path:
    """Draw and score all sets, `final_rewards` included; print a table and write the files of an evaluation.

    Args:
        source: a checkpoint's folder, a run's, `checkpoints/best`, or `base` for the weights that training starts from;
            None is the newest of the recipe's own run.
        weights: which of a checkpoint's weights.
        output: default: evaluations/<checkpoint>-<weights> in the recipe's run folder.
        against: the folder of another evaluation (with scores.jsonl) of the same prompts, for paired gains.

    Returns:
        The folder with scores.jsonl, evaluation.json, the images of each set with a name, and the table of each with `scoring`.

    Raises:
        ConfigError: the recipe has no evaluation set, `against` has no scores, or the folder cannot be written.
        CheckpointError, DataError, RewardServiceError, StopTrainingError: as in training.
    """
    datasets = load_datasets(config)
    train_rows = sampled(datasets)
    sets = load_sets(config, train_rows, datasets)
    if not sets:
        raise ConfigError("nothing to evaluate: give evaluation.path, evaluation.sets or evaluation.dataset_config")
    start = [] if against is None else read_outcomes(against)
    if against is not None and not start:
        raise ConfigError(f"--against {against}: no scores.jsonl there that can be read; give an evaluation's folder")
    checkpoint = None if source == BASE else named_or_newest(source, config.run_dir)
    label = BASE if checkpoint is None else f"{checkpoint.path.name}-{weights}"
    folder = output or config.run_dir / "evaluations" / label
    _check_writable(folder)
    with ExitStack() as stack:
        group = stack.enter_context(world(config.distributed))
        services = begin_services(config.rewards, stack, folder / "logs")
        torch.manual_seed(config.seed)  # as training does: what has no file starts from random weights
        policy = build_policy(config.policy, group.device, keep_reference=False)
        prompts = [prompt for each in sets for prompt in each.prompts]
        policy.check_prompts(Watched(prompts, "reading the prompts", shown=group.is_main))
        if group.is_main:
            for note in prompt_notes(config, prompts):
                print(f"{note.sentence}: {note.remedy}")
        if checkpoint is not None:
            load_weights(policy, checkpoint, weights)
        urls = addresses(services, group, print if group.is_main else None)
        executor = stack.enter_context(ThreadPoolExecutor(1, "evaluation"))
        found, asked = resolve_urls(config.rewards, urls), Requests(texts=texts_of(config))
        client = stack.enter_context(RewardClient(config.rewards, urls=found, is_main=group.is_main, requests=asked))
        for sentence in _check_scorers(client, checkpoint, against):
            if group.is_main:
                print(sentence)
        rounds = Rounds(sets, config, policy, client, group, trained_on(train_rows), executor)
        step = 0 if checkpoint is None else checkpoint.step
        scored = rounds.draw_and_score(folder, step, final=True, stop_requested=lambda: False)
        assert scored is not None, "nothing asks it to stop"
        results = rounds.put_together(scored, folder, step, start)
        _write(folder, results, label, client, group)
    return folder


def _check_scorers(client: RewardClient, checkpoint: Checkpoint | None, against: Path | None) -> list[str]:
    """Whether the scores can be compared: with those of `against`, and with what the checkpoint was trained on.

    Returns sentences to be said.

    Raises:
        RewardServiceError: `against` was scored by another scorer, so that gains would be of two rulers.
    """
    said, now = [], client.scorers.now
    if checkpoint is not None:
        for name, change in changes_since(checkpoint.state.get("scorers", {}), now).items():
            said.append(
                f"warning: reward {name} comes from another scorer than {checkpoint.path} was trained on ({change})"
            )
    for name, change in changes_since(_recorded_scorers(against), now).items():
        text = f"reward {name} comes from another scorer than in --against {against} ({change})"
        if client.config.columns[name].on_change == "stop":
            raise RewardServiceError(
                f"{text}, so gains over it would mean nothing: evaluate that one again, leave --against out, or set "
                f"rewards.columns.{name}.on_change=accept"
            )
        said.append(f"warning: {text}; its gain compares two scorers")
    return said


def _recorded_scorers(folder: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """The scorers of an evaluation; none where its folder does not say, as that of a run's own evaluation."""
    try:
        tree = {} if folder is None else json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found: Mapping[str, Mapping[str, Any]] = tree.get("scorers", {}) if isinstance(tree, dict) else {}
    return found


def named_or_newest(source: str | None, run_dir: Path) -> Checkpoint:
    """The checkpoint at a path, or the newest of a run. Raises CheckpointError where there is none."""
    if source is None and not (run_dir / "checkpoints").is_dir():
        raise none_yet(run_dir)  # the recipe names the folder, and training fills it: its path is not wrong
    return find_checkpoint(run_dir if source is None else Path(source))


def _check_writable(folder: Path) -> None:
    """Make the folder and try it, before minutes of drawing whose results would have no place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the folder of the evaluation, {folder}, cannot be written: {error.strerror}; correct its owner, or give "
            f"another with --output"
        ) from error


@torch.no_grad()
def load_weights(policy: Samples, checkpoint: Checkpoint, weights: Weights) -> None:
    """Put a checkpoint's weights into the policy. Raises CheckpointError when they are of another model."""
    trained = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    if different := sorted(trained.keys() ^ set(checkpoint.names)):
        raise CheckpointError(
            f"{checkpoint.path} is of another model than `policy`: {len(different)} parameters differ, the first is "
            f"{different[0]!r}; use the recipe it was trained with (config.yaml in its run folder)"
        )
    kind = "average" if weights == "average" else "weight"
    for name, parameter in trained.items():
        parameter.copy_(checkpoint.read(name)[kind])


def _write(folder: Path, results: Results, label: str, client: RewardClient, group: World) -> None:
    if not group.is_main:
        return
    tree = {"weights": label, "step": results.step, **plain_numbers(results.row), "scorers": client.scorers.state()}
    write_atomic(folder / "evaluation.json", json.dumps(tree, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    print(table_text(results))


def table_text(results: Results) -> str:
    """Per reward its mean, the 95 % interval, the share of images with a score, and the gain where there is one."""
    lines = [f"{'':32}{'mean':>9}  {'95 % interval':18}{'scored':>8}  gain"]
    for name, mean in results.means.items():
        key, row = f"eval/{name}", results.row
        told, ends = plain(mean), "-"
        if f"{key}/low" in row:
            told, low, high = alike([mean, row[f"{key}/low"], row[f"{key}/high"]])
            ends = f"{low} to {high}"
        share = row.get(f"{key}/valid_share", row.get(f"{key.removesuffix('/overall')}/answered_share", 0.0))
        gain = ""
        if f"{key}/gain_low" in row:
            gain = interval([row[f"{key}/{end}"] for end in ("gain", "gain_low", "gain_high")], sign=True)
        lines.append(f"{name:32}{told:>9}  {ends:18}{100 * share:7.1f}%  {gain}".rstrip())
    return "\n".join(lines)
