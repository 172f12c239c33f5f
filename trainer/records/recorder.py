"""Writes what a run leaves behind: metrics.jsonl, rewards.json, samples/, summary.json, progress; tells the reporters, and
says what has fallen silent.

Rank 0 records; on every other rank each method returns at once. A reader may look at any moment: whole files appear by
a rename, and `metrics.jsonl` grows by whole lines. The report page explains every key of a row.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import yaml
from PIL import Image

from trainer.config import LoggingConfig
from trainer.records.progress import Progress
from trainer.records.reporters import Answer, Picture, Reporters, RunIdentity
from trainer.records.rows.past import Past, cut_rows, remembered
from trainer.records.silence import SilenceWatch

if TYPE_CHECKING:
    import numpy as np

_SAMPLES = re.compile(r"^step_(\d{6,})(\.json)?$")
_CREDENTIALS = re.compile(r"(://)[^/\s@'\"]+@")


class Recorder:
    """The run folder's only writer, beside checkpoints and services' logs.

    Args:
        run_dir: made when missing.
        config_yaml: the resolved configuration, for the reporters.
        is_main: False on all ranks but one; nothing is written there.
        resume_step: the step of the checkpoint that the run goes on from: later rows, samples and events are removed,
            since they will be made again. None starts anew: all earlier ones are removed.
        max_steps: for the progress display.
        logging: what is shown where; its reporters write under `logs`.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        config_yaml: str,
        is_main: bool,
        resume_step: int | None,
        max_steps: int,
        logging: LoggingConfig,
    ) -> None:
        self.run_dir, self.is_main = Path(run_dir), is_main
        self._lines: BinaryIO | None = None
        if not is_main:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        last = -1 if resume_step is None else resume_step
        cut_rows(self.run_dir / "metrics.jsonl", last)
        _cut_samples(self.run_dir / "samples", last)
        # Unbuffered: a line is one write, so a kill leaves whole lines, and a reader sees each at once.
        self._lines = (self.run_dir / "metrics.jsonl").open("ab", buffering=0)
        self._progress = Progress(max_steps, shown=logging.progress, start=max(last, 0))
        self._silence = SilenceWatch(logging.warn_after_steps)
        self._remember(remembered(self.run_dir / "metrics.jsonl", first=logging.warn_after_steps))
        self._reporters = Reporters(logging.report_to, self._identity(config_yaml, resume_step, logging), self.note)

    def _remember(self, past: Past) -> None:
        """Go on with the display and the watch where the rows of earlier starts end."""
        for row in past.first:
            self._silence.add(row)
        if past.first:
            self._silence.skip()
        for row in past.newest:
            self._progress.remember(row)
            self._silence.add(row)

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`: flat, `step` and numbers. A number that is not finite is written as null.

        Row 0 holds the evaluation before training; rows 1 to `max_steps` one finished step each.
        """
        if not self.is_main:
            return
        plain = plain_numbers(row)
        step = plain["step"]
        assert self._lines is not None, "record() after close()"
        self._lines.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        values = {key: value for key, value in plain.items() if key != "step" and value is not None}
        if values:
            self._reporters.scalars(step, values)
        self._progress.show(plain)
        for sentence in self._silence.add(plain):
            self.note(f"warning: {sentence}")

    def save_samples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep evaluation samples: `samples/step_000000/<n>.png` and the list `samples/step_000000.json`.

        A record has `id`, `prompt_id`, `prompt`, `images` (uint8 RGB each), `text` (or None), `scores` (reward to number,
        None where it failed), `read` (what an OCR read, or None) and `seen` (reward to what its service said beside the score).
        One with a text also has its `length` in tokens and whether it is `finished`; one with a text, and one whose prompt has
        images, `sources`: these, small, None where one cannot be shown. Of a policy with tasks it has its `task`, and the `pair`
        that its prompt is a side of, empty where it is of none. In the list, paths in the run folder stand for the images: `image`
        is that of the first (None without one), `more_images` has the others where there are any; those of `sources` are
        `<n>.source<k>.png`.
        """
        if not self.is_main or not records:
            return
        folder = self.run_dir / "samples" / f"step_{step:06d}"
        listing = folder.with_suffix(".json")
        listing.unlink(missing_ok=True)  # first, so that it never names images that are gone
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        written = []
        for number, record in enumerate(records):
            entry = {key: value for key, value in record.items() if key not in {"images", "sources"}}
            names = self._write_images(folder, f"{number}", ".", record["images"])
            more = {"more_images": names[1:]} if names[1:] else {}
            if "sources" in record:
                entry["sources"] = self._write_images(folder, f"{number}.source", "", record["sources"])
            written.append(plain_numbers(entry | {"image": names[0] if names else None} | more))
        write_atomic(listing, json.dumps(written, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        shown = [picture for record in records for picture in _pictures(record, records)]
        if shown:
            self._reporters.pictures(step, shown)
        texts = [_answer(record) for record in records if record.get("text") is not None]
        if texts:
            self._reporters.texts(step, texts)

    def _write_images(self, folder: Path, stem: str, dot: str, images: Sequence[np.ndarray | None]) -> list[str | None]:
        """Write images as `<stem>.png`, `<stem><dot>1.png`, ...; their paths in the run folder, None for one that is None."""
        names: list[str | None] = []
        for n, pixels_HWC in enumerate(images):
            path = folder / f"{stem}{f'{dot}{n}' if n else ''}.png"
            if pixels_HWC is not None:
                Image.fromarray(pixels_HWC).save(path)
            names.append(None if pixels_HWC is None else path.relative_to(self.run_dir).as_posix())
        return names

    def write_scorers(self, records: Mapping[str, Any]) -> None:
        """Write `rewards.json`: `{"scorers": {reward: scorer}, "changes": [...]}`, what scored each reward and since when."""
        if self.is_main:
            write_atomic(self.run_dir / "rewards.json", json.dumps(records, ensure_ascii=False, indent=1) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`; a number that is not finite is written as null."""
        if self.is_main:
            text = json.dumps(plain_numbers(summary), ensure_ascii=False, allow_nan=False, indent=2)
            write_atomic(self.run_dir / "summary.json", text + "\n")

    def note(self, message: str) -> None:
        """Print a line for the person who watches, without breaking the progress bar."""
        if self.is_main:
            self._progress.note(message)

    def farewell(self, lines: Sequence[str]) -> None:
        """End the progress bar, and print lines below it."""
        if self.is_main:
            self._progress.close()
            for line in lines:
                self._progress.note(line)

    def close(self, *, crashed: bool = False) -> None:
        """Close the files, the reporters and the bar. Harmless when called again."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
            self._reporters.close(crashed=crashed)
            self._progress.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(crashed=error is not None)

    def _identity(self, config_yaml: str, resume_step: int | None, logging: LoggingConfig) -> RunIdentity:
        """Under the id of the earlier starts when this one goes on from a checkpoint, else under a new one."""
        path = self.run_dir / "logs" / "run_id"
        resumed = resume_step is not None and path.is_file()
        if not resumed:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, secrets.token_hex(4) + "\n")
        return RunIdentity(
            run_dir=self.run_dir,
            run_id=path.read_text(encoding="utf-8").strip(),
            project=logging.project,
            name=logging.name,
            first_step=0 if resume_step is None else resume_step + 1,
            config=yaml.safe_load(without_credentials(config_yaml)),
        )


def write_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all: a temporary file beside it, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain_numbers(value: Any) -> Any:
    """`value` as JSON holds it: NumPy and torch scalars become Python's, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = value if isinstance(value, float) else value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def without_credentials(text: str) -> str:
    """A configuration's text without the user names and passwords in addresses."""
    return _CREDENTIALS.sub(r"\1", text)


def _pictures(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """A sample's images as reporters show them. What was drawn for a pair has the image beside it that the pair's question is
    about, and in its caption the question and the answer."""
    asked = next((each for each in records if _is_asked(each, record)), None)
    source = None if asked is None else next((image for image in asked["sources"] if image is not None), None)
    if asked is None or source is None:
        return [Picture(pixels_HWC, _caption(record)) for pixels_HWC in record["images"]]
    from trainer.records.pictures import contact_sheet  # with NumPy, which commands that only read a run do without

    caption = f"{_caption(record)} || {_caption(asked)} | {asked['text']}"
    return [Picture(contact_sheet([source, pixels_HWC]), caption) for pixels_HWC in record["images"]]


def _is_asked(record: Mapping[str, Any], drawn: Mapping[str, Any]) -> bool:
    """Whether a record is the answered side of the pair that another one was drawn for."""
    same = bool(drawn.get("pair")) and record.get("pair") == drawn["pair"]
    return same and record.get("task") != drawn.get("task") and bool(record.get("sources"))


def _caption(record: Mapping[str, Any]) -> str:
    """A sample in a line: its prompt and its scores."""
    scores = [
        f"{name} no score" if score is None else f"{name} {score:.3g}" for name, score in record["scores"].items()
    ]
    return " | ".join([str(record["prompt"]), *scores])


def _answer(record: Mapping[str, Any]) -> Answer:
    """A sample with a text as reporters show it."""
    return Answer(
        prompt=str(record["prompt"]),
        text=str(record["text"]),
        scores=dict(record["scores"]),
        length=int(record.get("length", 0)),
        finished=bool(record.get("finished", True)),
        images=[image for image in record.get("sources", ()) if image is not None],
    )


def _cut_samples(folder: Path, last: int) -> None:
    """Remove samples of steps after `last`."""
    for path in sorted(folder.glob("step_*"), reverse=True):  # the list before its images
        match = _SAMPLES.match(path.name)
        if match and int(match.group(1)) > last:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
