"""Weights that are missing, damaged or somebody else's: a sentence with the remedy, never a score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.clip.scorer import ClipScorer
from services.clip.settings import ClipSettings, make_scorer
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.linear_head import LinearHead
from services.kit.models.sources import SourceError, inspect_file, inspect_folder
from services.kit.models.tensors import read_tensors, write_tensors
from services.kit.settings import load_settings


@pytest.fixture
def copy(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "copy"))


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(SourceError, match=r"--model .*copy: there (is no|are no)"):
        inspect_folder(copy, "--model")


def test_another_models_folder_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SourceError, match="model_type is 'bert', not one of clip, siglip"):
        inspect_folder(copy, "--model")


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"missing_keys.*visual_projection"):
        ClipScorer(inspect_folder(copy, "--model"), device="cpu").load()


def test_a_torn_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match="cannot be loaded"):
        ClipScorer(inspect_folder(copy, "--model"), device="cpu").load()


def test_the_revision_names_the_folder_and_changes_with_weights_and_processor(copy: Path, clip_folder: Path) -> None:
    first = ClipScorer(inspect_folder(clip_folder, "--model"), device="cpu", dtype="fp32").rewards["clip_sim"].revision
    assert "tiny-clip sha256:" in first and first.endswith(" fp32")
    processor = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 2}))
    other = inspect_folder(copy, "--model")
    assert other.sha256 != inspect_folder(clip_folder, "--model").sha256


def test_a_head_survives_conversion_and_nothing_else_is_unpickled(head_path: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "head.safetensors", read_tensors(head_path)
    assert write_tensors(state, out) == sum(value.numel() for value in state.values())
    rows = torch.randn(3, 24)
    assert LinearHead(read_tensors(out), out)(rows) == LinearHead(state, head_path)(rows)
    with pytest.raises(SourceError, match="exists"):
        write_tensors(state, out)
    torch.save({"layers.0.weight": object()}, tmp_path / "evil.pth")
    with pytest.raises(SourceError, match="refused, it is damaged or holds more than tensors"):
        read_tensors(tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(SourceError, match="holds no dictionary of tensors"):
        read_tensors(tmp_path / "list.pth")


def test_a_head_of_other_layers_or_widths_is_refused(head_path: Path) -> None:
    state = read_tensors(head_path)
    with pytest.raises(SourceError, match=r"has the keys .* instead of"):
        LinearHead({**state, "layers.9.weight": torch.zeros(1)}, head_path)
    with pytest.raises(SourceError, match="do not fit together"):
        LinearHead({**state, "layers.2.weight": torch.zeros(12, 99)}, head_path)


def test_a_head_for_another_backbone_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    from tests.support.tiny_clip import write_aesthetic

    write_aesthetic(tmp_path / "head.pth", seed=0, width=30)
    scorer = ClipScorer(
        inspect_folder(clip_folder, "--model"),
        aesthetic=inspect_file(tmp_path / "head.pth", "--aesthetic"),
        device="cpu",
    )
    with pytest.raises(SourceError, match="takes 30 features and --model gives 24"):
        scorer.load()


def test_one_folder_given_twice_is_loaded_once(clip_folder: Path) -> None:
    source = inspect_folder(clip_folder, "--model")
    scorer = ClipScorer(source, source, device="cpu")
    scorer.load()
    assert len(scorer.backbones) == 1


def test_settings_ask_for_some_weights_and_know_deepgens_variable(
    clip_folder: Path, head_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(ClipSettings, [], prog="clip")
    assert "nothing to serve: give --model, --pickscore or both" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        load_settings(ClipSettings, ["--pickscore", str(clip_folder), "--aesthetic", str(head_path)], prog="clip")
    assert "--aesthetic is a head on --model" in capsys.readouterr().err
    monkeypatch.setenv("CLIP_MODEL_NAME_OR_PATH", str(clip_folder))
    assert load_settings(ClipSettings, [], prog="clip").model == clip_folder
    settings = load_settings(ClipSettings, ["--workers", "2", "--device", "cpu"], prog="clip")
    assert isinstance(make_scorer(settings), ProcessPool)
