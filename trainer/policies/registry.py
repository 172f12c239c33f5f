"""One entry a policy: what the rest of the trainer asks of it before and after it is built.

A policy is known by its section of the configuration (`trainer/config/policy.py`), which says its name (`type`), its
family, the formats it can be exported to and the fields that name its files. Its module, `trainer.policies.<family>.<type>`,
holds an `Entry` by the name `ENTRY`, which says how each of these is done. Export, doctor and the start look here; nothing
else lists policies. This module imports no torch, so that a mistake on the command line is said at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from trainer.config.base import ConfigError, did_you_mean
from trainer.config.network import PolicySection
from trainer.config.paths import located
from trainer.config.policy import sections

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from trainer.config import Config
    from trainer.policies.base import Plan


@dataclass(frozen=True)
class Exporter:
    """How trained weights are written for other programs, in one format.

    Attributes:
        write: (model, folder, dtype): writes what a program that reads the format needs.
        reload: (section, folder, device): returns the model with what was written, read as any user of the format reads it.
        adapters: the format holds adapters alone; all others hold whole weights, adapters merged into them.
    """

    write: Callable[[Any, Path, torch.dtype], None]
    reload: Callable[[Any, Path, torch.device], Any]
    adapters: bool = False


@dataclass(frozen=True)
class TextLimit:
    """A text encoder that reads only the beginning of a long prompt.

    Attributes:
        encoder: its name, as people know it.
        tokens: how many it reads, those of the frame around a text included.
        lost_from: maps a text to the place of its first character that is not read; None where all of it is read.
        setting: the field that raises the limit; None where the model has no more.
    """

    encoder: str
    tokens: int
    lost_from: Callable[[str], int | None]
    setting: str | None = None


@dataclass(frozen=True)
class Sizes:
    """How large a policy is: elements that are trained, in float32, and bytes that are not trained.

    Attributes:
        trained: elements of the trained parameters.
        network: bytes of the frozen weights of the network that adapters are trained on.
        others: bytes of encoders, as far as they stay on the device, and of the autoencoder.
        positions: bytes of a table of positions, which is never trained, and of which a copy of the network has a copy.
        reference: bytes of a frozen copy of the network; 0 where it is held as the network is.
    """

    trained: int
    network: int
    others: int
    positions: int = 0
    reference: int = 0


class PlanNeeds(Protocol):
    """What an objective asks of a sampling plan (`trainer.objectives.base.PlanNeeds`)."""

    @property
    def keep_means(self) -> bool: ...

    @property
    def keep_final(self) -> bool: ...

    @property
    def deterministic(self) -> bool: ...


class HeldOut(Protocol):
    """What a held-out set says of how it is sampled (`trainer.evaluation.EvaluationSet`)."""

    @property
    def num_inference_steps(self) -> int: ...

    @property
    def guidance_scale(self) -> float: ...

    @property
    def temperature(self) -> float: ...

    @property
    def task(self) -> str: ...


@dataclass(frozen=True)
class Family:
    """What all policies of one kind share: how a model becomes a policy, and how the configuration becomes a sampling plan.

    Attributes:
        policy: (model, keep_reference): wraps the model that an entry builds into what programs sample and train: a `Policy`
            with the capabilities (`trainer/policies/base.py`) of the family.
        check_plans: (config, policy): raises ConfigError where the policy cannot draw what the run will ask for.
        training_plan: (config, step, needs, task): the plan of a task's rollouts after `step` finished steps.
        evaluation_plan: (config, set): the plan of a held-out set.
        comparison_plan: (num_samples): the plan of a few samples that two sets of weights are compared by.
    """

    policy: Callable[..., Any]
    check_plans: Callable[[Config, Any], None]
    training_plan: Callable[[Config, int, PlanNeeds, str], Plan]
    evaluation_plan: Callable[[Config, HeldOut], Plan]
    comparison_plan: Callable[[int], Plan]


def _reads_everything(section: PolicySection) -> list[TextLimit]:
    return []


@dataclass(frozen=True)
class Entry:
    """A policy.

    Attributes:
        family: what it shares with others of its kind.
        build: (section, device): builds the model. Raises ConfigError with the remedy where files are missing or unfit.
        exporters: its formats, the same names as in the section's `formats`.
        sizes: (section): how large it is, from the headers of its files. May raise what reading them raises.
        text_limits: (section): the encoders that cut long prompts off, the narrowest first; none where the policy reads any
            prompt whole or refuses longer ones. Raises ConfigError where a tokenizer cannot be loaded.
        working: (config): bytes of the device that each part of a step takes at its peak beside what is held, by its name; the
            largest decides. None where nobody has counted them. May raise what reading the files raises.
        may_be_random: training may start from random weights, with no file named.
        how_made: how to get files that are missing, for the end of an error's sentence.
    """

    family: Family
    build: Callable[[Any, torch.device], Any]
    exporters: Mapping[str, Exporter]
    sizes: Callable[[Any], Sizes]
    text_limits: Callable[[Any], list[TextLimit]] = _reads_everything
    working: Callable[[Config], Mapping[str, float]] | None = None
    may_be_random: bool = False
    how_made: str = ""


def entry_of(section: PolicySection) -> Entry:
    """The entry of the policy that a section configures. Imports its module, which may take seconds."""
    from trainer.policies.quiet import quieten

    quieten()
    name = f"trainer.policies.{section.family}.{section.type}"
    entry: Entry = import_module(name).ENTRY
    assert set(entry.exporters) == set(section.formats), f"{name}: ENTRY.exporters are not the section's formats"
    return entry


def build_model(section: PolicySection, device: torch.device) -> Any:
    """The networks of a policy, as its family drives them, on `device`. Raises ConfigError as `Entry.build`."""
    return entry_of(section).build(located(section), device)


def build_policy(section: PolicySection, device: torch.device, *, keep_reference: bool) -> Any:
    """The policy that a section configures, on `device`, with the capabilities of its family.

    Args:
        keep_reference: keep the starting weights, which a KL needs.

    Raises:
        ConfigError: files are missing or unfit, with the remedy.
    """
    entry = entry_of(section)
    return entry.family.policy(entry.build(located(section), device), keep_reference=keep_reference)


def all_formats() -> tuple[str, ...]:
    """The formats that any policy can be exported to, sorted."""
    return tuple(sorted({name for section in sections().values() for name in section.formats}))


def exporter_of(section: PolicySection, name: str) -> Exporter:
    """The exporter of a format. Raises ConfigError where the policy has no such format."""
    if name not in section.formats:
        raise ConfigError(
            f"the policy {section.type} cannot be exported to {name}; it can to {', '.join(sorted(section.formats))}"
            f"{did_you_mean(name, section.formats)}"
        )
    return entry_of(section).exporters[name]
