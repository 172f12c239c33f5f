"""`rewards fetch RECIPE`: get the models and prompt files that a recipe names and does not bring along, or say how to.

`rewards fetch PATH` gets one of them, such as data/ocr. Each is fetched to the path that the recipe names. What is there is
left alone. What the reward services score with is named with its command, and not fetched: services may run elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from machine.hub import hub_id
from machine.own import is_code
from rewards.shipped import recipe, recipes
from rewards.sources import FetchError, Need, Source, Table, is_brought_along, read_table
from trainer.config import Config
from trainer.config.base import ConfigError, UserError
from trainer.config.paths import folder_of, hub_fields
from trainer.migration import load_recipe


def needs(config: Config, table: Table) -> list[Need]:
    """The models and prompt files that a recipe names and that do not come along, each path once."""
    found: dict[Path, Need] = {}
    for need in (*_models(config, table), *_prompts(config, table)):
        found.setdefault(need.path, need)
    return list(found.values())


def _models(config: Config, table: Table) -> Iterator[Need]:
    policy, of_hub = config.policy, {field for field, _, _ in hub_fields(config.policy)}
    for name in policy.starts_from:
        field, value = f"policy.{name}", getattr(policy, name)
        patterns = policy.from_hub.get(name, ())
        if value is None:
            source = table.fields.get(field)
            if source is not None and source.hub is not None and policy.type == "deepgen":
                yield Need(field, Path(hub_id(source.hub).folder), source, source.files or patterns)
        elif field not in of_hub and not is_brought_along(value):
            source = table.paths.get(value)
            yield Need(field, Path(value), source, (source.files if source else ()) or patterns)


def _prompts(config: Config, table: Table) -> Iterator[Need]:
    named = [(f"data.train.{i}.path", each.path) for i, each in enumerate(config.data.train)]
    for field, path in (*named, *config.evaluation.prompt_files()):
        shown = str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
        if not is_brought_along(shown) and not is_code(path):
            yield Need(field, Path(shown), table.paths.get(shown))


def about(source: Source) -> str:
    """What it is, how large, and under which licence."""
    return f"{source.what}; size: {source.size}; licence: {source.licence}"


def _say(need: Need) -> None:
    source = need.source
    state = "to be written" if source is not None and source.written else "to be fetched"
    if source is None:
        state = "to be put there by hand"
    if need.is_there:
        state = "there already"
    elif need.is_of_hub:
        state = "fetched before; what is missing of it is fetched"
    print(f"{need.path}: {about(source) if source else 'not in the table of sources'}; {state}")
    if source is None:
        return
    if source.asked is not None:
        print(
            f"    its page: {source.asked.page}  (where it asks for it, accept the licence there, then: hf auth login)"
        )
    for command in need.commands():
        print(f"    {command}")
    if source.variable is not None:
        print(f"    then: export {source.variable}={need.path}")


def _say_services(config: Config, table: Table) -> None:
    for service in config.rewards.services:
        for source in table.services.get(service, ()):
            asked = source.asked
            assert asked is not None, "the table names what services need by its id"
            print(f"service {service}: {about(source)}")
            print(f"    {asked.command()}")
            if source.flag is not None:
                print(f"    or by its id: rewards serve {service} {source.flag} {source.hub}")


def head(name: str, config: Config, table: Table) -> list[str]:
    """The comment at the top of a shipped recipe that says what it needs; none where all of it comes along."""
    needed = [(str(need.path), need.source) for need in needs(config, table) if need.source is not None]
    lines = [f"#   {source.variable or path}: {about(source)}" for path, source in needed]
    for service, each in config.rewards.services.items():
        if each.urls:
            lines += [f"#   service {service}: {about(source)}" for source in table.services.get(service, ())]
    if not lines:
        return []
    return [
        f"# Needs, all but the services' of which `rewards fetch {name}` gets (--dry-run says how to by hand):",
        *lines,
    ]


def fetch_one(path: Path, table: Table, *, dry_run: bool) -> int:
    """Say what lies at a path of the table and fetch it, as the first shipped recipe that names it does. Returns the exit code."""
    configs = (load_recipe(each, Config) for each in recipes().values())
    need = next(need for config in configs for need in needs(config, table) if need.path == path)
    return 0 if _get(need, dry_run=dry_run) else 1


def _get(need: Need, *, dry_run: bool) -> bool:
    """Say what it is, and fetch it unless it is there. Returns whether nothing failed."""
    _say(need)
    if dry_run or need.is_there:
        return True
    try:
        need.fetch()
        print(f"    fetched: {need.path}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def fetch(config: Config, table: Table, *, dry_run: bool) -> int:
    """Say what a recipe needs and fetch it. Returns the exit code: 1 where something did not come, else 0."""
    wanted = needs(config, table)
    failed = [need for need in wanted if not _get(need, dry_run=dry_run)]
    for field, name, files in hub_fields(config.policy):
        print(f"{field} = {name}: a model of the hub, which is fetched into its cache")
        print(f"    {hub_id(name).command(files)}")
        if not dry_run:
            try:
                print(f"    fetched: {folder_of(name, field, files)}")
            except ConfigError as error:
                failed.append(Need(field, Path(name), None))
                print(f"error: {error}", file=sys.stderr)
    if not wanted and not list(hub_fields(config.policy)):
        print("nothing to fetch: what the recipe names comes along")
    _say_services(config, table)
    if failed:
        print(f"error: not fetched: {', '.join(str(need.path) for need in failed)}", file=sys.stderr)
    return 1 if failed else 0


def main(words: Sequence[str], prog: str) -> int:
    """The verb. Returns the exit code; 2 where the recipe cannot be read."""
    parser = argparse.ArgumentParser(prog=prog, description="Get the models and prompt files that a recipe names.")
    parser.add_argument(
        "config",
        metavar="RECIPE",
        help="A recipe: its file, or the name of one of configs/. Or a path that recipes name, as data/ocr.",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="Fields to override.")
    parser.add_argument("--dry-run", action="store_true", help="Print what is needed and the commands; fetch nothing.")
    args = parser.parse_intermixed_args(words)
    table = read_table()
    try:
        if args.config.rstrip("/") in table.paths:
            return fetch_one(Path(args.config), table, dry_run=args.dry_run)
        config = load_recipe(recipe(args.config), Config, args.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return fetch(config, table, dry_run=args.dry_run)
