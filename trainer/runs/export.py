"""The same pages as files: they work from a disk, from a mail, and from any web server, and ask nobody for anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.report import away_from_its_folder
from trainer.runs import compare, downloads
from trainer.runs.catalogue import Catalogue
from trainer.runs.look import inline
from trainer.runs.pages import GalleryQuery, TableQuery, compare_page, gallery_page, run_page, runs_page
from trainer.runs.run import Run
from trainer.runs.samples import image_bytes, steps_of


def export(folder: Path, output: Path, compared: Sequence[str]) -> Path:
    """Write the table, a page and a gallery for each run, and a comparison, into a new folder.

    Args:
        compared: runs by name; none: all where they are few, else the newest.

    Raises:
        ConfigError: `folder` is none, `output` is there already or cannot be written, or a name is no run's.
    """
    catalogue = Catalogue(folder)
    runs = [run for run in (catalogue.whole(each.name) for each in catalogue.runs()) if run is not None]
    chosen = compare.chosen(runs, compared, compare.MAX_RUNS)
    if output.exists():
        raise ConfigError(f"--export: {output} is there already; name a new folder, or move it away")
    # Beside its place, and named only when it is whole: a reader never meets half of it.
    building = output.with_name(f".{output.name}.{os.getpid()}.writing")
    try:
        building.mkdir(parents=True)
        newest = f"The newest {len(chosen)} of {len(runs)} runs."
        _write(catalogue, runs, chosen, "" if compared or len(chosen) == len(runs) else newest, building)
        building.rename(output)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise ConfigError(
            f"--export: {output} cannot be written: {error.strerror}; free space or correct the path"
        ) from error
    return output / "index.html"


def _write(catalogue: Catalogue, runs: Sequence[Run], chosen: Sequence[Run], left: str, folder: Path) -> None:
    """`left`: what the comparison says of runs that it leaves out."""
    links = _FileLinks(runs)
    look, root = inline(links), catalogue.root
    _put(folder / links.runs(), runs_page(catalogue, look, TableQuery(), every_row=True))
    if chosen:
        page = compare_page(chosen, root, look, axis="step", more=[], at=None, left_out=left)
        _put(folder / links.compare([]), page)
    for run in runs:
        _put(folder / links.run(run.name), run_page(run, root, look, "step"))
        if steps_of(run.folder):
            _put(folder / links.gallery(run.name), gallery_page(run, root, look, GalleryQuery()))
        if report := run.folder.text("report.html"):
            _put(folder / links.file(run.name, "report.html"), away_from_its_folder(report))
        if run.written_at is not None:
            with (folder / links.download(run.name, "metrics", "csv")).open("wb") as file:
                downloads.write(partial(downloads.metrics, run.folder), "csv", file)
    for name, path in links.images:
        place = folder / links.image(name, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image_bytes(next(run.folder for run in runs if run.name == name), path))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


class _FileLinks:
    """Names of files beside each other. `images` collects those that pages show."""

    def __init__(self, runs: Sequence[Run]) -> None:
        # A name may hold what a file's may not on another system; numbers keep any two apart.
        self._stems = {run.name: f"{number:04d}_{_plain(run.name)}" for number, run in enumerate(runs)}
        self.images: dict[tuple[str, str], None] = {}

    def runs(self, **_: Any) -> str:
        return "index.html"

    def run(self, name: str) -> str:
        return f"{self._stems[name]}.html"

    def gallery(self, name: str) -> str:
        return f"{self._stems[name]}.gallery.html"

    def compare(self, names: Sequence[str]) -> str:
        return "compare.html"

    def image(self, run: str, path: str) -> str:
        self.images[run, path] = None
        return f"images/{self._stems[run]}/{path.removeprefix('samples/').replace('/', '_')}"

    def file(self, run: str, path: str) -> str:
        return f"{self._stems[run]}.{path.replace('/', '_')}"

    def download(self, run: str, what: str, kind: str) -> str:
        return f"{self._stems[run]}.{what}.{kind}"

    def events(self, run: str = "") -> str:
        return ""

    def charts(self, run: str, axis: str) -> str:
        return ""

    def enter(self) -> str:
        return ""


def _plain(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in name)[:80]
