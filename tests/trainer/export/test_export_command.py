"""The export command, on the tiny policy: where weights come from, what is compared, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import write_checkpoint
from tests.support.finished_runs import make_run
from tests.support.trainer_runs import ROOT
from trainer.__main__ import main
from trainer.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from trainer.config import ConfigError
from trainer.export import ExportError, export_run
from trainer.policies.flow import tiny
from trainer.policies.registry import Exporter

TINY = {"type": "tiny", "num_layers": 1, "num_heads": 2, "head_dim": 16}


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("outputs"), {**TINY, "checkpoint": None})


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "outputs" / "run"))


def saved(run: Path, kind: str) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(list_checkpoints(run / "checkpoints")[-1])
    return {name: checkpoint.read(name)[kind] for name in checkpoint.names}


def exported(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(str(folder / tiny.EXPORT_FILE))
    return {name.removeprefix("transformer."): t for name, t in tensors.items() if name.startswith("transformer.")}


def expect(folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    found = exported(folder)
    for name, tensor in weights.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.mark.parametrize(("weights", "kind"), [("average", "average"), ("trained", "weight")])
def test_weights_and_type_are_those_that_were_asked_for(
    run: Path, tmp_path: Path, weights: Any, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", "safetensors", "--output", str(tmp_path / "out"), "--weights", weights, "--verify"]
    assert main(["export", str(run), *arguments, "--dtype", "float16"]) == 0
    expect(tmp_path / "out", saved(run, kind), torch.float16)
    said = capsys.readouterr().out
    assert "the largest difference is 0\n" in said
    assert re.search(r"2 drawn twice, pixels differ by at most [01] of 255", said), "a picture may round the other way"


def test_checksums_are_what_sha256sum_reads(run: Path, tmp_path: Path) -> None:
    folder = export_run(run, tmp_path / "out", to="safetensors")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "model.safetensors: OK\n"


def test_the_newest_usable_checkpoint_is_taken_or_the_one_that_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = {name: {"weight": t + 1, "average": t + 1} for name, t in saved(run, "weight").items()}
    older, newer = list_checkpoints(run / "checkpoints")[0], write_checkpoint(run / "checkpoints", 4, moved)
    assert "step_000004" in str(newer)
    expect(export_run(run, tmp_path / "a", to="safetensors", dtype="float32"), saved(run, "weight"), torch.float32)
    export_run(older, tmp_path / "b", to="safetensors", dtype="float32")
    (run / "checkpoints" / "best").write_text(json.dumps({"checkpoint": older.name}))
    export_run(run / "checkpoints" / "best", tmp_path / "c", to="safetensors", dtype="float32")
    (newer / "state.json").write_text("{}")
    export_run(run, tmp_path / "d", to="safetensors", dtype="float32")
    assert "passed over: " in capsys.readouterr().out
    shutil.rmtree(newer)
    for name in "bcd":
        expect(tmp_path / name, saved(run, "average"), torch.float32)


def test_an_export_that_lost_a_bit_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tiny.write

    def wrong(model: Any, folder: Path, dtype: torch.dtype) -> None:
        write(model, folder, dtype)
        tensors = load_file(str(folder / tiny.EXPORT_FILE))
        tensors["transformer.proj_out.bias"][0] += 0.5
        save_file(tensors, str(folder / tiny.EXPORT_FILE))

    monkeypatch.setitem(tiny.ENTRY.exporters, "safetensors", Exporter(wrong, tiny.reload))
    with pytest.raises(ExportError, match=r"proj_out\.bias differs by up to 0\.5"):
        export_run(run, tmp_path / "out", to="safetensors", dtype="float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


def test_pictures_that_differ_are_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec is no part of the trained network, so only the pictures show that it is another."""
    reload = tiny.reload

    def other_codec(*args: Any) -> Any:
        model = reload(*args)
        model.model.codec.mean += 0.1
        return model

    monkeypatch.setitem(tiny.ENTRY.exporters, "safetensors", Exporter(tiny.write, other_codec))
    export_run(run, tmp_path / "unseen", to="safetensors")
    with pytest.raises(ExportError, match=r"other images: pixels differ by up to 1[0-9] of 255"):
        export_run(run, tmp_path / "out", to="safetensors", verify=True)


def test_refusals_name_the_remedy(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="the policy tiny cannot be exported to lora; it can to safetensors"):
        export_run(run, tmp_path / "out", to="lora")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists: give --output a folder that does not"):
        export_run(run, tmp_path / "there", to="safetensors")
    assert main(["export", str(tmp_path / "there"), "--to", "safetensors", "--output", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "step_000003")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        export_run(run, tmp_path / "out", to="safetensors")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere", "export: nothing at {path}; correct the path"),
        ("elsewhere", "{path} is neither a run's folder nor a checkpoint: give a folder under outputs/"),
        ("outputs/run/checkpoints", "{path} is neither a run's folder nor a checkpoint"),
        ("outputs/begun", "{path} has no checkpoint yet: train first"),
        (
            "outputs/run/checkpoints/best",
            "export: nothing at {path}; correct the path (checkpoints/best needs checkpoint.keep_best)",
        ),
    ],
)
def test_what_is_no_checkpoint_is_never_to_be_deleted(
    run: Path, tmp_path: Path, given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run.parent / "begun").mkdir()
    shutil.copy(run / "config.yaml", run.parent / "begun")
    path = tmp_path / given
    assert main(["export", str(path), "--to", "safetensors", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: {told.format(path=path)}" in error
    assert "delete" not in error and error.count("\n") == 1


def test_a_checkpoint_without_its_manifest_is_called_damaged(run: Path, tmp_path: Path) -> None:
    """Its state says what it was meant to be."""
    (run / "checkpoints" / "step_000003" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not a usable checkpoint \(manifest\.json is missing\)"):
        export_run(run / "checkpoints" / "step_000003", tmp_path / "out", to="safetensors")


@pytest.mark.parametrize("output", ["/proc/foo/x", "/dev/null/x"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    run: Path, output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.export.command.trained_model", lambda *_: pytest.fail("it is known before the work"))
    assert main(["export", str(run), "--to", "safetensors", "--output", output]) == 2
    error = capsys.readouterr().err
    assert f"error: --output {output} cannot be written: " in error and "correct the path" in error
    assert error.count("\n") == 1


def test_a_checkpoint_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("num_layers: 1", "num_layers: 2"))
    with pytest.raises(CheckpointError, match=r"does not fit the run's config\.yaml: \d+ parameters differ"):
        export_run(run, tmp_path / "out", to="safetensors")
