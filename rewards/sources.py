"""What recipes name and do not bring along: models and prompt files, with where each is from (configs/sources/sources.yaml)."""

from __future__ import annotations

import os
import shlex
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from machine.hub import HubError, HubId, fetch_folder, hub_id
from rewards import signs
from rewards.shipped import FOLDER, SHIPPED

TABLE = FOLDER / "configs" / "sources" / "sources.yaml"
UNKNOWN = "not known here"
_LARGEST = 1 << 30  # bytes of a prompt file
_CHUNK = 1 << 20
_TIMEOUT_S = 60


class FetchError(Exception):
    """Something was not fetched; the message says what and why."""


@dataclass(frozen=True)
class Source:
    """Where a model or a prompt file is from.

    Attributes:
        what: what it is, in words.
        hub: its id on the Hugging Face hub.
        url: where its files lie, if not on the hub.
        written: this program writes it itself (`rewards.signs`).
        files: their names, or patterns on the hub; none: the one file is called as the recipe calls it, and of a model on the
            hub what its policy reads.
        leave_out: patterns of its files on the hub that nothing reads: for the command, since what is fetched here is chosen by the
            hub's own list.
        licence, size: as they were looked up.
        variable: of the environment, that names it to the recipe.
        flag: of a service, that names it to the service.
    """

    what: str
    hub: str | None = None
    url: str | None = None
    written: bool = False
    files: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    licence: str = UNKNOWN
    size: str = UNKNOWN
    variable: str | None = None
    flag: str | None = None

    @property
    def asked(self) -> HubId | None:
        return hub_id(self.hub) if self.hub else None


@dataclass(frozen=True)
class Need:
    """A thing that a recipe cannot start without, at a path.

    Attributes:
        field: of the recipe.
        path: where the recipe looks for it.
        source: where it is from; None where the table does not know it.
        patterns: of its files, for a model of the hub.
    """

    field: str
    path: Path
    source: Source | None
    patterns: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        """Whether it need not be fetched."""
        if self.source is not None and self.source.written:
            return all((self.path / name).exists() for name in self.source.files)
        if self.downloads():
            return all(file.exists() for file in self.downloads().values())
        return self.path.exists() and not self.is_of_hub

    @property
    def is_of_hub(self) -> bool:
        """Whether huggingface_hub has fetched it here, wholly or in part: it knows what is missing."""
        return (self.path / ".cache" / "huggingface").is_dir()

    def downloads(self) -> dict[str, Path]:
        """The files that lie elsewhere than on the hub, by their addresses."""
        source = self.source
        if source is None or source.url is None:
            return {}
        if source.files:
            return {f"{source.url}/{name}": self.path / name for name in source.files}
        return {f"{source.url}/{self.path.name}": self.path}

    def commands(self) -> Iterator[str]:
        """What to type to get it."""
        if self.source is None:
            return
        if self.source.written:
            yield shlex.join(["rewards", "fetch", str(self.path)])
        if self.source.asked is not None:
            yield self.source.asked.command(self.patterns, str(self.path), self.source.leave_out)
            return
        for url, target in self.downloads().items():
            yield shlex.join(["curl", "-fL", "--create-dirs", "-o", str(target), url])

    def fetch(self) -> None:
        """Get it, by huggingface_hub or over https, or write it. Raises FetchError."""
        if self.source is None:
            raise FetchError(
                f"{self.field} = {self.path}: nothing is there, and {TABLE.name} does not say where it is from"
            )
        if self.source.written:
            signs.write(self.path)
            return
        if self.source.hub is not None:
            try:
                fetch_folder(self.source.hub, self.field, self.patterns, into=str(self.path))
            except HubError as error:
                raise FetchError(str(error)) from error
            return
        for url, target in self.downloads().items():
            if not target.exists():
                download(url, target)


@dataclass(frozen=True)
class Table:
    """The table: what lies at paths of recipes, what fields are left to the environment, and what services score with."""

    paths: Mapping[str, Source]
    fields: Mapping[str, Source]
    services: Mapping[str, tuple[Source, ...]]


def read_table(path: Path | None = None) -> Table:
    """The table of a file; that of the shipped recipes where none is named."""
    raw: Any = yaml.safe_load((path or TABLE).read_text(encoding="utf-8"))

    def source(fields: Mapping[str, Any]) -> Source:
        lists = {name: tuple(fields.get(name, ())) for name in ("files", "leave_out")}
        return Source(**{**fields, **lists})

    return Table(
        {name: source(each) for name, each in raw["paths"].items()},
        {name: source(each) for name, each in raw["fields"].items()},
        {name: tuple(map(source, each)) for name, each in raw["services"].items()},
    )


def fetched_as(path: Path) -> str | None:
    """What `rewards fetch` takes to get a path that is not there; None where the table has neither it nor what it lies in."""
    here = Path.cwd()
    place = path.relative_to(here) if path.is_relative_to(here) else path
    known = read_table().paths
    for each in (place, *place.parents):
        source = known.get(each.as_posix())
        if source is not None and (not each.exists() or place.name in source.files):
            return str(each)
    return None


def is_brought_along(path: str) -> bool:
    """Whether a path is a shipped file's, or in a folder that another recipe writes."""
    place = Path(path)
    return place.is_relative_to(FOLDER / "assets") or place.parts[0] in (*SHIPPED, "outputs")


def download(url: str, target: Path) -> None:
    """A file over https, under its name only when it is whole. Raises FetchError with the command to run elsewhere."""
    part = target.with_name(f"{target.name}.part")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise FetchError(f"{target}: HF_HUB_OFFLINE is set, and nothing is fetched; unset it, or fetch it elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                if file.tell() + len(chunk) > _LARGEST:
                    raise FetchError(f"{target}: {url} has more than {_LARGEST} bytes, which no file of prompts has")
                file.write(chunk)
        part.replace(target)
    except OSError as error:  # what urllib raises of names, connections and answers
        raise FetchError(f"{target}: {url} did not come ({error})") from error
    finally:
        part.unlink(missing_ok=True)
