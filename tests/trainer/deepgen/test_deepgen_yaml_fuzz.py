"""Whatever a YAML file of DeepGen-RL's holds, it is read or refused with a sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import ConfigError, DataConfig
from trainer.migration.deepgen.dataset_yaml import read_dataset_yaml
from trainer.migration.deepgen.eval_yaml import read_eval_yaml

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a.txt", "ocr"])
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=6
)
NUMBERS = st.integers() | st.floats()
REWARDS = st.lists(
    st.dictionaries(st.sampled_from(["ocr", "hps"]) | SCALARS, NUMBERS | SCALARS, max_size=2), max_size=3
)


def entries(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(st.fixed_dictionaries({}, optional=fields) | TREES, max_size=3)


TRAIN = entries(name=SCALARS, path=SCALARS, sample_weight=NUMBERS | TREES, rewards=REWARDS | TREES)
EVAL = entries(name=SCALARS, path=SCALARS, duplicates=TREES, cfg_scale=TREES, num_inference_steps=TREES, scoring=TREES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yaml")
    (path / "a.txt").write_text("a cat\n")
    return path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(datasets=TRAIN | TREES, mode=SCALARS | st.sampled_from(["weight_only"]))
def test_any_training_file_is_read_or_refused(folder: Path, datasets: object, mode: object) -> None:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({"sampling_mode": mode, "datasets": datasets}))
    try:
        raw = read_dataset_yaml(path)
    except ConfigError as error:
        assert "train.yaml" in str(error)
        return
    assert raw["train"] and all(entry["rewards"] and entry["weight"] > 0 for entry in raw["train"])
    try:
        DataConfig.model_validate(raw, strict=True)
    except ValueError as error:
        assert "dataset" in str(error) or "train" in str(error)
        assert "string_pattern_mismatch" not in str(error), "a name is changed, not refused"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(datasets=EVAL | TREES)
def test_any_evaluation_file_is_read_or_refused(folder: Path, datasets: object) -> None:
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump({"datasets": datasets}))
    try:
        found = read_eval_yaml(path)
    except ConfigError as error:
        assert "eval.yaml" in str(error)
        return
    assert found and all(each.path.is_file() and each.duplicates >= 1 for each in found)
