"""The quickstart as a newcomer starts it: local services with real OCR, a run folder with everything in it, no orphans."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.support.forked import ForkedTrainer
from tests.support.trainer_runs import ROOT, read_metrics, run_command, run_trainer, start_trainer

RECIPE = ROOT / "configs" / "quickstart.yaml"


def services_of(run_dir: Path) -> list[psutil.Process]:
    """Processes that still write to this run's service logs."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(run_dir) in file.path for file in process.open_files()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps on eight held-out prompts."""
    folder = tmp_path_factory.mktemp("quickstart with space")
    lines = (ROOT / "assets" / "quickstart" / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    run_command(RECIPE, f"output_dir={folder}", "max_steps=2", f"evaluation.path='{folder / 'few.jsonl'}'")
    return folder / "quickstart"


def test_the_run_folder_holds_everything(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "summary.json", "report.html", "samples", "checkpoints", "logs"}
    assert {path.name for path in (run_dir / "logs").iterdir()} >= {"ocr.log", "rules.log", "tensorboard"}
    assert (run_dir / "samples" / "step_000002" / "7.png").is_file()


def test_the_summary_has_before_and_after_for_every_reward(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    for moment in ("before", "after"):
        assert set(summary["eval"][moment]) == {"ocr", "color", "ocr_independent"}
        assert all(0 <= value <= 1 for value in summary["eval"][moment].values())
    assert summary["steps"] == 2 and summary["seed"] == 1 and summary["failed_rewards"] == 0
    assert 0 <= summary["reward_wait_share"] < 1


def test_every_ratio_is_exactly_one_and_nothing_failed(run_dir: Path) -> None:
    for row in read_metrics(run_dir)[1:]:
        assert row["ratio/min"] == row["ratio/max"] == 1.0
        assert row["reward/ocr/valid_share"] == row["reward/color/valid_share"] == 1.0
        assert not [key for key in row if key.startswith("failed/")]
        assert row["grad_norm"] > 0


def test_the_page_shows_what_was_read(run_dir: Path) -> None:
    samples = json.loads((run_dir / "samples" / "step_000000.json").read_text(encoding="utf-8"))
    read = [sample["read"] for sample in samples]
    assert sum(bool(text) for text in read) >= 6, "real OCR on a trained base reads nearly every word"
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in read if text)


def test_no_service_outlives_the_run(run_dir: Path) -> None:
    assert services_of(run_dir) == []


def test_a_finished_run_says_so_and_starts_nothing(run_dir: Path) -> None:
    folder = run_dir.parent
    overrides = [f"output_dir={folder}", "max_steps=2", f"evaluation.path='{folder / 'few.jsonl'}'"]
    done = run_trainer(RECIPE, *overrides, output=folder / "again")
    assert "is finished (2 steps): raise max_steps" in done.stdout
    assert "starting" not in done.stderr


def kill_ocr_after_step(run_dir: Path, trainer: ForkedTrainer, step: int) -> None:
    """SIGKILL the OCR service and its workers as soon as row `step` is written."""
    deadline = time.monotonic() + 120
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and f'"step": {step}' in metrics.read_text(encoding="utf-8")):
        assert trainer.poll() is None and time.monotonic() < deadline, "the run ended or never came so far"
        time.sleep(0.01)
    family = psutil.Process(trainer.pid).children(recursive=True)
    services = [
        p for p in family if "services.ocr" in " ".join(p.cmdline()) and "child.py" not in " ".join(p.cmdline())
    ]
    victims = [process for service in services for process in (service, *service.children(recursive=True))]
    assert victims
    for process in victims:
        process.kill()


@pytest.mark.slow
def test_ocr_killed_under_a_running_trainer_comes_back_and_the_run_goes_on(run_dir: Path) -> None:
    folder = run_dir.parent
    overrides = ["run_name=killed", f"output_dir={folder}", "max_steps=4", f"evaluation.path='{folder / 'few.jsonl'}'"]
    overrides += ["evaluation.final_rewards=[]"]
    with start_trainer(RECIPE, *overrides, output=folder / "killed-output") as trainer:
        kill_ocr_after_step(folder / "killed", trainer, step=1)
        assert trainer.wait(timeout=180) == 0, trainer.stderr[-3000:]
    rows = read_metrics(folder / "killed")[1:]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        failed = sum(count for key, count in row.items() if key.startswith("failed/ocr/"))
        assert row["reward/ocr/valid_share"] == pytest.approx(1 - failed / 96), "a failure is counted, never a score"
        assert row.get("reward/ocr/mean", 1.0) > 0.5, "no zero stands in for a score: this base reads far above 0.5"
        assert row["reward/color/valid_share"] == 1.0
    assert rows[-1]["reward/ocr/valid_share"] == 1.0, "the service is back"
    assert (folder / "killed" / "logs" / "ocr.log").read_text(encoding="utf-8").count("listening on") == 2
