"""Supervised runs on packs, in this process, on the double that reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pack_reader import PackReader
from tests.support.pack_runs import with_double, write_recipe
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.base import Laying
from trainer.records import keys

Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def _with_the_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    with_double(monkeypatch)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name="run", **changes: load_config(write_recipe(tmp_path, name, **changes), Config)


def final(config: Config, kind: str = "weight") -> dict[str, torch.Tensor]:
    return saved_weights(config.run_dir / "checkpoints" / f"step_{config.max_steps:06d}", kind)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_its_rows_and_measures_those_held_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make(max_steps=30, evaluation={"every": 10})
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == list(range(31))
    measured = [row for row in rows if "heldout/ce" in row]
    assert [row["step"] for row in measured] == [0, 10, 20, 30]
    assert measured[-1]["heldout/ce"] < measured[0]["heldout/ce"]
    levels = [f"heldout/mse/{level}" for level in ("0.25", "0.5", "0.75", "0.95")]
    assert all(measured[-1][name] < measured[0][name] for name in levels)
    assert measured[0]["heldout/mse"] == pytest.approx(sum(measured[0][name] for name in levels) / 4)
    assert sum(row["packed/left_out"] for row in rows[1:]) > 0
    told = capsys.readouterr().err
    assert all(told.count(f"left out: {name}:4: txt is missing; give it") == 1 for name in ("drawings", "writings"))
    assert "packed: drawings: 17 rows, 3 held out" in told
    assert all(row["packed/fill"] == row["packed/tokens"] / (2 * 64) <= 1 for row in rows[1:])
    assert sum(row["packed/fill"] for row in rows[1:]) / 30 > 0.9
    assert [key for row in rows for key in row if keys.sentence_of(key) is None] == []
    assert (config.run_dir / "report.html").is_file()
    written = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0 < row["time/packs"] <= row["time/update"] for row in written[1:])


def test_the_held_out_losses_are_those_of_the_averaged_weights_at_fixed_noise(make: Make) -> None:
    """Computed again by hand from the rows that no step draws."""
    from trainer.programs import packs
    from trainer.programs.held_out_packs import LEVELS
    from trainer.seeds import sample_seed

    config = make(max_steps=1)
    assert train(config) == 0
    row = read_metrics(config.run_dir)[1]
    policy = PackReader()
    policy.trainable.load_state_dict(final(config, "average"))
    assert config.packed is not None
    errors: list[torch.Tensor] = []
    squares: dict[float, list[torch.Tensor]] = {level: [] for level in LEVELS}
    of_group: dict[str, list[torch.Tensor]] = {}
    for group in packs.read_groups(config.packed, config.seed):
        for each, number in group.held_out():
            if number == 3:
                continue  # cannot be read
            seed = sample_seed(config.seed, "heldout", group.name, each.name, number)
            for level in LEVELS:
                with torch.no_grad():
                    out = policy.read([policy.lay(each.plan(number), Laying(seed, levels=(level,)))])
                errors += [out.cross_entropy_T] if level == 0.25 else []
                squares[level].append(out.squared_error_L)
                of_group.setdefault(f"{group.name}/mse/{level}", []).append(out.squared_error_L)
                of_group.setdefault(f"{group.name}/ce", []).append(out.cross_entropy_T)
    assert row["heldout/ce"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)
    for level, found in squares.items():
        assert row[f"heldout/mse/{level:g}"] == pytest.approx(torch.cat(found).mean().item(), rel=1e-5)
    for name in ("drawings", "thoughts"):
        means = [torch.cat(of_group[f"{name}/mse/{level}"]).mean().item() for level in LEVELS]
        assert row[f"heldout/{name}/mse"] == pytest.approx(sum(means) / 4, rel=1e-5)
    for name in ("writings", "thoughts"):
        assert row[f"heldout/{name}/ce"] == pytest.approx(torch.cat(of_group[f"{name}/ce"]).mean().item(), rel=1e-5)
    assert "heldout/drawings/ce" not in row and "heldout/writings/mse" not in row


def test_a_held_out_row_that_is_too_long_is_named_and_left_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(make(max_steps=1, packed__max_row_tokens=24, packed__hold_out=16)) == 0
    told = capsys.readouterr().err
    assert re.search(
        r"left out: drawings:\d+ has 2[5-8] tokens, packed\.max_row_tokens is 24; raise it or shorten the row", told
    )


@pytest.mark.parametrize("workers", [0, 3])
def test_a_run_that_is_cut_goes_on_bit_for_bit_with_other_threads(make: Make, workers: int) -> None:
    whole = make("whole")
    assert train(whole) == 0
    assert train(make("cut", max_steps=3)) == 0
    again = make("cut", max_steps=6, packed__workers=workers)
    assert train(again) == 0
    assert same(final(again), final(whole)) and same(final(again, "average"), final(whole, "average"))
    assert read_metrics(again.run_dir) == read_metrics(whole.run_dir)


def test_a_step_that_was_not_made_is_made_by_the_next_start(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that is not finite stops the run; what was drawn for the step is drawn again."""
    whole = make("whole")
    assert train(whole) == 0
    read = PackReader.read
    calls = iter(range(100))

    def breaking(policy: PackReader, pack: Any) -> Any:
        out = read(policy, pack)
        if torch.is_grad_enabled() and next(calls) == 5:  # the second pack of the third step
            out.squared_error_L[:] = torch.nan
        return out

    monkeypatch.setattr(PackReader, "read", breaking)
    stopped = make("stopped")
    assert train(stopped) == 1
    assert "not finite" in capsys.readouterr().err
    monkeypatch.setattr(PackReader, "read", read)
    assert train(stopped) == 0
    assert same(final(stopped), final(whole)) and read_metrics(stopped.run_dir) == read_metrics(whole.run_dir)


def test_other_packs_or_groups_do_not_go_on(make: Make) -> None:
    assert train(make(max_steps=1)) == 0
    with pytest.raises(Exception, match=r"packed\.packs was 2, now 4"):
        train(make(max_steps=2, packed__packs=4))


def test_changed_files_are_noticed(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.pack_rows import groups_of, plans
    from trainer.programs import packs

    assert train(make(max_steps=1)) == 0
    monkeypatch.setattr(
        packs,
        "read_groups",
        lambda packed, seed: groups_of(packed, {n: plans(n, 25) for n in ("drawings", "writings", "thoughts")}, seed),
    )
    assert train(make(max_steps=2)) == 0
    assert "packed: rows of each set were {'drawings': [17]" in capsys.readouterr().err


def test_a_group_of_which_no_row_can_be_used_ends_the_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.pack_rows import groups_of, plans
    from trainer.programs import packs

    found = {
        name: plans(name, 9, bad=range(9) if name == "writings" else ())
        for name in ("drawings", "writings", "thoughts")
    }
    monkeypatch.setattr(packs, "read_groups", lambda packed, seed: groups_of(packed, found, seed))
    config = make()
    with pytest.raises(
        ConfigError, match=r"of writings none of the first \d+ rows can be used, the last: writings:\d: txt is missing"
    ):
        train(config)
    assert not list((config.run_dir / "checkpoints").glob("step_*"))


def test_a_policy_that_reads_no_packs_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.bigram import Bigram
    from trainer.programs import supervised

    monkeypatch.setattr(supervised, "build_policy", lambda section, device, keep_reference: Bigram())
    with pytest.raises(
        ConfigError, match=r"program = supervised trains on packs, which policy\.type = mot cannot read"
    ):
        train(make())


def test_a_run_without_images_shows_no_error_of_images(make: Make) -> None:
    config = make(
        packed={
            "groups": [{"name": "writings", "sets": [{"name": "writings", "path": "a", "format": "t2i"}]}],
            "max_tokens": 64,
            "expected_tokens": 60,
            "hold_out": 2,
        },
        max_steps=2,
    )
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert rows[0]["heldout/mse"] is None and rows[1]["loss/mse"] is None and rows[1]["loss/ce"] > 0


def test_the_report_draws_both_errors(make: Make) -> None:
    from trainer.report.chart_list import charts_of
    from trainer.report.run_folder import load_run

    config = make(max_steps=2)
    assert train(config) == 0
    titles = [chart.title for _, charts in charts_of(load_run(config.run_dir)) for chart in charts]
    assert (
        titles.count("packs: errors")
        == titles.count("packs: errors on held-out rows")
        == titles.count("packs: how full")
        == 1
    )


@pytest.mark.parametrize(
    ("key", "words"),
    [("train_batch_size", r"packed\.packs is 2"), ("train_micro_batch_size_per_gpu", "packs of a forward pass is 1")],
)
def test_a_deepspeed_file_is_compared_with_the_packs(make: Make, tmp_path: Path, key: str, words: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: 4}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{key} is 4 in .*, but {'the ' if 'forward' in words else ''}{words}"):
        make(distributed__deepspeed=str(path))


def test_the_recipe_of_the_page_is_a_recipe(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "packs.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "page.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path, Config)
    assert config.packed is not None and config.packed.packs == 8


def test_the_doctor_looks_at_the_first_rows_of_each_group(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.pack_rows import groups_of, plans
    from trainer.doctor.prompts import check_data
    from trainer.programs import packs

    bad = {"drawings": (2,), "writings": range(9), "thoughts": ()}
    found = {name: plans(name, 9, bad=rows) for name, rows in bad.items()}
    monkeypatch.setattr(packs, "read_groups", lambda packed, seed: groups_of(packed, found, seed))
    findings = [each for each in check_data(make(packed__hold_out=0)) if each.area == "data"]
    told = {each.message.partition(":")[0]: (each.status, each.message) for each in findings}
    assert (
        told["drawings"][0] == "WARN"
        and "of the first 9 that are drawn 1 cannot be used, such as: drawings:3: txt is missing" in told["drawings"][1]
    )
    assert told["writings"][0] == "FAIL" and "9 cannot be used" in told["writings"][1]
    assert told["thoughts"] == ("OK", "thoughts: 9 rows, 0 held out; of the first 9 that are drawn 0 cannot be used")
    assert told["no rows are held out"][0] == "WARN"
