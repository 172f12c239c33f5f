"""`python -m trainer evaluate`: the numbers of the run's own evaluations, made again from its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.trainer_runs import ROOT
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.evaluation.files import read_outcomes
from trainer.loop import train
from trainer.records.numbers import plain


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(recipe: Callable[..., Path]) -> Path:
    """The recipe of a finished run of two steps whose average lags far behind its weights."""
    path = recipe(max_steps=2, optim={"lr": 0.05, "ema_decay": 0.5}, evaluation__every=100)
    assert train(load_config(path, Config, ["logging.progress=false"])) == 0
    return path


def test_base_and_checkpoint_score_as_the_run_said(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = load_config(trained, Config).run_dir
    before, after = (read_outcomes(run_dir / "eval" / name) for name in ("step_000000", "step_000002"))
    assert before and [o.scores for o in before] != [o.scores for o in after]
    rows = (run_dir / "metrics.jsonl").read_bytes()
    assert main(["evaluate", str(trained), "--checkpoint", "base"]) == 0
    assert read_outcomes(run_dir / "evaluations" / "base") == before
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--against", str(run_dir / "evaluations" / "base")]) == 0
    folder = run_dir / "evaluations" / "step_000002-average"
    assert read_outcomes(folder) == after
    last = json.loads(rows.splitlines()[-1])
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["weights"] == "step_000002-average" and found["step"] == 2
    for key, value in last.items():
        if key.startswith(("eval/", "stats/heldout")):
            assert found[key] == value
    printed = capsys.readouterr().out
    assert "color" in printed and plain(found["eval/small"]) in printed and "100.0%" in printed
    assert (run_dir / "metrics.jsonl").read_bytes() == rows, "the run's own files are left alone"


def test_an_evaluation_by_another_scorer_is_not_compared(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that was compared with says what scored it; a judge of another revision is another ruler."""
    folder = load_config(trained, Config).run_dir / "evaluations" / "base"
    assert main(["evaluate", str(trained), "--checkpoint", "base"]) == 0
    told = json.loads((folder / "evaluation.json").read_text())
    assert told["scorers"].keys() == {"color", "small"} and told["scorers"]["color"]["range"] == [0.0, 1.0]
    told["scorers"]["color"]["revision"] = "older"
    (folder / "evaluation.json").write_text(json.dumps(told))
    against = ["evaluate", str(trained), "--against", str(folder)]
    assert main(against) == 2
    error = capsys.readouterr().err
    assert "reward color comes from another scorer than in --against" in error and "(revision older, now" in error
    assert "on_change=accept" in error
    config = [*against[:2], "rewards.columns.color.on_change=accept", *against[2:]]
    assert main(config) == 0
    assert "its gain compares two scorers" in capsys.readouterr().out


def test_the_last_weights_are_others_than_their_average(trained: Path, tmp_path: Path) -> None:
    run_dir = load_config(trained, Config).run_dir
    given = ["evaluate", str(trained), "--weights", "trained", "--output", str(tmp_path / "out")]
    assert main([*given, "--checkpoint", str(run_dir / "checkpoints" / "step_000002")]) == 0
    after = read_outcomes(run_dir / "eval" / "step_000002")
    assert [o.scores for o in read_outcomes(tmp_path / "out")] != [o.scores for o in after]


def test_what_cannot_be_evaluated_is_said(
    trained: Path, recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), "evaluation.path=null"]) == 2
    assert "nothing to evaluate: give evaluation.path" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--against", str(tmp_path)]) == 2
    assert "no scores.jsonl" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "policy.num_layers=1"]) == 2
    assert "is of another model than `policy`" in capsys.readouterr().err
    assert main(["evaluate", str(recipe("fresh")), "--checkpoint", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["/dev/null/x", "/proc"])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_drawn(
    recipe: Callable[..., Path], output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer.programs.evaluate.build_policy", lambda *_, **__: pytest.fail("it is known before the work")
    )
    assert main(["evaluate", str(recipe()), "--checkpoint", "base", "--output", output]) == 2
    error = capsys.readouterr().err
    assert f"error: the folder of the evaluation, {output}, cannot be written: " in error
    assert "another with --output" in error and error.count("\n") == 1


def test_before_any_training_there_is_no_checkpoint_yet(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an evaluation of the base has made the run's folder."""
    path = recipe()
    run_dir = load_config(path, Config).run_dir
    for _ in range(2):
        assert main(["evaluate", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {run_dir} has no checkpoint yet: train first")
        (run_dir / "evaluations" / "base").mkdir(parents=True, exist_ok=True)


def test_pictures_are_written_of_sets_with_scoring_alone(trained: Path) -> None:
    """As docs/evaluation.md says: this recipe waits and has no judge, so its pictures are scored and forgotten."""
    run_dir = load_config(trained, Config).run_dir
    assert main(["evaluate", str(trained)]) == 0
    for folder in (run_dir / "eval", run_dir / "evaluations"):
        assert list(folder.rglob("scores.jsonl")) and not list(folder.rglob("*.png"))
    assert list((run_dir / "samples" / "step_000002").glob("*.png"))
