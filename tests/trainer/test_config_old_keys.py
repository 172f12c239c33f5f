"""Names of before: refused in a recipe with the new ones, rewritten by a command, brought up to date in a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.__main__ import main
from trainer.config import Config, ConfigError
from trainer.config.file import load_config, parse_yaml
from trainer.config.old_keys import NEW_PLACES, with_new_keys
from trainer.migration import load_recipe
from trainer.migration.rewrite import migrated_text

ROOT = Path(__file__).resolve().parents[2]
REST = """
rewards:
  services: {s: {urls: ["http://127.0.0.1:1"]}}
  columns: {a: {service: s}}
data:
  train: [{path: a.txt, rewards: {a: 1.0}}]
"""
OLD = (
    """\
# A recipe.
run_name: old
max_steps: 2

algorithm:                 # how it learns
  # The estimator.
  type: grpo_global_std    # Flow-GRPO's
  std_floor: 0.3

  # The loss.
  objective: diffusion_nft
  kl_beta: 1.0e-3          # weak
  clip_range: 1.0e-4
  updates_per_rollout: 2   # twice
  sft:                     # beside it
    path: pictures.json
    coef: 0.1              # a tenth
  timestep_shift: 3.0

# The optimizer.
optim:
  lr: 2.0e-4               # high
"""
    + REST
)
NEW = (
    """\
# A recipe.
run_name: old
max_steps: 2

# how it learns
objective:
  # The loss.
  type: diffusion_nft
  kl_beta: 1.0e-3          # weak
  timestep_shift: 3.0

advantage:
  # The estimator.
  type: grpo_global_std    # Flow-GRPO's
  std_floor: 0.3

sft:                     # beside it
  path: pictures.json
  coef: 0.1              # a tenth
  timestep_shift: 3.0

# The optimizer.
optim:
  lr: 2.0e-4               # high
  updates_per_rollout: 2   # twice
"""
    + REST
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def test_a_recipe_with_old_names_is_refused_with_the_new_ones_and_the_command(old: Path) -> None:
    for load in (load_config, load_recipe):
        with pytest.raises(ConfigError) as raised:
            load(old, Config)
        for words in (
            "algorithm.objective is objective.type now",
            "algorithm.type is advantage.type now",
            "algorithm.timestep_shift is objective.timestep_shift or sft.timestep_shift now",
            f"python -m trainer migrate-config {old} --write",
        ):
            assert words in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.kl_beta=0.1", "write objective.kl_beta=0.1"),
        ("algorithm.type=grpo", "write advantage.type=grpo"),
        ("algorithm.objective=awm", "write objective.type=awm"),
        ("algorithm.updates_per_rollout=2", "write optim.updates_per_rollout=2"),
        ("algorithm.sft.path=a.json", "write sft.path=a.json"),
        ("algorithm.timestep_shift=3", "write objective.timestep_shift=3 or sft.timestep_shift=3"),
        ("algorithm={type: grpo}", "algorithm is now objective, advantage, sft and optim.updates_per_rollout"),
    ],
)
def test_an_override_with_an_old_name_is_refused_with_the_new_one(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(NEW)
    with pytest.raises(ConfigError, match="override 'algorithm") as raised:
        load_recipe(path, Config, [override])
    assert words in str(raised.value)


def test_the_command_prints_the_new_text_and_writes_it_when_asked(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate-config", str(old)]) == 0
    assert capsys.readouterr().out == NEW and old.read_text() == OLD
    assert main(["migrate-config", str(old), "--write"]) == 0
    assert old.read_text() == NEW and [path.name for path in old.parent.iterdir()] == ["old.yaml"]
    config = load_recipe(old, Config)
    assert (config.objective.type, config.advantage.type, config.optim.updates_per_rollout) == (
        "diffusion_nft",
        "grpo_global_std",
        2,
    )
    assert config.sft is not None and config.sft.timestep_shift == 3.0
    capsys.readouterr()
    assert main(["migrate-config", str(old), "--write"]) == 0
    assert "nothing to change" in capsys.readouterr().err and old.read_text() == NEW


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "algorithm: {type: gdpo, kl_beta: 0.1,  # one\n  sft: {path: 'a #b.json'}, timestep_shift: 2}  # two\n",
            "# one\n# two\nobjective:\n  type: flow_grpo\n  kl_beta: 0.1\n\nadvantage:\n  type: gdpo\n\n"
            "sft: {path: 'a #b.json', timestep_shift: 2}\n",
        ),
        (
            "optim: {lr: 1.0}  # x\nalgorithm:\n    updates_per_rollout: 3\n    adv_clip: 3\n",
            "optim: {lr: 1.0, updates_per_rollout: 3}  # x\nadvantage:\n  type: gdpo\n  adv_clip: 3\n",
        ),
        (
            "optim:\n  lr: 1.0\nalgorithm: {kl_beta: 0.1, updates_per_rollout: 3}\n",
            "optim:\n  lr: 1.0\n  updates_per_rollout: 3\nobjective:\n  type: flow_grpo\n  kl_beta: 0.1\n",
        ),
        ("algorithm:\n  updates_per_rollout: 3\noptim:\n", "optim:\n  updates_per_rollout: 3\n"),
        ("algorithm:\n  updates_per_rollout: 3", "optim:\n  updates_per_rollout: 3\n"),
        ("algorithm:\n  nft_beta: 0.1  # its default\nseed: 1\n", "seed: 1\n"),
        ("algorithm:\n  nft_beta: 3\n", "objective:\n  type: flow_grpo\n  nft_beta: 3\n"),
        ("algorithm:\n  sft: null\n", "sft: null\n"),
    ],
)
def test_other_ways_to_write_it(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(before)
    assert migrated_text(path) == after


def test_what_cannot_be_moved_line_by_line_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("algorithm:\n  ? type\n  : grpo\n  kl_beta: 0.1\n")
    with pytest.raises(ConfigError, match=r"by hand: type to advantage\.type; kl_beta to objective.kl_beta"):
        migrated_text(path)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "objective": st.sampled_from(["flow_grpo", "grpo_guard", "diffusion_nft", "awm", "diffusion_dpo", "ppo"]),
    "type": st.sampled_from(["gdpo", "grpo", "dr_grpo"]),
    "sft": st.sampled_from([None, {"path": "a.json"}, {"path": "a.json", "coef": 0.5}]),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.fixed_dictionaries(
        {}, optional={name: VALUES.get(name, st.sampled_from([0.1, 5.0, 1, "uniform"])) for name in NEW_PLACES}
    ),
    flow=st.booleans(),
    optim=st.sampled_from(["", "optim: {lr: 1.0}\n", "optim:\n  lr: 1.0\n", "optim: {}\n", "optim:\n"]),
    first=st.booleans(),
)
def test_any_old_section_becomes_the_new_ones(
    tmp_path: Path, fields: dict[str, Any], flow: bool, optim: str, first: bool
) -> None:
    """The text says what the fields say, whichever way it was written."""
    section = yaml.safe_dump({"algorithm": fields}, sort_keys=False, default_flow_style=None if flow else False)
    text = f"seed: 1\n{optim if first else ''}{section}{'' if first else optim}"
    path = tmp_path / "old.yaml"
    path.write_text(text)
    new = migrated_text(path)
    assert new is not None and parse_yaml(new) == with_new_keys(parse_yaml(text))
    assert "algorithm" not in parse_yaml(new)


def test_a_recipe_of_the_earlier_pre_training_is_refused_with_every_new_name(tmp_path: Path) -> None:
    """It is another program now, with fields of its own, so it is not rewritten."""
    path = tmp_path / "base.yaml"
    path.write_text(
        "run_name: base\noutput: base.safetensors\nmax_steps: 9\nwords: {char_noise: 0.1}\noptim: {muon_lr: 0.02}\n"
    )
    read: list[Callable[[], object]] = [
        lambda: load_config(path, Config),
        lambda: load_recipe(path, Config),
        lambda: migrated_text(path),
    ]
    for refused in read:
        with pytest.raises(ConfigError) as raised:
            refused()
        assert "output is quickstart.output now" in str(raised.value)
        assert "optim.muon_lr is optim.groups.blocks.lr now" in str(raised.value)
    with pytest.raises(ConfigError, match=r"optim\.adamw_lr is optim\.lr now"):
        load_recipe(ROOT / "configs/quickstart_base.yaml", Config, ["optim.adamw_lr=0.1"])


def test_what_a_finished_run_wrote_is_brought_up_to_date_and_that_is_said_once(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's own configuration states every field, those that do not act with its objective, too."""
    idle = "  nft_beta: 0.1\n  importance_cap: 5.0\n  dpo_beta: 100.0\n  guard_reweight: false\n  kl_type: velocity\n"
    run = old.parent / "run"
    run.mkdir()
    path = run / "config.yaml"
    path.write_text(OLD.replace("  timestep_shift: 3.0\n", f"  timestep_shift: 3.0\n{idle}"))
    with pytest.raises(ConfigError, match=r"objective.type now"):
        load_recipe(path, Config)  # a recipe that happens to have this name
    (run / "metrics.jsonl").touch()
    config = load_recipe(path, Config, ["objective.kl_beta=0.5"])
    assert (config.objective.type, config.objective.kl_beta) == ("diffusion_nft", 0.5)
    assert capsys.readouterr().err.count("earlier version of this trainer") == 1
    with pytest.raises(ConfigError, match=r"write objective.kl_beta=0.1"):
        load_recipe(path, Config, ["algorithm.kl_beta=0.1"])
