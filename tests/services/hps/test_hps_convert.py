"""Published checkpoints to CLIPModel's weights: what is taken, and what is refused with which sentence."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.hps_reference import SMALL, State, Tower, random_checkpoint
from services.hps.architecture import Architecture
from services.hps.architecture import Tower as OurTower
from services.hps.checkpoint import Checkpoint, CheckpointError, inspect
from services.hps.convert import read_published, shapes_of, to_clip_state, write_folder
from services.hps.model import load_model
from services.hps.vocabulary import read_merges

CPU = torch.device("cpu")


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_vit_h_14_has_686_keys_and_its_published_number_of_parameters() -> None:
    vit_h_14 = Architecture(OurTower(1280, 5120, 32, 16), OurTower(1024, 4096, 24, 16), 224, 14, 49_408, 77, 1024)
    shapes = vit_h_14.shapes()
    assert len(shapes) == 686
    assert sum(math.prod(shape) for shape in shapes.values()) == 986_109_441
    assert Architecture.derive(shapes) == vit_h_14


def test_the_keys_are_those_of_the_published_layout(state: State) -> None:
    architecture, _ = to_clip_state(state)
    assert architecture.shapes() == shapes_of(state)
    assert (architecture.image_size, architecture.patch, architecture.vision.heads) == (56, 14, 2)


def test_every_weight_arrives_where_clip_model_has_it(state: State) -> None:
    from transformers import CLIPConfig, CLIPModel

    architecture, converted = to_clip_state(state)
    config = CLIPConfig(**architecture.config())
    assert shapes_of(converted) == shapes_of(CLIPModel(config).state_dict())
    assert config.text_config.hidden_act == config.vision_config.hidden_act == "gelu"
    assert config.text_config.eos_token_id == 49_407
    block, layer = "visual.transformer.resblocks.2", "vision_model.encoder.layers.2"
    assert torch.equal(converted[f"{layer}.self_attn.k_proj.weight"], state[f"{block}.attn.in_proj_weight"][128:256])
    assert torch.equal(converted[f"{layer}.self_attn.v_proj.bias"], state[f"{block}.attn.in_proj_bias"][256:])
    assert torch.equal(converted[f"{layer}.mlp.fc2.weight"], state[f"{block}.mlp.c_proj.weight"])
    assert torch.equal(converted["text_projection.weight"], state["text_projection"].T)


@pytest.mark.parametrize("form", ["state_dict", "bare", "attn_mask", "before zip", "extra entries"])
def test_each_form_of_file_is_read(tmp_path: Path, state: State, form: str) -> None:
    content: dict[str, Any] = {"state_dict": state, "epoch": 3, "name": "hps"} if form == "extra entries" else state
    if form == "attn_mask":
        content = {**state, "attn_mask": torch.zeros(77, 77)}
    elif form in ("state_dict", "before zip"):
        content = {"state_dict": state}
    path = saved(tmp_path / "HPS_v2.pt", content, _use_new_zipfile_serialization=form != "before zip")
    read = read_published(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_a_converted_folder_has_the_file_s_dtype_and_identity(tmp_path: Path, state: State, vocabulary: Path) -> None:
    path = saved(tmp_path / "HPS_v2_compressed.pt", {key: value.half() for key, value in state.items()})
    checkpoint = inspect(path)
    assert checkpoint == Checkpoint(path, "v2", hashlib.sha256(path.read_bytes()).hexdigest())
    parameters = write_folder(checkpoint, read_merges(vocabulary), tmp_path / "out")
    assert parameters == sum(value.numel() for value in state.values())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert inspect(tmp_path / "out") == replace(checkpoint, path=tmp_path / "out")
    assert read_merges(tmp_path / "out") == read_merges(vocabulary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["HPS_v2_compressed.pt", "out"]


def test_transformers_loads_the_folder_too(folder: Path) -> None:
    from transformers import CLIPModel

    model, report = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.vision_config.num_attention_heads == 2


def test_whoever_may_read_the_config_may_read_the_weights(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_an_existing_folder_is_not_touched(folder: Path, published: Path, vocabulary: Path) -> None:
    before = (folder / "model.safetensors").stat()
    with pytest.raises(CheckpointError, match="exists: remove it or name another folder"):
        write_folder(inspect(published), read_merges(vocabulary), folder)
    assert (folder / "model.safetensors").stat() == before


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, published: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("services.hps.convert.write_merges", full)
    with pytest.raises(OSError, match="No space left"):
        write_folder(inspect(published), read_merges(vocabulary), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


BLOCK = "transformer.resblocks.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, f"{BLOCK}.ln_1.bias", "logit_scale"), rf"2 missing: logit_scale, {BLOCK}\.ln_1\.bias; "),
        (lambda s: {**s, "score_head.weight": torch.zeros(1)}, r"1 unexpected: score_head\.weight"),
        (
            lambda s: {**s, f"{BLOCK}.mlp.c_fc.bias": torch.zeros(7)},
            rf"1 of another shape: {BLOCK}\.mlp\.c_fc\.bias \[7\] instead of \[256\]",
        ),
        (lambda s: without(s, "visual.conv1.weight"), r"no 'visual\.conv1\.weight' among the \d+ keys"),
        (lambda s: {f"module.{key}": value for key, value in s.items()}, r"\(module\.ln_final\.bias, "),
        (lambda _: {}, "among the 0 keys"),
        (lambda s: {**s, "positional_embedding": torch.zeros(77)}, "not an open_clip ViT"),
    ],
)
def test_weights_that_do_not_fit_are_named(state: State, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        to_clip_state(change(state))
    assert "huggingface.co/xswu/HPSv2" in str(caught.value)


@pytest.mark.parametrize(("width", "heads"), [(100, 1), (1408, 16)])
def test_a_width_whose_heads_are_not_known_is_refused(width: int, heads: int) -> None:
    size = replace(SMALL, vision=Tower(width, 1, heads), vocabulary=64)
    with pytest.raises(CheckpointError, match=rf"visual\.transformer is {width} wide"):
        to_clip_state(random_checkpoint(size, 0))


class _Opens:
    """What a hostile pickle holds: a call that would leave a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (open, (str(self._path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, state: State, zipped: bool) -> None:
    victim = tmp_path / "victim"
    content = {"state_dict": {**state, "x": _Opens(victim)}}
    path = saved(tmp_path / "HPS_v2.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="refused, it is damaged or holds more than tensors") as caught:
        read_published(path)
    assert "GLOBAL io.open was not an allowed global" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not victim.exists()


def flipped(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(255 - byte for byte in data[start : start + count]) + data[start + count :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: flipped(data, len(data) - 300, 200),
        lambda data: pickle.dumps([1, 2], protocol=2),
    ],
    ids=["empty", "lfs pointer", "half", "start", "directory", "bare pickle"],
)
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path: Path, published: Path, damage: Any) -> None:
    path = tmp_path / "HPS_v2.1.pt"
    path.write_bytes(damage(published.read_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(f"checkpoint {path}: ")):
        read_published(path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": 3}, {"model": {"a": torch.zeros(1)}}, torch.zeros(1)]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match="no state dict of tensors"):
        read_published(saved(tmp_path / "HPS_v2.pt", content))


@pytest.mark.parametrize(
    ("name", "asked", "version"),
    [
        ("HPS_v2_compressed.pt", None, "v2"),
        ("HPS_v2.1_compressed.pt", None, "v2.1"),
        ("HPS_v2.1.pt", None, "v2.1"),
        ("hps_V2.1.pt", "v2.1", "v2.1"),
        ("HPSv2.pt", None, "v2"),
        ("weights.pt", "v2", "v2"),
    ],
)
def test_the_version_comes_from_the_name_or_the_flag(tmp_path: Path, name: str, asked: Any, version: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert inspect(tmp_path / name, asked).version == version


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("weights.pt", None, "give --version v2 or --version v2.1"),
        ("HPS_v2.2.pt", None, "give --version"),
        ("HPS_v20.pt", None, "give --version"),
        ("HPS_v2.1_compressed.pt", "v2", r"is v2\.1 by its name or config, and --version says v2"),
    ],
)
def test_a_version_that_is_unknown_or_contradicted_is_refused(
    tmp_path: Path, name: str, asked: Any, message: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        inspect(tmp_path / name, asked)


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json and no model\.safetensors there; .* convert"):
        inspect(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for text in ("{}", "[]", "not json"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is not one of ours"):
            inspect(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"hps_version": "v3"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="hps_version is 'v3'"):
        inspect(tmp_path)


def test_a_folder_with_damaged_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    for name in ("config.json", "merges.txt", "model.safetensors"):
        data = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1000] if name == "model.safetensors" else data)
    with pytest.raises(CheckpointError, match=r"cannot be read .* convert it again"):
        load_model(inspect(tmp_path), 49_408, CPU, "fp32")


def test_a_folder_with_weights_of_another_model_is_refused(tmp_path: Path, folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"16 missing: vision_model\.encoder\.layers\.3"):
        load_model(inspect(tmp_path), 49_408, CPU, "fp32")


def test_a_vocabulary_of_another_size_is_refused(published: Path) -> None:
    with pytest.raises(CheckpointError, match="has 49408 token embeddings, the vocabulary 30000"):
        load_model(inspect(published), 30_000, CPU, "fp32")


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of mapped files")
@pytest.mark.parametrize("converted", [True, False])
def test_loading_maps_the_file_instead_of_copying_it(folder: Path, published: Path, converted: bool) -> None:
    """In the file's dtype on the CPU the weights are the mapped file: one copy, in memory the system can take back."""
    path = folder / "model.safetensors" if converted else published
    model = load_model(inspect(folder if converted else published), 49_408, CPU, "fp32")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    mapped = [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]
    assert all(any(weight.data_ptr() in each for each in mapped) for weight in model._towers._model.parameters())


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.hps", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_converts(tmp_path: Path, published: Path, vocabulary: Path, folder: Path) -> None:
    done = convert(published, tmp_path / "out", "--vocabulary", vocabulary)
    assert done.returncode == 0, done.stderr
    sha256 = hashlib.sha256(published.read_bytes()).hexdigest()
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path / 'out'))}: HPSv2\.1, [\d,]+ parameters, from sha256 {sha256}\n", done.stdout
    )
    for name in ("config.json", "merges.txt", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_the_command_answers_a_wrong_file_with_one_sentence(tmp_path: Path, vocabulary: Path) -> None:
    done = convert(tmp_path / "HPS_v2.pt", tmp_path / "out", "--vocabulary", vocabulary)
    assert done.returncode == 1
    assert "services.hps convert: checkpoint" in done.stderr and "no such file" in done.stderr
    assert "Traceback" not in done.stderr
