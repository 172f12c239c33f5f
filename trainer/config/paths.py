"""Files and folders that a recipe names: one that is not there is said at once, and what is the hub's is fetched."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from machine.hub import HubError, fetch_folder, is_hub_id
from rewards.shipped import is_shipped
from trainer.config.base import ConfigError
from trainer.config.network import ADAPTER_FILES, MODEL_FILES, TOKENIZER_FILES, PolicySection
from trainer.config.policy import PolicyConfig
from trainer.config.programs import ProgramName

# Fields of the policies' sections that name what is read at the start; a cache folder is made where there is none.
_READ = ("checkpoint", "pretrained", "weights", "sd3_path", "qwen_path", "lmm_checkpoint")

Policy = TypeVar("Policy", bound=PolicySection)


def check_policy_files(policy: PolicyConfig, program: ProgramName) -> None:
    """Raises ConfigError for weights that are not there: before torch is imported and the model built, which takes seconds.

    Weights of the hub are fetched now, into its cache.

    Programs vlm_base and pair_base write the folder that others start from, and refuse to write it over a shipped one.
    """
    if program in ("vlm_base", "pair_base"):
        folder = getattr(policy, "pretrained", None)
        if folder is not None and is_shipped(folder):
            raise ConfigError(
                f"policy.pretrained = {folder}: program {program} writes this folder, and it is the one that others start from "
                "as it was shipped; give another one, as in policy.pretrained=my_base"
            )
        return
    for field, path in _named(policy):
        if not Path(path).exists():
            raise ConfigError(
                f"{field} = {path}: nothing at {Path(path).absolute()}; {nearest_path(Path(path))} (an id of the hub is owner/name)"
            )
    for field, name, files in hub_fields(policy):
        folder_of(name, field, files)


def hub_fields(policy: PolicySection) -> Iterator[tuple[str, str, Sequence[str]]]:
    """The fields of a policy's section that hold an id of the hub, with the id and patterns of the files that are needed."""
    for name, files in policy.from_hub.items():
        value = getattr(policy, name)
        if value is not None and is_hub_id(value):
            yield f"policy.{name}", value, files
    grow = getattr(policy, "grow", None)
    if grow is not None:
        for name, files in (("language", MODEL_FILES), ("tokenizer", TOKENIZER_FILES)):
            if getattr(grow, name) is not None and is_hub_id(getattr(grow, name)):
                yield f"policy.grow.{name}", getattr(grow, name), files
    lora = getattr(policy, "lora", None)
    if lora is not None and lora.path is not None and is_hub_id(lora.path):
        yield "policy.lora.path", lora.path, ADAPTER_FILES


def folder_of(name: str, field: str, files: Sequence[str], *, fetch: bool = True) -> Path:
    """The folder of a hub's model (`machine.hub.fetch_folder`). Raises ConfigError with the command that gets it."""
    try:
        return fetch_folder(name, field, files, fetch=fetch)
    except HubError as error:
        raise ConfigError(str(error)) from error


def located(policy: Policy, *, fetch: bool = True) -> Policy:
    """The section with folders in place of ids of the hub, for those who read files by it.

    Args:
        fetch: False takes what the cache has.

    Raises:
        ConfigError: the hub did not give a model, and the cache has none.
    """
    changed: dict[str, Any] = {}
    for field, name, files in () if policy.keeps_hub_ids else hub_fields(policy):
        _, first, *rest = field.split(".")
        if first == "lora":
            continue  # looked up where adapters are read
        folder = str(folder_of(name, field, files, fetch=fetch))
        if rest:
            inner = changed.get(first, getattr(policy, first))
            changed[first] = inner.model_copy(update={rest[0]: folder})
        else:
            changed[first] = folder
    return policy.model_copy(update=changed) if changed else policy


def nearest_path(path: Path) -> str:
    """The remedy for a path that is not there: the command that gets it, the nearest one that is, or that it should be corrected."""
    from rewards.sources import fetched_as  # reads a table, which only a mistake needs

    if (known := fetched_as(path)) is not None:
        return f"`rewards fetch {known}` gets it, or with --dry-run says how to by hand"
    there = next(parent for parent in path.absolute().parents if os.path.isdir(parent))
    missing, *rest = path.absolute().relative_to(there).parts
    near = difflib.get_close_matches(missing, [each.name for each in there.iterdir()], n=1)
    if not near:
        return "correct the path"
    found = there / near[0]
    found = found.joinpath(*rest) if found.joinpath(*rest).exists() else found
    shown = found if path.is_absolute() or not found.is_relative_to(Path.cwd()) else found.relative_to(Path.cwd())
    return f"did you mean {shown}?"


def _named(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    of_hub = {field for field, _, _ in hub_fields(policy)}
    grow, lora = getattr(policy, "grow", None), getattr(policy, "lora", None)
    named = {f"policy.{name}": getattr(policy, name, None) for name in _READ}
    if grow is not None:
        named |= {"policy.grow.language": grow.language, "policy.grow.tokenizer": grow.tokenizer}
    if lora is not None:
        named["policy.lora.path"] = lora.path
    yield from ((field, path) for field, path in named.items() if path is not None and field not in of_hub)
