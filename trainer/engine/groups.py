"""Groups of parameters: the policy names them, the configuration gives each an optimizer and a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from trainer.config import ConfigError, OptimConfig
from trainer.config.base import nearest

_REST = ""  # parameters whose group the configuration leaves out


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer trains at one rate.

    Attributes:
        parameters: by name, in the module's order.
        rate: peak learning rate as a multiple of `optim.lr`; exactly 1 for parameters that have none of their own.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Literal["adamw", "muon"]
    rate: float
    weight_decay: float


def split(module: nn.Module, config: OptimConfig, group_of: Mapping[str, str]) -> list[Group]:
    """The trained parameters of `module` in groups, none of them empty. Groups of rate 0 are frozen and left out.

    Args:
        group_of: the policy's name of the group, by parameter name; a parameter left out is in no named group.

    Raises:
        ConfigError: as `check_groups` does, or nothing is left to train.
    """
    check_groups(module, config, group_of)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    members: dict[str, dict[str, nn.Parameter]] = {_REST: {}, **{group: {} for group in config.groups}}
    for name, parameter in named.items():
        group = group_of.get(name, _REST)
        members[group if group in config.groups else _REST][name] = parameter
    groups = []
    if members[_REST]:
        groups.append(Group(members[_REST], "adamw", 1.0, config.weight_decay))
    for group, settings in config.groups.items():
        if settings.lr == 0:
            for parameter in members[group].values():
                parameter.requires_grad_(False)
            continue
        decay = config.weight_decay if settings.weight_decay is None else settings.weight_decay
        groups.append(Group(members[group], settings.optimizer, settings.lr / config.lr, decay))
    if not groups:
        raise ConfigError("optim.groups freezes every parameter (lr = 0), so there is nothing to train")
    return groups


def check_groups(module: nn.Module, config: OptimConfig, group_of: Mapping[str, str]) -> None:
    """Whether `optim.groups` fits what is trained of `module`; a start asks before it starts anything else.

    Raises:
        ConfigError: a group that has no trained parameter here, or Muon for what is no matrix.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    known = sorted({group_of[name] for name in named if name in group_of})
    for group, settings in config.groups.items():
        if group not in known:
            raise ConfigError(
                f"optim.groups.{group}: the policy has no trained parameters of that name; {nearest(group, known)}"
            )
        if settings.optimizer == "muon" and settings.lr:
            _check_matrices(group, {name: p for name, p in named.items() if group_of.get(name) == group})


def trained(module: nn.Module, groups: Sequence[Group]) -> dict[str, nn.Parameter]:
    """The parameters of all groups by name, in the module's order, which does not depend on how they are grouped."""
    parameters = {name: p for group in groups for name, p in group.parameters.items()}
    return {name: parameters[name] for name, _ in module.named_parameters() if name in parameters}


def _check_matrices(group: str, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.dim() != 2:
            raise ConfigError(
                f"optim.groups.{group}.optimizer = muon orthogonalises matrices, but {name} has shape "
                f"{tuple(parameter.shape)}; use adamw for this group"
            )
