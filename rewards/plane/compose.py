"""The reward services of a compose file, without docker: where their ports are published, who must run, which token fits.

Variables are filled in as compose does, from the environment and the `.env` beside the file or a named one:
https://docs.docker.com/reference/compose-file/interpolation/. Ports are read in both of their forms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.plane.targets import Plan, SourceError, Target
from services.kit.catalogue import CATALOGUE
from wire.client.command import read_token

_NAMES = {entry.name: entry for entry in CATALOGUE}
_IMAGES = {entry.image: entry.name for entry in CATALOGUE}
_DOLLAR = "\0"  # in place of a dollar sign that begins no variable; no text of YAML may hold it
_SECRETS = "/run/secrets/"
# One variable without another in its default, so that `${A:-${B:-}}` is read from the inside out; `$$` is a dollar sign.
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<kind>:?[-?+])(?P<rest>[^{}$]*))?\})"
)
_PORTS = re.compile(
    r"(?:(?P<ip>\[[^\]]+\]|[\w.]+):)?(?:(?P<published>\d+(?:-\d+)?):)?(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?"
)


def plan_of(path: Path, raw: Mapping[str, Any], *, profiles: Sequence[str], env_file: Path | None) -> Plan:
    """The plan of a compose file that was read as YAML.

    Args:
        profiles: those that were started, beside what COMPOSE_PROFILES names. A service of another profile is asked, too,
            and may be absent.

    Raises:
        SourceError: a file of variables cannot be read, or a port is none.
    """
    environment = {**_variables(path, env_file), **os.environ}
    active = {*profiles, *filter(None, environment.get("COMPOSE_PROFILES", "").split(","))}
    targets: list[Target] = []
    others, hidden = [], []
    for name, given in raw["services"].items():
        service: Mapping[str, Any] = given if isinstance(given, dict) else {}
        kind = _kind(name, service)
        if kind is None:
            others.append(name)
            continue
        urls = list(_urls(name, service, environment))
        if not urls:
            hidden.append(name)
            continue
        of = set(service.get("profiles") or ())
        optional = bool(of) and "*" not in active and not of & active
        token, no_token = _token(path, raw, service, environment)
        absent = f"of the profile {', '.join(sorted(of))}, which was not chosen (--profile)" if optional else ""
        targets += [Target(name, url, token, no_token, expects=kind, optional=optional, absent=absent) for url in urls]
    if not targets:
        raise SourceError(f"{path} publishes no port of a reward service of ours ({', '.join(_NAMES)})")
    notes = []
    if hidden:
        notes.append(f"not asked, as they publish no port: {', '.join(hidden)}")
    if others:
        notes.append(f"not asked, as they are no reward services: {', '.join(others)}")
    return Plan(str(path), tuple(targets), tuple(notes))


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """A value with its variables. Raises SourceError: one that must be set is not."""

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return _DOLLAR
        given = environment.get(found["bare"] or found["name"])
        kind, rest = found["kind"] or "", found["rest"] or ""
        missing = given is None or (given == "" and kind.startswith(":"))
        if kind.endswith("+"):
            return "" if missing else rest
        if missing and kind.endswith("?"):
            raise SourceError(f"the variable {found['name']} is not set: {rest or 'compose would not start'}")
        # What a variable holds is no text with variables again.
        return rest if missing else (given or "").replace("$", _DOLLAR)

    while _VARIABLE.search(text):
        text = _VARIABLE.sub(value, text)
    return text.replace(_DOLLAR, "$")


def _variables(path: Path, named: Path | None) -> dict[str, str]:
    """What the file of variables says; none where there is no `.env`."""
    place = named or path.parent / ".env"
    if named is None and not place.is_file():
        return {}
    try:
        lines = place.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{place} cannot be read: {error}") from error
    pairs = (line.removeprefix("export ").partition("=") for line in map(str.strip, lines) if line[:1] not in ("", "#"))
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def _kind(name: str, service: Mapping[str, Any]) -> str | None:
    """Which of our services it is: by the build's argument, else its image's name, else its own."""
    build = service.get("build")
    arguments = build.get("args") if isinstance(build, dict) else None
    if isinstance(arguments, list):
        arguments = dict(str(each).partition("=")[::2] for each in arguments)
    said = (arguments or {}).get("SERVICE")
    image = str(service.get("image", "")).rpartition("/")[2].partition(":")[0].partition("@")[0]
    for known in (said, _IMAGES.get(image), None if image or build else name):
        if known in _NAMES:
            return str(known)
    return None


def _urls(name: str, service: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Where this machine reaches the port that the service listens on inside; a range gives one address for each."""
    for port in service.get("ports") or ():
        if isinstance(port, dict):
            given = {key: interpolated(str(value), environment) for key, value in port.items()}
            ip, published, protocol = given.get("host_ip", ""), given.get("published", ""), given.get("protocol", "tcp")
        else:
            text = interpolated(str(port), environment)
            found = _PORTS.fullmatch(text)
            if found is None:
                raise SourceError(f"services.{name}.ports: {text!r} is no port, as in 127.0.0.1:18082:18082")
            ip, published, protocol = found["ip"] or "", found["published"] or "", found["protocol"] or "tcp"
        if not published or protocol != "tcp":  # without one docker chooses, and only docker knows
            continue
        first, _, last = published.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"http://{_reachable(ip)}:{number}"


def _reachable(ip: str) -> str:
    bare = ip.strip("[]")
    if bare in ("", "0.0.0.0"):  # all addresses, this machine's own among them
        return "127.0.0.1"
    return "[::1]" if bare == "::" else f"[{bare}]" if ":" in bare else bare


def _token(
    path: Path, raw: Mapping[str, Any], service: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[str | None, str]:
    """The first token of the file that the service reads, as far as it is a secret of this compose file; or why there is none."""
    settings = service.get("environment") or {}
    if isinstance(settings, list):
        settings = dict(str(each).partition("=")[::2] for each in settings)
    inside = next((str(value) for key, value in settings.items() if str(key).endswith("_TOKEN_FILE")), "")
    secret = (raw.get("secrets") or {}).get(inside.removeprefix(_SECRETS)) if inside.startswith(_SECRETS) else None
    if not isinstance(secret, dict) or "file" not in secret:
        return None, "it wants a token, and the compose file does not say where one is (--token-file)"
    place = path.parent / interpolated(str(secret["file"]), environment)
    try:
        return read_token(place), ""
    except OSError as error:
        return None, f"it wants a token, and {place} cannot be read ({error.strerror})"
    except ValueError as error:
        return None, f"it wants a token: {error}"
