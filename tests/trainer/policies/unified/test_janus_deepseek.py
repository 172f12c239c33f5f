"""Janus in DeepSeek's layout: names, shapes and numbers; converted once, written back, and what is refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.deepseek_reference import DeepSeek
from tests.support.tiny_deepseek import (
    BEGIN,
    CODES,
    END,
    PAD_TAG,
    SIDE,
    make_deepseek,
    published_fields,
    shapes,
    tiny_fields,
)
from tests.support.tiny_vlm import make_vlm, save_pictures
from trainer.config import ConfigError, JanusConfig
from trainer.policies.registry import build_policy
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.images import ImagePolicy
from trainer.policies.unified.janus import build
from trainer.policies.unified.janus.deepseek import converted, read_file, source_files, write_folder
from trainer.policies.unified.janus.geometry import TokenIds, to_fields, to_janus
from trainer.policies.unified.janus.layout import CODEBOOK_USED, deepseek_name, table_of
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.trace import ImageTrace
from trainer.types import Prompt

IDS = TokenIds(1, 2, 3, 4)
CPU = torch.device("cpu")


@dataclass
class Published:
    """A small model as DeepSeek would publish it, and as this trainer reads it, in float64."""

    folder: Path
    weights: dict[str, Tensor]
    model: JanusModel
    reference: DeepSeek


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("deepseek") / "Janus-Pro-tiny"
    weights = make_deepseek(folder)
    model = build(section(folder), CPU)
    network: Any = model.network
    network.double()
    fields = json.loads((folder / "config.json").read_text())
    return Published(folder, weights, model, DeepSeek({name: each.double() for name, each in weights.items()}, fields))


def section(folder: Path, **fields: Any) -> JanusConfig:
    return JanusConfig(type="janus", pretrained=str(folder), dtype="float32", **fields)


@pytest.mark.parametrize(
    ("large", "sources", "targets", "millions"), [(False, 869, 964, 2077), (True, 923, 1018, 7408)]
)
def test_every_tensor_of_the_published_sizes_has_its_place(
    large: bool, sources: int, targets: int, millions: int
) -> None:
    fields = published_fields(large=large)
    table, written_out = table_of(to_janus(fields, IDS, "config.json")), shapes(fields)
    assert len(written_out) == sources
    assert sum(len(each.names) for each in table.values()) == targets
    # A count of which codes were used lies in the file, and nothing reads it.
    assert written_out.pop(CODEBOOK_USED) == (65536,)
    assert {name: source.shape for name, source in table.items()} == written_out
    assert round(sum(math.prod(shape) for shape in written_out.values()) / 1e6) == millions


def test_configurations_go_there_and_back() -> None:
    for fields in (published_fields(), published_fields(large=True), tiny_fields(300)):
        config = to_janus(fields, IDS, "config.json")
        back = to_fields(config, fields["torch_dtype"])
        assert {name: section for name, section in back.items() if name != "language_config"} == {
            name: section for name, section in fields.items() if name != "language_config"
        }
        assert back["language_config"].items() >= fields["language_config"].items() - {
            ("torch_dtype", fields["language_config"]["torch_dtype"])
        }
        assert config.tie_word_embeddings is False


def test_a_tensor_of_no_janus_has_no_name() -> None:
    with pytest.raises(KeyError, match=r"transformer\.x is no tensor of a Janus model"):
        deepseek_name("transformer.x")


@torch.no_grad()
def test_image_features_are_those_of_deepseeks_arithmetic(published: Published) -> None:
    pixels = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network: Any = published.model.network
    found = network.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, published.reference.image_features(pixels), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pixels_are_those_of_deepseeks_decoder(published: Published) -> None:
    tokens = torch.randint(0, CODES, (3, 16), generator=torch.Generator().manual_seed(2))
    network: Any = published.model.network
    expected = published.reference.pixels(tokens)
    torch.testing.assert_close(network.decode_image_tokens(tokens), expected.movedim(1, -1), rtol=1e-9, atol=1e-9)
    bytes_BHWC = ((expected + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1)
    drawn = torch.stack([torch.from_numpy(each) for each in published.model.decode_images(tokens)])
    assert (drawn.int() - bytes_BHWC.int()).abs().max() <= 1  # of float32 pixels that lie at a step of a byte


@torch.no_grad()
def test_an_images_probabilities_are_those_of_deepseeks_sampler(published: Published) -> None:
    """Both branches, guidance and temperature: the tokens' log-probabilities from embeddings to head, as published."""
    model, reference, scale, temperature = published.model, published.reference, 3.0, 0.7
    drawing = model.read_drawing(Prompt(id="p", text=" the red disc "))
    tokens = torch.randint(0, CODES, (2, 16), generator=torch.Generator().manual_seed(3))
    trace = ImageTrace([drawing, drawing], tokens, ImagePlan(2, scale, temperature))
    found = ImagePolicy(model).logp(model.network, trace)

    text = f"{BEGIN}<|User|>: the red disc\n\n<|Assistant|>:<begin_of_image>"
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    empty = ids.clone()
    empty[1:-1] = model.tokenizer.get_vocab()[PAD_TAG]  # and they are attended: there is no mask
    branches = []
    for prompt in (ids, empty):
        before = torch.cat([reference.text_embeddings(prompt).expand(2, -1, -1), reference.image_embeddings(tokens)], 1)
        branches.append(reference.image_logits(reference.hidden(before)[:, len(prompt) - 1 : -1]))
    cond, uncond = branches
    logp = ((uncond + scale * (cond - uncond)) / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert (cond - uncond).abs().max() > 0.1
    torch.testing.assert_close(found, logp.float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_answers_logits_are_those_of_deepseeks_arithmetic(published: Published, tmp_path: Path) -> None:
    model, reference = published.model, published.reference
    (picture, *_) = save_pictures(tmp_path)
    reading = model.read(Prompt(id="q", text="what?", source_images=(picture,)))
    system = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."
    )
    image = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    asked = f"{BEGIN}{system}\n\n<|User|>: {image}\nwhat?\n\n<|Assistant|>:"
    ids = torch.tensor(model.tokenizer(asked, add_special_tokens=False)["input_ids"])
    assert torch.equal(reading.ids_T, ids)
    pixels = reading.inputs["pixel_values"].double()
    assert pixels.min() >= -1 and pixels.max() <= 1
    x = reference.text_embeddings(ids)[None].clone()
    x[0, ids == model.tokenizer.get_vocab()["<image_placeholder>"]] = reference.image_features(pixels)[0]
    batch = model.collate([reading])
    batch["pixel_values"] = batch["pixel_values"].double()
    found = model.network(**batch).logits
    # transformers' norms compute in float32, whatever the weights are in.
    torch.testing.assert_close(found, reference.text_logits(reference.hidden(x)), rtol=0, atol=1e-5)


def test_padding_is_the_tokenizers_own_tag(published: Published) -> None:
    """Its file says that the end of a text pads, as a published one may; the unconditional branch has the tag for it."""
    tokenizer = published.model.tokenizer
    drawing = published.model.read_drawing(Prompt(id="p", text="red"))
    vocab = tokenizer.get_vocab()
    assert set(drawing.uncond_T[1:-1].tolist()) == {vocab[PAD_TAG]} != {vocab[END]}
    assert drawing.uncond_T[[0, -1]].tolist() == [vocab[BEGIN], vocab["<begin_of_image>"]]
    assert drawing.cond_T[[0, -1]].tolist() == [vocab[BEGIN], vocab["<begin_of_image>"]]


def test_texts_are_split_as_the_file_says_and_not_as_its_class_is_named(published: Published) -> None:
    tokenizer = published.model.tokenizer
    text = "the red  disc,\nréd"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[:3] == ["the", "Ġ", "red"]


def test_there_and_back_every_tensor_is_equal(published: Published, tmp_path: Path) -> None:
    model = build(section(published.folder), CPU)
    write_folder(model.network, model.processor, tmp_path, torch.float32, published.folder)
    back = load_file(tmp_path / "model.safetensors")
    assert back.keys() == published.weights.keys()
    assert all(torch.equal(back[name], each) for name, each in published.weights.items())
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / name).read_bytes() == (published.folder / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text()) == tiny_fields(published.weights[HEAD].shape[0])


HEAD = "language_model.lm_head.weight"


def test_shards_are_one_model(published: Published, tmp_path: Path) -> None:
    make_deepseek(tmp_path / "sharded", shards=3)
    target = converted(tmp_path / "sharded", tmp_path / "named")
    assert target == tmp_path / "named"
    assert len(list(target.glob("model-0000?-of-00003.safetensors"))) == 3
    model = build(section(target), CPU)  # a folder of transformers' by itself
    plain = load_file(converted(published.folder, None) / "model.safetensors")
    state = model.network.state_dict()
    assert all(torch.equal(state[name], each) for name, each in plain.items())


def test_safetensors_in_deepseeks_names_are_read_in_place_of_pickles(published: Published, tmp_path: Path) -> None:
    make_deepseek(tmp_path, seed=5)
    save_file(published.weights, tmp_path / "model.safetensors")
    assert source_files(tmp_path) == [tmp_path / "model.safetensors"]
    found = load_file(converted(tmp_path, None) / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], published.weights[HEAD])


def test_a_folder_is_converted_once_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_deepseek(tmp_path / "m")
    target = converted(tmp_path / "m", None)
    said = capfd.readouterr().err
    assert f"GB are converted once, into {target}" in said
    made = (target / "model.safetensors").stat().st_ino
    assert converted(tmp_path / "m", None) == target == tmp_path / "m" / "transformers"
    assert (target / "model.safetensors").stat().st_ino == made
    assert "converted" not in capfd.readouterr().err
    # Another model by the same names: what was converted is no longer it.
    weights = make_deepseek(tmp_path / "m", seed=1)
    os.utime(tmp_path / "m" / "pytorch_model.bin", ns=(0, 0))
    found = load_file(converted(tmp_path / "m", None) / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], weights[HEAD])
    assert sorted(each.name for each in (tmp_path / "m").iterdir() if each.is_dir()) == ["transformers"]


def test_where_a_model_is_converted_into_is_named_and_never_emptied(tmp_path: Path) -> None:
    make_deepseek(tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match=r"holds something else; set policy\.converted to an empty or new folder"):
        converted(tmp_path / "m", tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    with pytest.raises(ConfigError, match=r"cannot be written .*set policy\.converted to a folder with room"):
        converted(tmp_path / "m", tmp_path / "mine" / "letter.txt" / "below")


class Runs:
    """A pickle of this creates a file when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    make_deepseek(tmp_path / "m")
    torch.save({"x": torch.zeros(1), "y": Runs(tmp_path / "ran")}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"pytorch_model\.bin cannot be read as tensors alone .*nothing in it was run"
    ):
        converted(tmp_path / "m", None)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds something else than tensors by name"):
        read_file(tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"version https://git-lfs")
    with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
        read_file(tmp_path / "m" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("gen_embed.weight"), r"lacks 1 of the \d+ tensors .*\(gen_embed\.weight\)"),
        (lambda w: w.update({"ema.weight": torch.zeros(1)}), r"holds 1 tensors that no Janus .*\(ema\.weight\)"),
        (
            lambda w: w.update({"gen_embed.weight": torch.zeros(CODES, 9)}),
            rf"gen_embed\.weight has the shape \({CODES}, 9\), by config\.json it has \({CODES}, 8\)",
        ),
    ],
)
def test_a_file_of_another_model_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    weights = make_deepseek(tmp_path)
    change(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=message):
        converted(tmp_path, None)
    assert not (tmp_path / "transformers").exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("vision_config", "params", "model_name"), "sam_b", r"model_name = sam_b is none of DeepSeek's towers"),
        (("vision_config", "params", "select_layer"), -2, r"select_layer = -2; here the last layer's"),
        (("gen_vision_config", "cls"), "VQ-8", r"gen_vision_config\.cls = VQ-8 is none of DeepSeek's \(VQ-16\)"),
        (("aligner_config", "params", "projector_type"), "linear", r"projector_type = linear; Janus has mlp_gelu"),
        (("gen_head_config", "params", "image_token_embed"), 65, r"image_token_embed = 65 and .*n_embed = 64 differ"),
        (("language_config", "model_type"), "qwen2", r"language_config\.model_type = qwen2; Janus has a llama"),
        (("aligner_config",), {}, r"has no aligner_config\.params\.n_embed"),
        (("gen_vision_config",), None, r"DeepSeek-VL\) draws no images"),
    ],
)
def test_a_configuration_of_another_kind_is_refused_by_field(
    place: tuple[str, ...], value: Any, message: str, tmp_path: Path
) -> None:
    make_deepseek(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    inner = fields
    for name in place[:-1]:
        inner = inner[name]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        converted(tmp_path, None)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    make_deepseek(tmp_path, shards=2)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ConfigError, match=r"names pytorch_model-00002-of-00002\.bin, which is not there"):
        converted(tmp_path, None)
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no files"):
        converted(tmp_path, None)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no weights: DeepSeek's are in pytorch_model\.bin"):
        converted(tmp_path, None)


def test_a_tokenizer_without_a_tag_is_refused(tmp_path: Path) -> None:
    make_deepseek(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(PAD_TAG, "<other>"))
    with pytest.raises(ConfigError, match=f"has no token {PAD_TAG}"):
        converted(tmp_path, None)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        converted(tmp_path, None)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model of type idefics3, which policy\.type janus does not"):
        build(section(make_vlm(tmp_path)), CPU)


def test_a_system_prompt_stands_in_place_of_the_published_sentence(published: Published) -> None:
    model = build(section(published.folder, system_prompt="Be brief."), CPU)
    reading = model.read(Prompt(id="q", text="what?"))
    assert model.tokenizer.decode(reading.ids_T) == f"{BEGIN}Be brief.\n\n<|User|>: what?\n\n<|Assistant|>:"


def test_a_policy_starts_from_deepseeks_folder(published: Published) -> None:
    policy = build_policy(section(published.folder), CPU, keep_reference=False)
    assert policy.about == (
        f"Started from {published.folder}, converted from DeepSeek's layout into {published.folder / 'transformers'}."
    )
    plan = ImagePlan(2, 2.0)
    (rollout,) = policy.sample([Prompt(id="p", text="red", task="generate")], 2, [1, 2], plan)
    assert rollout.samples[0].images[0].shape == (SIDE, SIDE, 3)
