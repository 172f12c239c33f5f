"""Exports in DeepGen's supervised layout: names, values, both file types, and the same pictures from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.finished_runs import make_run
from tests.support.tiny_deepgen import TinyDeepGen, make_deepgen
from tests.support.trainer_runs import ROOT
from trainer.checkpoint import Checkpoint, list_checkpoints
from trainer.export import DTYPES, export_run


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDeepGen:
    return make_deepgen(tmp_path_factory.mktemp("deepgen"))


def averages(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(list_checkpoints(run / "checkpoints")[-1])
    return {f"transformer.{name}": checkpoint.read(name)["average"] for name in checkpoint.names}


def test_the_file_holds_all_but_language_model_and_autoencoder(tmp_path: Path, tiny: TinyDeepGen) -> None:
    run = make_run(tmp_path / "outputs", tiny.section())
    folder = export_run(run, tmp_path / "out", to="deepgen", dtype="float32", verify=True)
    started_from, found = load_file(str(tiny.checkpoint)), load_file(str(folder / "model.safetensors"))
    assert found.keys() == {name for name in started_from if not name.startswith(("lmm.", "vae.", "ema."))}
    trained = averages(run)
    for name, tensor in found.items():
        assert torch.equal(tensor, trained.get(name, started_from[name])), name
    assert trained.keys() <= found.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_adapters_of_the_transformer_are_merged(tmp_path: Path, tiny: TinyDeepGen, dtype: str) -> None:
    run = make_run(tmp_path / "outputs", tiny.section(lora={"rank": 4, "alpha": 6.0}) | {"dtype": "bfloat16"})
    folder = export_run(run, tmp_path / "out", to="deepgen", verify=dtype == "bfloat16", dtype=dtype)
    found = load_file(str(folder / "model.safetensors"))
    assert found.keys() == {name for name in load_file(str(tiny.checkpoint)) if not name.startswith("lmm.")}
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}


def test_a_pt_file_holds_the_same_tensors_and_nothing_else(tmp_path: Path, tiny: TinyDeepGen) -> None:
    run = make_run(tmp_path / "outputs", tiny.section())
    plain = load_file(str(export_run(run, tmp_path / "a", to="deepgen") / "model.safetensors"))
    pickled = torch.load(export_run(run, tmp_path / "b", to="deepgen_pt") / "model.pt", weights_only=True)
    assert pickled.keys() == plain.keys()
    assert all(torch.equal(pickled[name], tensor) for name, tensor in plain.items())


def test_an_export_can_be_trained_and_exported_again(tmp_path: Path, tiny: TinyDeepGen) -> None:
    """It has no language model of its own: that comes from where the first run started."""
    first = export_run(make_run(tmp_path / "one", tiny.section()), tmp_path / "a", to="deepgen", dtype="float32")
    section = tiny.section() | {"checkpoint": str(first), "lmm_checkpoint": str(tiny.checkpoint)}
    run = make_run(tmp_path / "two", section, step=5)
    again = export_run(run, tmp_path / "b", to="deepgen", dtype="float32", verify=True)
    before, after = (load_file(str(folder / "model.safetensors")) for folder in (first, again))
    trained = averages(run)
    assert after.keys() == before.keys() and trained.keys() <= after.keys()
    assert all(torch.equal(tensor, trained.get(name, before[name])) for name, tensor in after.items())
