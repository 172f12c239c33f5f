"""What the tests of the deployment files share: the compose file as compose reads it, and a service's settings."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from services.kit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
# A variable that has no other in its default, so that `${A:-${B:-}}` is read from the inside out.
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^{}]*))?\}")
Tree = dict[str, Any]


class MissingVariableError(Exception):
    """A required variable has no value; the message is what compose prints."""


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """`text` with its variables, by the compose specification: `:-` gives a default, `:?` refuses empty ones."""

    def value(match: re.Match[str]) -> str:
        given = environment.get(match["name"], "")
        if given or match["kind"] is None:
            return given
        if match["kind"] == "?":
            raise MissingVariableError(f"{match['name']}: {match['rest']}")
        return str(match["rest"])

    while VARIABLE.search(text):
        text = VARIABLE.sub(value, text)
    return text


def variables() -> list[re.Match[str]]:
    """Every variable of the compose file, those in the default of another included."""
    found, text = [], COMPOSE_FILE.read_text()
    while some := list(VARIABLE.finditer(text)):
        found += some
        text = VARIABLE.sub("", text)
    return found


def compose(environment: Mapping[str, str] | None = None) -> Tree:
    """The compose file with the variables of `docker/cpu.env` and `environment`."""
    tree: Tree = yaml.safe_load(
        interpolated(COMPOSE_FILE.read_text(), {**env_file("docker/cpu.env"), **(environment or {})})
    )
    return tree


def env_file(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value for name, value in pairs}


def own_services() -> dict[str, Tree]:
    """The compose services that run our code, by their name in compose."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings class of one of our services, such as `ocr`: the one that its module defines."""
    folder = ROOT / "services" / service
    module = importlib.import_module(
        f"services.{service}.{'settings' if (folder / 'settings.py').exists() else '__main__'}"
    )
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, ServiceSettings) and each.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} defines {len(found)} settings classes of a service, not one")
    return found[0]


def prefix_of(service: str) -> str:
    """What the service's variables begin with, such as IMAGE_REWARD_: as its settings say, not as its name."""
    return str(settings_of(service).model_config["env_prefix"])
