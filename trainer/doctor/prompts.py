"""The data: prompt files, held-out prompts, and who asks whom for which reward."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from machine.hub import is_hub_id
from trainer.config import Config, ConfigError, TaskSamplingConfig
from trainer.config.evaluation import JUDGE
from trainer.config.paths import located, nearest_path
from trainer.data.captions import caption_prompts
from trainer.data.datasets import DataError, Dataset, load_datasets, sampled, without
from trainer.data.joined import Joined
from trainer.data.overlap import settle
from trainer.data.sampler import PromptSampler
from trainer.doctor.findings import Finding, Status
from trainer.doctor.weights import planned_ranks
from trainer.evaluation.sets import load_sets
from trainer.policies.lora_files import read_adapters
from trainer.policies.registry import entry_of
from trainer.programs.assemble import kind_of
from trainer.programs.packs import PackMaterial, unusable_rows
from trainer.programs.prompt_notes import prompt_notes
from trainer.types import Prompt


def check_names(config: Config) -> Iterator[Finding]:
    """Rewards and services that nothing uses: allowed, but rarely meant."""
    rewards, sampling = config.rewards, config.sampling
    tasks = sampling.tasks.given() if isinstance(sampling, TaskSamplingConfig) else {}
    asked = {name for _, name in config.train_rewards}
    asked |= {name for _, name in config.evaluation.asked()}
    if any(each.scoring for each in config.evaluation.sets):
        asked |= {name for name, column in rewards.columns.items() if (column.reward or name) == JUDGE}
    if config.program != "rl" and not config.evaluation.rewards:
        asked |= set(rewards.columns)  # no step asks for rewards, so the evaluation asks for all
    for name in rewards.columns:
        if name not in asked:
            yield Finding(
                "rewards",
                "WARN",
                f"rewards.columns.{name} is asked for by no {'task' if tasks else 'data set'} and no evaluation",
                f"name it under a {'task' if tasks else 'data set'}'s `rewards`, or take it out",
            )
    for name in rewards.services:
        if not any(column.service == name for column in rewards.columns.values()):
            cost = "and would still be started" if rewards.launch == "local" else "but must be up"
            yield Finding(
                "rewards", "WARN", f"rewards.services.{name} serves no column, {cost}", "take it out, or add a column"
            )
    given = {f"sampling.tasks.{name}": each.rewards for name, each in tasks.items()}
    given |= {f"data.train.{i}": dataset.rewards for i, dataset in enumerate(config.data.train)}
    for where, weights in given.items():
        silent = [name for name, weight in weights.items() if weight == 0]
        if silent:
            yield Finding(
                "rewards",
                "WARN",
                f"{where}.rewards: {', '.join(silent)} has the weight 0: it is scored and not trained on",
                "give it a weight, or leave it to evaluation.rewards",
            )


def check_data(config: Config) -> Generator[Finding, None, PromptSampler | None]:
    """What is trained on, and its overlap with the evaluation. Returns the run's sampler, when it is to have one."""
    if config.program != "rl":
        yield from _check_given(config)
        return None
    try:
        train = load_datasets(config)
        rows = Joined(dataset.prompts for dataset in train)
        heldout = [prompt for each in load_sets(config, sampled(train), train) for prompt in each.prompts]
    except (DataError, ConfigError) as error:
        yield Finding("data", "FAIL", str(error))
        return None
    yield from _notes([note for dataset in train for note in dataset.notes])
    total = sum(dataset.weight for dataset in train)
    for dataset in train:
        drawn = config.max_steps * config.sampling.prompts_per_step * dataset.weight / total
        epochs = f"{drawn / len(dataset.prompts):.1f} epochs"
        yield Finding("data", "OK", f"{dataset.name}: {_of(dataset)}, {epochs}, rewards {_rewards(dataset)}")
    yield from _check_texts(config, Joined([sampled(train), heldout]))
    if not config.evaluation.active:
        yield Finding(
            "data", "WARN", "no held-out prompts: training rewards alone cannot show overfitting", "set evaluation.path"
        )
    try:
        captions = [] if config.sft is None else caption_prompts(config.sft)
        overlap = settle(config, Joined([rows, captions]), heldout)
        train = without(train, config.data, overlap.ids())
        if sentence := overlap.sentence(len(rows) + len(captions)):
            yield Finding("data", "WARN", sentence, "nothing, if that is meant; or take them out of one of the files")
        elif heldout:
            yield Finding("data", "OK", f"{len(heldout)} held-out prompts, none of them in the training data")
        sampling = config.sampling
        ranks = planned_ranks()
        return PromptSampler(train, prompts_per_step=sampling.prompts_per_step, seed=config.seed, rank=0, world=ranks)
    except (DataError, ConfigError) as error:
        yield Finding("data", "FAIL", str(error))
        return None


def _of(dataset: Dataset) -> str:
    return f"{len(dataset.prompts)} {'pairs' if dataset.prompts[0].sides else 'prompts'}"


def _rewards(dataset: Dataset) -> str:
    """What a set is trained by; of pairs for each task."""
    first = dataset.prompts[0]
    found = []
    for each in first.sides or (first,):
        weights = ", ".join(f"{name} {weight:g}" for name, weight in each.weights.items())
        found.append(f"{each.task}: {weights}" if first.sides else weights)
    return "; ".join(found)


def _notes(notes: Iterable[str]) -> Iterator[Finding]:
    """What a preprocessing file makes of the first row, and which rows are left out: only the user knows whether it is meant."""
    for note in notes:
        yield Finding("data", "WARN", note, "nothing, if that is meant")


def _check_given(config: Config) -> Iterator[Finding]:
    """The files of a program that is given what it trains on."""
    try:
        material = kind_of(config.program).read(config)
    except (DataError, ConfigError) as error:
        yield Finding("data", "FAIL", str(error))
        return
    if material.num_train:
        yield Finding("data", "OK", f"program: {config.program} trains on {material.num_train} texts with their images")
        yield from _check_texts(config, Joined([material.prompts, material.heldout]))
    if isinstance(material, PackMaterial):
        yield from _check_packs(config, material)
    else:
        yield from _notes(material.notes)
    if not config.evaluation.active:
        yield Finding("data", "WARN", "no held-out prompts: nothing is evaluated", "set evaluation.path")
    if sentence := material.overlap.sentence(material.num_train):
        yield Finding("data", "WARN", sentence, "nothing, if that is meant; or take them out of one of the files")


def _check_packs(config: Config, material: PackMaterial) -> Iterator[Finding]:
    """The first rows that each group deals, as files; the policy reads them at the start."""
    yield from _notes(material.said)
    for group in material.groups:
        tried, wrong = unusable_rows(group, config.seed)
        held_out = sum(1 for _ in group.held_out())
        told = f"{group.name}: {len(group)} rows, {held_out} held out; of the first {tried} that are drawn {len(wrong)} cannot be used"
        if wrong:
            status: Status = "FAIL" if len(wrong) == tried else "WARN"
            yield Finding(
                "data", status, f"{told}, such as: {wrong[0]}", "correct the files; rows that are wrong are left out"
            )
        else:
            yield Finding("data", "OK", told)
    if not any(any(group.held_out()) for group in material.groups):
        yield Finding("data", "WARN", "no rows are held out: no loss shows overfitting", "set packed.hold_out")


def _check_texts(config: Config, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Whether the policy reads its prompts to their end."""
    try:
        limits, notes = entry_of(config.policy).text_limits(located(config.policy)), prompt_notes(config, prompts)
    except ConfigError as error:
        yield Finding(
            "data",
            "NOT CHECKED",
            f"whether long prompts lose words was not looked at: {error}",
            "give the model's folder",
        )
        return
    for note in notes:
        yield Finding("data", "WARN", note.sentence, note.remedy)
    if not notes:
        read = " and ".join(f"{limit.tokens} tokens ({limit.encoder})" for limit in limits) or "any length"
        yield Finding("data", "OK", f"no prompt loses words: {config.policy.type} reads {read}")


def check_base(config: Config) -> Iterator[Finding]:
    """The files and folders that training starts from."""
    entry = entry_of(config.policy)
    for name in config.policy.starts_from:
        field, path = f"policy.{name}", getattr(config.policy, name)
        if path is None and getattr(config.policy, "initialize", None) is not None:
            yield Finding("policy", "OK", "policy.initialize makes a fresh model")
        elif path is None and entry.may_be_random:
            yield Finding(
                "policy", "WARN", f"{field} is null: training starts from random weights", "name a base, if meant"
            )
        elif path is None:
            yield Finding("policy", "FAIL", f"{field} is null", "give the model's files, here or by their variable")
        elif name in config.policy.from_hub and is_hub_id(path):
            yield Finding(
                "policy", "NOT CHECKED", f"{field}: {path} is fetched from the hub at the start, if its cache lacks it"
            )
        elif not Path(path).exists():
            remedy = f"{nearest_path(Path(path))}{'; ' if entry.how_made else ''}{entry.how_made}"
            yield Finding("policy", "FAIL", f"{field}: no file at {Path(path).absolute()}", remedy)
        else:
            yield _look_into(field, Path(path))
    yield from _check_adapters(config)


def _check_adapters(config: Config) -> Iterator[Finding]:
    """The adapters that training goes on from."""
    lora = getattr(config.policy, "lora", None)
    if lora is None or lora.path is None:
        return
    if is_hub_id(lora.path):
        yield Finding("policy", "NOT CHECKED", f"policy.lora.path: {lora.path} is fetched from the hub at the start")
        return
    try:
        adapters = read_adapters(Path(lora.path), config.policy)
    except ConfigError as error:
        yield Finding("policy", "FAIL", str(error))
        return
    rank = max(len(adapter.a) for adapter in adapters.values())
    status: Status = "OK" if rank <= lora.rank else "FAIL"
    remedy = "" if rank <= lora.rank else f"set policy.lora.rank to {rank}"
    told = f"goes on from {len(adapters)} adapters of rank {rank} in {lora.path}; policy.lora.rank is {lora.rank}"
    yield Finding("policy", status, told, remedy)


def _look_into(field: str, path: Path) -> Finding:
    """What is at the path, as far as its headers and lists of parts tell. Numbers of the weights are read at the start."""
    return _header_finding(field, path) if path.is_file() else _folder_finding(field, path)


def _folder_finding(field: str, path: Path) -> Finding:
    listed = path / "model_index.json"
    if not listed.is_file() and not (path / "config.json").is_file():
        if files := [each for each in path.iterdir() if each.suffix in (".safetensors", ".pt", ".pth", ".bin")]:
            return Finding(
                "policy", "NOT CHECKED", f"{field}: {path} has {len(files)} files of weights, read at the start"
            )
        remedy = "name a folder that has one of them"
        return Finding("policy", "FAIL", f"{field}: {path} has no model_index.json, config.json or weights", remedy)
    try:
        parts = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    except ValueError as error:
        return Finding("policy", "FAIL", f"{field}: {listed} is not JSON: {error}", "copy it again")
    named = [name for name, kind in parts.items() if isinstance(kind, list) and len(kind) == 2 and kind[1]]
    missing = [name for name in named if not (path / name).is_dir()]
    if missing:
        remedy = "copy the whole folder"
        return Finding("policy", "FAIL", f"{field}: {path} lacks the parts {', '.join(missing)}", remedy)
    for file in sorted(path.rglob("*.safetensors")):
        finding = _header_finding(field, file)
        if finding.status == "FAIL":
            return finding
    return Finding("policy", "OK", f"starts from {path}")


def _header_finding(field: str, path: Path) -> Finding:
    size = f"{path} ({path.stat().st_size / 1e6:.1f} MB)"
    if path.suffix != ".safetensors":
        return Finding("policy", "NOT CHECKED", f"{field}: {size} is read at the start")
    try:
        with safe_open(path, framework="pt"):
            return Finding("policy", "OK", f"starts from {size}")
    except (SafetensorError, OSError) as error:  # cut off, not that format, or not to be read
        return Finding("policy", "FAIL", f"{field}: {size} is no whole safetensors file: {error}", "copy it again")
