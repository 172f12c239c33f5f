"""Folders in BAGEL's layout: read strictly, written back whole, and what is wrong with one is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.small_mot import image, picture, row, text
from tests.support.tiny_bagel import VOCABULARY, drawn, make_bagel, network_shapes
from trainer.config import ConfigError
from trainer.config.mot import MotConfig
from trainer.export.comparison import compare_weights, settle
from trainer.policies.base import Laying
from trainer.policies.registry import build_policy, entry_of, exporter_of
from trainer.policies.unified.mot.loading import COMPUTED
from trainer.policies.unified.mot.network import sinusoids_2d
from trainer.policies.unified.mot.policy import MotPolicy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bagel(tmp_path_factory.mktemp("bagel") / "BAGEL")


def _config(folder: Path, **changed: object) -> MotConfig:
    given = {"type": "mot", "pretrained": str(folder), "dtype": "float32", "max_latent_size": 8, **changed}
    return MotConfig.model_validate(given)


def _build(folder: Path, **changed: object) -> MotPolicy:
    policy: MotPolicy = build_policy(_config(folder, **changed), CPU, keep_reference=False)
    return policy


def test_every_tensor_of_a_published_folder_is_read_and_written_back(bagel: Path, tmp_path: Path) -> None:
    policy = _build(bagel)
    given, held = load_file(bagel / "ema.safetensors"), policy.model.network.state_dict()
    assert held.keys() == given.keys() and len(given) == 95, "67 with one layer, 28 for each more"
    for name in given.keys() - set(COMPUTED):
        assert torch.equal(held[name], given[name].float()), name
    assert torch.equal(held["latent_pos_embed.pos_embed"], sinusoids_2d(8, 32)), (
        "computed for the size that is asked for"
    )
    exporter = exporter_of(_config(bagel), "bagel")
    exporter.write(policy.model, tmp_path, torch.bfloat16)
    written = load_file(tmp_path / "ema.safetensors")
    assert written.keys() == given.keys()
    for name in given.keys() - set(COMPUTED):
        assert torch.equal(written[name], given[name]), name
    assert (tmp_path / "ae.safetensors").read_bytes() == (bagel / "ae.safetensors").read_bytes()
    assert json.loads((tmp_path / "vit_config.json").read_text())["num_hidden_layers"] == 2, "one more than is run"
    again = exporter.reload(_config(bagel), tmp_path, CPU)
    assert all(torch.equal(each, held[name]) for name, each in again.network.state_dict().items())
    assert again.words.encode("<|vision_start|>a") == policy.model.words.encode("<|vision_start|>a")


def test_what_is_exported_in_half_precision_is_what_was_trained(bagel: Path, tmp_path: Path) -> None:
    """Rounded before it is compared: all but the tables of positions, which are computed again."""
    policy, exporter = _build(bagel), exporter_of(_config(bagel), "bagel")
    settle(policy.model, torch.bfloat16, merge=True)
    exporter.write(policy.model, tmp_path, torch.bfloat16)
    again = exporter.reload(_config(bagel), tmp_path, CPU)
    assert "the largest difference is 0" in compare_weights(policy.model, again, adapters=False, dtype=torch.bfloat16)


def test_a_folder_of_a_step_gives_its_averaged_weights_or_its_own(bagel: Path, tmp_path: Path) -> None:
    step = tmp_path / "0030000"
    step.mkdir()
    save_file(drawn(network_shapes(), 5), step / "ema.safetensors")
    save_file(drawn(network_shapes(), 6), step / "model.safetensors")
    (step / "scheduler.pt").write_bytes(b"never read")
    for use_ema, seed in ((True, 5), (False, 6)):
        policy = _build(bagel, weights=str(step), use_ema=use_ema)
        wanted = drawn(network_shapes(), seed)["vae2llm.weight"].float()
        assert torch.equal(policy.model.network.vae2llm.weight.detach(), wanted)
    (step / "ema.safetensors").unlink()
    assert "0030000/model.safetensors" in _build(bagel, weights=str(step)).about, "there is no other"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lacks": "connector.fc1.bias"}, r"lacks 1, first connector\.fc1\.bias"),
        (
            {"adds": "language_model.model.layers.9.mlp.up_proj.weight"},
            r"has, and the network has not, 1, first .*layers\.9",
        ),
        ({"cuts": "llm2vae.bias"}, r"another shape 1, first llm2vae\.bias \[3\] in place of \[64\]"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_weight_that_does_not_fit_is_named(bagel: Path, tmp_path: Path, change: dict[str, str], said: str) -> None:
    weights = load_file(bagel / "ema.safetensors")
    weights.pop(change.get("lacks", ""), None)
    if "adds" in change:
        weights[change["adds"]] = torch.zeros(1)
    if "cuts" in change:
        weights[change["cuts"]] = torch.zeros(3)
    save_file(weights, tmp_path / "ema.safetensors")
    with pytest.raises(ConfigError, match=said):
        _build(bagel, weights=str(tmp_path))


def test_the_two_tables_of_positions_may_differ_or_be_missing(bagel: Path, tmp_path: Path) -> None:
    weights = load_file(bagel / "ema.safetensors")
    del weights["latent_pos_embed.pos_embed"]
    weights["vit_pos_embed.pos_embed"] = torch.zeros(4, 32)
    save_file(weights, tmp_path / "ema.safetensors")
    held = _build(bagel, weights=str(tmp_path)).model.network
    assert torch.equal(held.vit_pos_embed.pos_embed, sinusoids_2d(4, 32))


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("llm_config.json", {"model_type": "llama"}, r"llm_config\.json: model_type = 'llama'.*'qwen2'"),
        ("llm_config.json", {"hidden_size": "wide"}, r"hidden_size = 'wide' is no whole number"),
        ("vit_config.json", {"hidden_act": "relu"}, r"vit_config\.json: hidden_act = 'relu'"),
        ("llm_config.json", None, r"llm_config\.json cannot be read"),
        ("ae.safetensors", None, r"neither ae\.safetensors .* nor codec\.safetensors"),
        ("ema.safetensors", None, r"neither ema\.safetensors nor model\.safetensors"),
        ("tokenizer.json", None, r"tokenizer"),
    ],
)
def test_a_folder_that_lacks_something_is_named(
    bagel: Path, tmp_path: Path, file: str, fields: dict[str, object] | None, said: str
) -> None:
    folder = shutil.copytree(bagel, tmp_path / "copy")
    if fields is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        _build(folder)


def test_damaged_files_are_named(bagel: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bagel, tmp_path / "copy")
    (folder / "ae.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"ae\.safetensors cannot be read as FLUX's autoencoder"):
        _build(folder)
    shutil.copyfile(bagel / "ae.safetensors", folder / "ae.safetensors")
    (folder / "ema.safetensors").write_bytes((bagel / "ema.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"ema\.safetensors cannot be read as safetensors"):
        _build(folder)


def test_tags_that_the_tokenizer_lacks_are_added_and_get_rows_where_there_are_none(bagel: Path, tmp_path: Path) -> None:
    policy = _build(bagel)
    words = policy.model.words
    assert (words.start, words.end, words.image_start, words.image_end) == (256, 257, 258, 259)
    assert policy.model.network.geometry.language.vocab_size == VOCABULARY, "there are spare rows"
    folder = shutil.copytree(bagel, tmp_path / "copy")
    fields = json.loads((folder / "llm_config.json").read_text()) | {"vocab_size": 258}
    (folder / "llm_config.json").write_text(json.dumps(fields), encoding="utf-8")
    weights = load_file(bagel / "ema.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        weights[name] = weights[name][:258].clone()
    save_file(weights, folder / "ema.safetensors")
    grown = _build(folder).model.network
    rows = grown.language_model.model.embed_tokens.weight.detach()
    assert len(rows) == len(grown.language_model.lm_head.weight) == grown.geometry.language.vocab_size == 260
    torch.testing.assert_close(rows[258], rows[:258].mean(0))


def test_fluxs_names_are_diffusers_own_names_of_them(bagel: Path) -> None:
    """By diffusers' converter of the same file, which knows nothing of ours."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from trainer.policies.unified.mot.flux_vae import read_vae

    ours = read_vae(bagel / "ae.safetensors")
    theirs = convert_ldm_vae_checkpoint(load_file(bagel / "ae.safetensors"), dict(ours.config))
    assert theirs.keys() == ours.state_dict().keys()
    assert all(torch.equal(each, ours.state_dict()[name]) for name, each in theirs.items())
    assert isinstance(ours, AutoencoderKL)


def test_a_published_folder_reads_rows(bagel: Path, tmp_path: Path) -> None:
    policy = _build(bagel)
    path = picture(tmp_path, "wide", "green", (64, 48))
    plan = row("edit", text("make"), image(path, "clean"), image(path, "seen"), image(path, "drawn"))
    laid = policy.lay(plan, Laying(0))
    assert laid.drawn == 8 * 6, "128 x 96 pixels, 16 a token: as large as there are positions"
    assert laid.length == 6 + (48 + 2) + (4 * 3 + 2) + (48 + 2)
    out = policy.read([laid])
    assert out.squared_error_L.shape == (48,) and out.squared_error_L.isfinite().all()


def test_sizes_come_from_headers(bagel: Path) -> None:
    policy = _build(bagel, freeze=("language", "vision"))
    entry = entry_of(policy.model.config)
    found = entry.sizes(policy.model.config)
    network = policy.model.network
    assert found.trained == sum(each.numel() for each in network.parameters() if each.requires_grad)
    tables = 32 * (6 * 6 + 4 * 4)
    assert found.positions == 4 * tables, "those in the file"
    frozen = sum(each.numel() for each in network.parameters()) - found.trained - 32 * (8 * 8 + 4 * 4)
    assert found.network == 4 * frozen
