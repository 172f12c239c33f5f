"""Every start's configuration is kept, and what changed between starts is told where it counts."""

from __future__ import annotations

from pathlib import Path

from trainer.records.starts import changes_since, course, keep_start
from trainer.report.page import build_report


def config(**fields: object) -> str:
    lines = {"max_steps": 10, "optim": {"lr": 0.1}, **fields}
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def kept(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "starts").iterdir())


def test_each_start_keeps_its_own_and_the_newest_is_config_yaml(tmp_path: Path) -> None:
    texts = [config(), config(optim={"lr": 0.2}), config(optim={"lr": 0.2})]
    for step, text in zip((None, 4, 6), texts, strict=True):
        keep_start(tmp_path, step, text)
    assert kept(tmp_path) == ["0001_step_000000.yaml", "0002_step_000004.yaml", "0003_step_000006.yaml"]
    assert [(tmp_path / "starts" / name).read_text() for name in kept(tmp_path)] == texts
    assert (tmp_path / "config.yaml").read_text() == texts[-1]
    [(step, [change])] = course(tmp_path)
    assert step == 4 and str(change) == "optim.lr: 0.1 -> 0.2" and change.makes_another_experiment


def test_a_fresh_start_forgets_those_of_the_run_before(tmp_path: Path) -> None:
    keep_start(tmp_path, None, config())
    keep_start(tmp_path, 4, config(seed=2))
    keep_start(tmp_path, None, config(seed=3))
    assert kept(tmp_path) == ["0001_step_000000.yaml"] and course(tmp_path) == []


def test_it_is_compared_with_what_the_steps_before_were_trained_with(tmp_path: Path) -> None:
    """The third start goes back before the second, whose steps are made anew: what the second changed is undone."""
    keep_start(tmp_path, None, config())
    keep_start(tmp_path, 6, config(optim={"lr": 0.2}))
    third = config(max_steps=20)
    assert [str(each) for each in changes_since(tmp_path, 4, third)] == ["max_steps: 10 -> 20"]
    assert len(changes_since(tmp_path, 8, third)) == 2
    keep_start(tmp_path, 4, third)
    assert [(step, [str(each) for each in changed]) for step, changed in course(tmp_path)] == [
        (4, ["max_steps: 10 -> 20"])
    ]


def test_a_folder_that_is_older_than_the_starts_has_its_config_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config())
    assert [str(each) for each in changes_since(tmp_path, 4, config(seed=1))] == ["seed: not set -> 1"]
    keep_start(tmp_path, 4, config(seed=1))
    assert kept(tmp_path) == ["0001_step_000000.yaml", "0002_step_000004.yaml"]
    (tmp_path / "starts" / "0001_step_000000.yaml").write_text("[torn")
    assert course(tmp_path) == [], "what cannot be read is not compared"


def test_fields_inside_lists_are_told_alone_and_passwords_never(tmp_path: Path) -> None:
    keep_start(tmp_path, None, "rewards: {urls: ['http://ann:secret@a:1', 'http://b:2'], columns: {}}\nwait: true\n")
    now = "rewards: {urls: ['http://ann:other@a:1', 'http://c:3'], columns: {ocr: 1}}\nwait: false\n"
    assert [str(each) for each in changes_since(tmp_path, 2, now)] == [
        "rewards.columns: {} -> not set",
        "rewards.columns.ocr: not set -> 1",
        "rewards.urls.1: http://b:2 -> http://c:3",
        "wait: true -> false",
    ]


def test_the_report_shows_where_the_configuration_changed(tmp_path: Path) -> None:
    keep_start(tmp_path, None, config())
    keep_start(tmp_path, 4, config(optim={"lr": 0.2}))
    rows = (f'{{"step": {step}, "reward/ocr/mean": 0.{step}}}\n' for step in range(1, 7))
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "The configuration changed on the way" in page
    assert (
        '<th scope="row">4</th><td class="text"><code>optim.lr</code></td><td class="text">0.1</td><td class="text">0.2</td>'
        in page
    )
    assert "Dotted: the configuration changed." in page
    (tmp_path / "starts" / "0002_step_000004.yaml").write_text(config())
    assert "configuration changed" not in build_report(tmp_path).read_text(encoding="utf-8")
