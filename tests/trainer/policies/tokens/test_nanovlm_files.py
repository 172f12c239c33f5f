"""Folders of nanoVLM: read with and without a tokenizer, refused by name, written back, and started afresh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, SiglipConfig, SiglipModel, SiglipVisionModel

from tests.support import nanovlm_reference as reference
from trainer.config import ConfigError
from trainer.config.nanovlm import InitializeConfig, NanoVlmConfig
from trainer.policies.tokens.nanovlm import files, layout
from trainer.policies.tokens.nanovlm.fresh import initialize
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    reference.save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    """As nanoVLM writes one: the tokenizer is elsewhere."""
    config = reference.settings(lm_tokenizer=str(tokenizer))
    reference.save_folder(tmp_path / "model", config, reference.random_tensors(config, layout.key_table(config)))
    return tmp_path / "model"


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_is_read_with_the_tokenizer_that_it_names(folder: Path) -> None:
    assert files.is_nanovlm(folder)
    network, processor = files.read_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(network.lm_head.weight, tensors["decoder.head.weight"])
    assert processor.image_token_id == len(reference.WORDS) == network.config.image_token_id
    tags = [*processor.settings.vlm_extra_tokens.values()]
    ids = processor.tokenizer.convert_tokens_to_ids(tags)
    assert ids == list(range(len(reference.WORDS), len(reference.WORDS) + len(tags))), "in the order of the settings"


@torch.no_grad()
def test_several_images_stand_before_the_first_words(folder: Path) -> None:
    network, processor = files.read_folder(folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what is <|image|> this"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<|image|><|image|>what is  this<|im_end|>\n<|im_start|>assistant\n"
    made = processor(text=[text], images=[[Image.new("RGB", (24, 24), "red"), Image.new("RGB", (48, 24), "blue")]])
    assert made["pixel_values"].shape == (1, 4, 3, 24, 24)
    ids = made["input_ids"]
    assert int((ids == processor.image_token_id).sum()) == 4 * 4
    words = processor.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert words[:3] == ["<|im_start|>", "user", "[UNK]"] and words[3:6] == ["image", "[UNK]", "0"]
    tensors = load_file(folder / "model.safetensors")
    expected = reference.logits(tensors, processor.settings, ids, made["pixel_values"][0], processor.image_token_id)
    assert torch.equal(network(**made).logits, expected)
    with pytest.raises(ValueError, match="has 2 image tokens and 1 images"):
        processor(text=[text], images=[[Image.new("RGB", (24, 24))]])


def test_a_text_that_leaves_the_positions_is_refused(folder: Path) -> None:
    _, processor = files.read_folder(folder)
    with pytest.raises(ValueError, match="a text has 257 tokens with its images, and lm_max_position_embeddings = 256"):
        processor(text=["this " * 257])


def test_older_settings_without_some_fields_have_the_defaults(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    for name in ("resize_to_max_side_len", "lm_chat_template", "hf_repo_name", "lm_max_length"):
        del fields[name]
    (folder / "config.json").write_text(json.dumps(fields))
    found = files.read_settings(folder / "config.json")
    assert found.resize_to_max_side_len is False and found.lm_max_length == 4096
    assert found.lm_chat_template == NanoVlmConfig().lm_chat_template


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lm_eos_token_id": 0}, r"config.json: lm_eos_token_id: is no field of nanoVLM's configuration"),
        ({"vit_cls_flag": True}, r"vit_cls_flag = true \(a class token\) cannot be trained here"),
        ({"lm_attn_scaling": 0.5}, r"lm_attn_scaling = 0.5 cannot be trained here"),
        ({"lm_use_tokens": True}, r"lm_use_tokens = true is a language model that takes no images"),
        ({"mp_image_token_length": 49}, r"mp_image_token_length = 49, but .* gives 4 image tokens; set it to 4"),
        ({"lm_n_kv_heads": 3}, r"lm_n_kv_heads = 3 does not divide lm_n_heads = 4"),
        ({"max_img_size": 50}, r"vit_img_size = 24 does not divide max_img_size = 50"),
        ({"vlm_extra_tokens": {}}, r"vlm_extra_tokens names no image_token"),
        ({"lm_vocab_size": 20}, r"has 25 tokens with the 11 of vlm_extra_tokens, but lm_vocab_size = 20"),
        ({"lm_n_blocks": 3}, r"9 tensors are missing \(decoder.blocks.2"),
        ({"lm_tokenizer": "nowhere"}, r"holds no tokenizer, as all folders .* lm_tokenizer = nowhere is no folder"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(folder: Path, fields: dict[str, object], message: str) -> None:
    change(folder, **fields)
    with pytest.raises(ConfigError, match=message):
        files.read_folder(folder)


def test_a_folder_that_is_written_back_is_the_same(folder: Path, tmp_path: Path) -> None:
    network, processor = files.read_folder(folder)
    out = tmp_path / "out"
    out.mkdir()
    files.write_folder(network, processor, out, torch.float32)
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert len(json.loads((out / "config.json").read_text())) == 37
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(out / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "decoder.token_embedding.weight": "decoder.head.weight"}
    change(out, lm_tokenizer="nowhere")  # it has its own now
    again, own = files.read_folder(out)
    assert len(own.tokenizer) == len(processor.tokenizer) and own.image_token_id == processor.image_token_id
    assert torch.equal(again.lm_head.weight, network.lm_head.weight)


def small_backbones(tmp_path: Path) -> tuple[str, str]:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    # With its text encoder, as SigLIP is published.
    siglip = SiglipConfig(
        text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 24, "patch_size": 4}
    )
    SiglipModel(siglip).save_pretrained(tmp_path / "siglip")
    language = LlamaConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    LlamaForCausalLM(language).save_pretrained(tmp_path / "llama")
    return str(tmp_path / "siglip"), str(tmp_path / "llama")


def given(tokenizer: Path, **fields: object) -> NanoVlmConfig:
    """Only what no backbone says."""
    config = reference.settings()
    own = {
        name: getattr(config, name) for name in ("vlm_extra_tokens", "mp_pixel_shuffle_factor", "mp_image_token_length")
    }
    return NanoVlmConfig.model_validate(
        own
        | {
            "max_img_size": 72,
            "lm_vocab_size": 96,
            "lm_tokenizer": str(tokenizer),
            "vit_img_size": 24,
            "vit_patch_size": 4,
        }
        | fields
    )


@torch.no_grad()
def test_a_fresh_model_takes_its_backbones(tmp_path: Path, tokenizer: Path) -> None:
    vision, language = small_backbones(tmp_path)
    config = given(tokenizer, vit_model_type=vision, lm_model_type=language)
    network, processor = initialize(InitializeConfig(vlm_config=config))
    assert processor.settings.lm_n_blocks == 2 and processor.settings.lm_re_base == 1000
    siglip, llama = SiglipVisionModel.from_pretrained(vision), LlamaForCausalLM.from_pretrained(language)
    tiles = torch.rand(2, 3, 24, 24)
    seen = network.model.vision_model(tiles).last_hidden_state
    assert torch.equal(seen, siglip(tiles).last_hidden_state)
    ids = torch.arange(60)[None]
    assert torch.equal(network(input_ids=ids).logits[..., :64], llama(ids).logits)
    extra = network.lm_head.weight[64:]
    assert 0.01 < float(extra.std()) < 0.03 and network.lm_head.weight is network.get_input_embeddings().weight
    (tmp_path / "out").mkdir()
    files.write_folder(network, processor, tmp_path / "out", torch.float32)
    assert torch.equal(files.read_folder(tmp_path / "out")[0](input_ids=ids).logits, network(input_ids=ids).logits)


def test_a_size_that_the_backbone_contradicts_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    vision, language = small_backbones(tmp_path)
    config = given(tokenizer, vit_model_type=vision, lm_model_type=language, lm_n_blocks=5)
    with pytest.raises(ConfigError, match=r"vlm_config.lm_n_blocks = 5, but the backbone has 2: leave it out"):
        initialize(InitializeConfig(vlm_config=config))


def test_a_fresh_model_without_backbones_needs_a_tokenizer_alone(tokenizer: Path) -> None:
    config = reference.settings(lm_tokenizer=str(tokenizer))
    torch.manual_seed(5)
    network, processor = initialize(InitializeConfig(vlm_config=config, load_backbone=False))
    torch.manual_seed(5)
    twin, _ = initialize(InitializeConfig(vlm_config=config, load_backbone=False))
    assert isinstance(processor, NanoVlmProcessor) and processor.settings == config
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert float(network.model.connector.modality_projection.proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_a_model_that_cannot_be_fetched_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = reference.settings(lm_tokenizer="nobody/no-such-tokenizer")
    with pytest.raises(ConfigError) as caught:
        initialize(InitializeConfig(vlm_config=config, load_backbone=False))
    message = str(caught.value)
    assert "policy.initialize.vlm_config.lm_tokenizer = nobody/no-such-tokenizer is no folder here" in message
    assert (
        "\n    hf download nobody/no-such-tokenizer --local-dir models/no-such-tokenizer --include '*.json' " in message
    )
