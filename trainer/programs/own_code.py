"""Code of the user's own, before a run: found, its contract tried by a small call, and the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from machine.own import Named, OwnError, is_code, named, names_in, read
from trainer.config import Config, ConfigError
from trainer.config.policy import OwnPolicyConfig
from trainer.evaluation.own_alarms import own_alarms
from trainer.evaluation.sets import EvaluationSet
from trainer.objectives import check_objective_code
from trainer.processes.distributed import World
from trainer.records.own_code import Code


@dataclass(frozen=True)
class OwnCode:
    """All code of the user's that a recipe names, and its bytes, in the same order."""

    code: tuple[Code, ...]
    contents: tuple[bytes, ...]


def code_of(config: Config) -> Iterator[Named]:
    """Everything of the user's own that the recipe names. Nothing is opened. Raises ConfigError where a path names no function."""
    policy, objective = (getattr(section, "code", None) for section in (config.policy, config.objective))
    fields = {"policy.code": policy, "objective.code": objective}
    fields |= {f"evaluation.alarms.own.{i}": code for i, code in enumerate(config.evaluation.alarms.own)}
    paths = [(f"data.train.{i}.path", each.path) for i, each in enumerate(config.data.train)]
    fields |= {field: path for field, path in [*paths, *config.evaluation.prompt_files()] if is_code(path)}
    for field, text in fields.items():
        if text is not None:
            yield _named(text, field)
    if config.rewards.launch == "local":
        for name, service in config.rewards.services.items():
            if service.module is not None and is_code(service.module) and not service.urls:
                yield named(service.module, f"rewards.services.{name}.module", needs_name=False)


def read_code(config: Config) -> OwnCode:
    """The files, opened and not run. Raises ConfigError: one is not there, or lacks a name that a reward service shall serve."""
    code, contents = [], []
    for wanted in code_of(config):
        path, bytes_read = _content(wanted)
        there = names_in(bytes_read)
        # The service runs the file, in a process of its own, and would say so later.
        if wanted.field.startswith("rewards.") and there:
            for name in wanted.names:
                if name not in there:
                    raise ConfigError(str(wanted.error(f"{path} has no {name}; it has {', '.join(there)}")))
        code.append(Code.of(wanted.field, wanted.text, path, bytes_read))
        contents.append(bytes_read)
    return OwnCode(tuple(code), tuple(contents))


def try_code(config: Config, sets: Sequence[EvaluationSet]) -> None:
    """Run what this process will call, and call it once: objective and alarms on a few numbers. A policy is tried when it is built,
    prompts when they are read, rewards by the canary. Raises ConfigError with both signatures, or what came out."""
    check_objective_code(config.objective)
    for alarm in own_alarms(config.evaluation.alarms.own):
        alarm.prove(sets)
    if isinstance(config.policy, OwnPolicyConfig):
        from trainer.policies.flow.own import policy_class

        policy_class(config.policy)


def check_same_code(own: OwnCode, world: World) -> None:
    """Raises ConfigError on all ranks where a file is another one on some rank: nodes have folders of their own."""
    reports = world.gather([each.sha256 for each in own.code])
    for n, each in enumerate(own.code):
        others = [rank for rank, report in enumerate(reports) if report[n] != reports[0][n]]
        if others:
            raise ConfigError(
                f"{each.field} = {each.text}: ranks {others} have another file than rank 0 (sha256 {reports[others[0]][n][:12]}, not "
                f"{reports[0][n][:12]}); put one file where all nodes see it"
            )


def _content(wanted: Named) -> tuple[str, bytes]:
    """The path and the bytes of a named file, without running it. Raises ConfigError."""
    try:
        path, read_bytes = read(wanted)
    except OwnError as error:
        raise ConfigError(str(error)) from error
    return str(path), read_bytes


def _named(text: str, field: str) -> Named:
    try:
        return named(text, field)
    except OwnError as error:
        raise ConfigError(str(error)) from error
