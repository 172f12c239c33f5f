"""DeepGen-RL's own data YAML, unchanged, against live services for all three of its rewards: nothing is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from services.kit.testing.scripted_judge import Question, Reply, brightness
from tests.support.gateways import unifiedreward_gateway
from tests.support.judges import judging
from tests.support.service_process import ready_service
from tests.support.tiny_clip import write_clip
from tests.support.trainer_runs import read_metrics, run_trainer

TRAIN = """
sampling_mode: sample_proportional
datasets:
  - name: text
    path: text.txt
    sample_weight: 3.0
    rewards:
      - unifiedreward_think: 0.2
      - clip_sim: 0.1
      - ocr: 0.7
  - name: general
    path: general.txt
    rewards:
      - unifiedreward_think: 0.7
      - clip_sim: 0.3
"""


@pytest.fixture(scope="module")
def clip_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", seed=0)
    environment = {"CLIP_MODEL_NAME_OR_PATH": str(folder)}  # the variable that DeepGen-RL's guide asks for
    with ready_service("clip", "--device", "cpu", "--threads", "1", env=environment) as url:
        yield url


@pytest.fixture(scope="module")
def ocr_url() -> Iterator[str]:
    with ready_service("ocr", "--mode", "line") as url:
        yield url


def brighter_wins(question: Question) -> Reply:
    first, second = brightness(question.images)
    return Reply(f"<answer>Image {1 if first > second else 2} is better</answer>")


@pytest.fixture(scope="module")
def think_url() -> Iterator[str]:
    """The real gateway before a judge that prefers the brighter image."""
    with judging(brighter_wins, "UnifiedReward") as judge, unifiedreward_gateway(judge.url, "UnifiedReward") as url:  # type: ignore[attr-defined]
        yield url


def test_their_yaml_trains_on_all_three_rewards(
    tmp_path: Path,
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    clip_url: str,
    ocr_url: str,
    think_url: str,
) -> None:
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "text.txt").write_text("".join(f'the word "W{i}" in red\n' for i in "ACDEFGHJKL"))
    (tmp_path / "general.txt").write_text("".join(f'the word "G{i}" in blue\n' for i in "ACDEFGHJKL"))
    shipped = yaml.safe_load((Path(__file__).parents[2] / "configs/deepgen_mr_grpo.yaml").read_text())
    columns = {name: shipped["rewards"]["columns"][name] for name in ("ocr", "unifiedreward_think", "clip_sim")}
    services = {
        "ocr": {"urls": [ocr_url]},
        "unifiedreward": {"urls": [think_url]},
        "clip": {"urls": [clip_url]},
    }
    config = recipe(
        max_steps=2,
        environment="deepgen_rl",
        rewards={"services": services, "columns": columns},
        data={"dataset_config": str(tmp_path / "train.yaml")},
    )

    done = run_trainer(config)

    assert "does without" not in done.stderr
    rows = [row for row in read_metrics(tmp_path / "outputs/run") if row["step"]]
    assert [row["step"] for row in rows] == [1, 2]
    for name in ("ocr", "unifiedreward_think", "clip_sim"):
        shares = [row[f"reward/{name}/valid_share"] for row in rows if f"reward/{name}/valid_share" in row]
        assert shares and set(shares) == {1.0}, name
    assert not any(key.startswith("failed/") for row in rows for key in row)
    assert all(row["grad_norm"] > 0 for row in rows)
