"""The real packages, offline: what lands in the run folder, under which names, and what a failure costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from trainer.config import LoggingConfig
from trainer.records.pictures import contact_sheet, thumbnail
from trainer.records.recorder import Recorder
from trainer.records.reporters import REPORTERS, Picture, RunIdentity

ROOT = Path(__file__).resolve().parents[3]
CONFIG = "run_name: first\nrewards: {services: {ocr: {urls: ['http://ann:secret@ocr:18082']}}}\n"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no settings of the person who runs the tests."""
    for package in ("WANDB", "SWANLAB"):
        for name in ("API_KEY", "MODE", "PROJECT", "RUN_NAME", "PROJ_NAME", "EXP_NAME", "DIR", "LOG_DIR"):
            monkeypatch.delenv(f"{package}_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def recorder(run_dir: Path, resume_step: int | None = None, **logging: Any) -> Recorder:
    return Recorder(
        run_dir,
        config_yaml=CONFIG,
        is_main=True,
        resume_step=resume_step,
        max_steps=10,
        logging=LoggingConfig(progress=False, **logging),
    )


def sample(value: int) -> dict[str, Any]:
    pixels = np.full((6, 4, 3), value, np.uint8)
    return {"prompt": "a cat", "images": [pixels], "scores": {"ocr": 0.25, "hps": None}, "read": None}


def run_twice(run_dir: Path, **logging: Any) -> None:
    """Three rows and a picture, then a start that goes on from step 1."""
    with recorder(run_dir, **logging) as first:
        first.save_samples(0, [sample(1), sample(200)])
        for step in range(3):
            first.record({"step": step, "kl": step / 2, "lr": float("nan")})
    with recorder(run_dir, resume_step=1, **logging) as second:
        second.record({"step": 2, "kl": 8.0})


def test_the_configuration_offers_what_is_there() -> None:
    (choices,) = (get_args(a)[0] for a in (LoggingConfig.model_fields["report_to"].annotation,))
    assert set(get_args(choices)) == set(REPORTERS)


def test_wandb_offline_in_the_run_folder_in_numbered_parts(tmp_path: Path) -> None:
    """A sync makes a run of each part: step 2, which was made twice, is in both, and in neither twice."""
    run_twice(tmp_path / "first", report_to=("wandb",), project="words")
    run_id = (tmp_path / "first" / "logs" / "run_id").read_text().strip()
    parts = sorted((tmp_path / "first" / "logs" / "wandb").glob("offline-run-*"), key=lambda part: len(part.name))
    assert [part.name.partition(run_id)[2] for part in parts] == ["", "_2"]
    assert len(list(parts[0].glob("files/media/images/*.png"))) == 2
    recorded = (parts[0] / f"run-{run_id}.wandb").read_bytes()
    names = ["first", "first (part 2, from step 2)"]
    for part, name, steps in zip(parts, names, ([0, 1, 2], [2]), strict=True):
        run, rows = wandb_records(part, len(steps))
        assert (run.run_group, run.run_id) == (run_id, run_id + part.name.partition(run_id)[2])
        assert run.display_name == name and [row["step"] for row in rows if "kl" in row] == steps
    for text in (b"words", b"first", b"a cat | ocr 0.25 | hps no score", b"kl"):
        assert text in recorded, text
    assert b"secret" not in recorded
    assert not (ROOT / "wandb").exists()


def wandb_records(part: Path, least: int) -> tuple[Any, list[dict[str, Any]]]:
    """What a sync would send of a part: its run and its rows, `least` at least. Its own process writes the file."""
    from wandb.proto import wandb_internal_pb2

    [file] = part.glob("run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in log_entries(file.read_bytes())]
        found = {kind: [getattr(r, kind) for r in records if r.HasField(kind)] for kind in ("run", "history")}
        rows = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in each.item} for each in found["history"]]
        if sum("kl" in row for row in rows) >= least:
            return found["run"][0], rows
        assert time.monotonic() < deadline, "wandb wrote no more"
        time.sleep(0.05)


def log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log after W&B's seven bytes: blocks of 32 KiB, each part with sum, length and kind."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # whole, or its last part
            yield whole
            whole = b""


def test_swanlab_offline_in_the_run_folder_in_numbered_parts(tmp_path: Path) -> None:
    run_twice(tmp_path / "first", report_to=("swanlab",), name="second try")
    run_id = (tmp_path / "first" / "logs" / "run_id").read_text().strip()
    parts = sorted((tmp_path / "first" / "logs" / "swanlab").glob("run-*"), key=lambda part: len(part.name))
    assert [part.name.partition(run_id)[2] for part in parts] == ["", "_2"]
    second = b"".join(path.read_bytes() for path in parts[1].rglob("*") if path.is_file())
    assert b"second try (part 2, from step 2)" in second and run_id.encode() in second
    assert len(list(parts[0].glob("media/image/*.png"))) == 2
    recorded = b"".join(path.read_bytes() for path in parts[0].rglob("*") if path.is_file())
    for text in (b"rewards-as-services", b"second try", b"a cat | ocr 0.25 | hps no score", b"kl"):
        assert text in recorded, text
    assert b"secret" not in recorded
    assert not (ROOT / "swanlog").exists()


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_row_without_numbers_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """Row 0 of a run without an evaluation."""
    with recorder(tmp_path / "first", report_to=(name,)) as record:
        record.record({"step": 0, "eval/ocr": None})
    told = "".join(capfd.readouterr())
    assert "reports no more" not in told and "ERROR" not in told


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("wandb", {"WANDB_PROJECT": "from-elsewhere", "WANDB_RUN_NAME": "older-name"}),
        ("swanlab", {"SWANLAB_PROJ_NAME": "from-elsewhere", "SWANLAB_EXP_NAME": "older-name"}),
    ],
)
def test_variables_name_what_the_configuration_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variables: Mapping[str, str]
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with recorder(tmp_path / "first", report_to=(name,)) as record:
        record.record({"step": 0, "kl": 1.0})
    (written,) = (tmp_path / "first" / "logs" / name).glob(f"*run-*/run-*.{name}")
    deadline = time.monotonic() + 60  # a process of theirs writes it
    while not (b"from-elsewhere" in written.read_bytes() and b"older-name" in written.read_bytes()):
        assert time.monotonic() < deadline, "the names are not written"
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "variable"), [("wandb", "WANDB_MODE"), ("swanlab", "SWANLAB_MODE")])
def test_a_mode_in_the_environment_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "disabled")
    with recorder(tmp_path / "first", report_to=(name,)) as record:
        record.record({"step": 0, "kl": 1.0})
    assert not list((tmp_path / "first" / "logs").rglob(f"*.{name}"))


def test_tensorboard_shows_the_pictures_as_one_sheet(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice(tmp_path / "first", report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "first" / "logs" / "tensorboard"))
    events.Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (0, 10, 6)  # two pictures of 4 pixels, 2 between them
    assert [event.value for event in events.Scalars("kl")] == [0.0, 0.5, 8.0]


def answer(prompt: str, text: str, *, finished: bool = True) -> dict[str, Any]:
    """A sample that is a text, with the image of its prompt."""
    own = {"text": text, "length": len(text.split()), "finished": finished, "sources": [np.zeros((6, 4, 3), np.uint8)]}
    return sample(1) | {"prompt": prompt, "images": [], **own}


@pytest.fixture
def told(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    """What a reporter leaves of an evaluation of two answers, after what is written in the background is there."""
    name, words = request.param, (b"what color is it", b"think")
    with recorder(tmp_path / "first", report_to=(name,)) as record:
        record.save_samples(
            0, [answer("what color is it ?", "<think> | red </think>"), answer("b", "c", finished=False)]
        )
        record.record({"step": 0, "kl": 1.0})
    deadline = time.monotonic() + 60
    while True:
        found = b"".join(path.read_bytes() for path in (tmp_path / "first" / "logs").rglob("*") if path.is_file())
        if all(word in found for word in words):
            return found
        assert time.monotonic() < deadline, found[-2000:]
        time.sleep(0.05)


@pytest.mark.parametrize("told", ["wandb", "swanlab", "tensorboard"], indirect=True)
def test_answers_are_shown_with_their_prompts_and_scores(told: bytes) -> None:
    for word in (b"what color is it ?", b"<think>", b"cut off", b"ocr"):
        assert word in told or word.replace(b"<", b"\\u003c").replace(b">", b"\\u003e") in told, word


def test_tensorboard_quotes_answers_as_code(tmp_path: Path) -> None:
    """A tag of an answer is none of the page's, and a bar is no new column."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with recorder(tmp_path / "first", report_to=("tensorboard",)) as record:
        record.save_samples(0, [answer("a | b", "<think> `x`\n</think>")])
    events = EventAccumulator(str(tmp_path / "first" / "logs" / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("answers/text_summary")
    (table,) = text.tensor_proto.string_val
    assert table.decode().splitlines() == [
        "| prompt | answer | ocr | hps | tokens | finished |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `a \\| b` | `<think> 'x' </think>` | 0.25 | no score | 3 | `yes` |",
    ]
    assert [image.step for image in events.Images("prompts")] == [0]


class FailsAtSecondRow:
    def __init__(self, identity: RunIdentity) -> None:
        self.rows: list[int] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.rows:
            raise ConnectionError("the server is gone")
        self.rows.append(step)

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        raise AssertionError("asked again")

    def close(self, *, crashed: bool) -> None:
        raise AssertionError("asked again")


def cannot_start(identity: RunIdentity) -> Any:
    raise ModuleNotFoundError("No module named 'swanlab'")


@pytest.mark.parametrize(
    ("builder", "told"), [(FailsAtSecondRow, "the server is gone"), (cannot_start, "No module named 'swanlab'")]
)
def test_a_reporter_that_fails_is_said_once_and_costs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    builder: Callable[[RunIdentity], Any],
    told: str,
) -> None:
    monkeypatch.setitem(REPORTERS, "swanlab", builder)
    with recorder(tmp_path, report_to=("swanlab", "tensorboard")) as record:
        for step in range(4):
            record.record({"step": step, "kl": 1.0})
        record.save_samples(3, [sample(0)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swanlab reports no more") and told in line
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_run_that_was_not_asked_to_report_imports_no_reporter() -> None:
    code = (
        "import sys, trainer.records.recorder, trainer.records.reporters\n"
        "print(*(n for n in ('wandb', 'swanlab', 'tensorboard', 'torch') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_contact_sheet_places_pictures_of_any_size() -> None:
    images = [np.full((2 + n, 3, 3), 10 * n, np.uint8) for n in range(3)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (2 * 6 - 2, 2 * 5 - 2, 3)  # cells of 4 + 2 by 3 + 2, no gap at the end
    assert (sheet[0, 0] == 0).all() and (sheet[2, 5] == 10).all() and (sheet[9, 2] == 20).all()
    assert (sheet[3, 0] == 255).all()  # below a picture that is lower than its row
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_a_thumbnail_fits_and_is_a_copy() -> None:
    image = np.arange(100 * 50 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 50, 3)
    small = thumbnail(image, 32)
    assert small.shape == (25, 13, 3) and (small[1, 1] == image[4, 4]).all()
    assert not np.shares_memory(small, image) and thumbnail(image, 100).shape == image.shape
