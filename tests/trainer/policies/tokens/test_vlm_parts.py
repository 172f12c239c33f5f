"""What of a model that writes is trained: adapters, parts that are frozen, types, and how models are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support import nanovlm_reference as reference
from trainer.config import ConfigError, VlmConfig
from trainer.config.nanovlm import NanoVlmConfig
from trainer.objectives.tokens.given import shortened
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.nanovlm import layout
from trainer.policies.tokens.nanovlm.adapters import layers_of
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.sizes import sizes
from trainer.policies.tokens.vlm import build
from trainer.types import Conversation, Prompt, Turn

CPU = torch.device("cpu")
SIX = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
USUAL = ("down_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "v_proj")  # NanoVLM-Lab's list


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    config = reference.settings(lm_tokenizer=str(folder))
    reference.save_folder(folder, config, reference.random_tensors(config, layout.key_table(config)))
    reference.save_tokenizer(folder)
    return folder


def model_of(folder: Path, **fields: Any) -> Any:
    return build(VlmConfig(type="vlm", pretrained=str(folder), **{"dtype": "float32", **fields}), CPU)


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}


def layers(model: Any) -> set[str]:
    return {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained(model)}


def test_adapters_are_put_on_the_language_model(vlm_folder: Path) -> None:
    model = model_of(vlm_folder, lora={"rank": 4})
    ends = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    ends += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert layers(model) == {f"model.text_model.layers.{i}.{end}" for i in range(2) for end in ends}


def test_adapters_are_put_where_the_recipe_says(vlm_folder: Path) -> None:
    assert {name.split(".")[1] for name in layers(model_of(vlm_folder, lora={"target_modules": ["q_proj"]}))} == {
        "text_model",
        "vision_model",
    }
    frozen = model_of(vlm_folder, lora={"target_modules": ["q_proj"]}, freeze=["vision"])
    assert layers(frozen) == {f"model.text_model.layers.{i}.self_attn.q_proj" for i in range(2)}
    with pytest.raises(ConfigError, match=r"no linear layer ends in 'qkv'; there are .*q_proj"):
        model_of(vlm_folder, lora={"target_modules": ["qkv"]})
    with pytest.raises(
        ConfigError, match=r"policy.freeze = \[language\] leaves nothing to train: all adapters are in frozen"
    ):
        model_of(vlm_folder, lora={}, freeze=["language"])


def test_frozen_parts_are_left_as_they_are(vlm_folder: Path) -> None:
    model = model_of(vlm_folder, freeze=["vision", "projector"], dtype="bfloat16")
    assert all(name.startswith(("model.text_model.", "lm_head")) for name in trained(model))
    types = {name: parameter.dtype for name, parameter in model.network.named_parameters()}
    assert set(types.values()) == {torch.float32}
    model = model_of(vlm_folder, lora={}, dtype="bfloat16")
    for name, parameter in model.network.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
    assert all(buffer.dtype == torch.float32 for name, buffer in model.network.named_buffers() if "inv_freq" in name)


@pytest.mark.parametrize("fields", [{}, {"lora": {"rank": 2}}, {"freeze": ["vision"]}])
def test_bfloat16_computes_near_float32(vlm_folder: Path, pictures: list[str], fields: dict[str, Any]) -> None:
    prompts = [Prompt("p", "what color is the disc ?", source_images=(path,)) for path in pictures]
    exact = TokenPolicy(model_of(vlm_folder, **fields), keep_reference=False)
    [rollout] = exact.sample(prompts, 1, range(4), TokenPlan(micro_batch_size=4, max_new_tokens=6))
    rounded = TokenPolicy(model_of(vlm_folder, dtype="bfloat16", **fields), keep_reference=False)
    expected, found = (each.replay(rollout, each.parts(rollout)[0]).logp_BS for each in (exact, rounded))
    difference = (expected - found)[rollout.mask_BS].abs()
    assert found.dtype == torch.float32 and 0 < float(difference.max().detach()) < 0.15
    [drawn] = rounded.sample(prompts, 1, range(4), TokenPlan(micro_batch_size=4, max_new_tokens=6))
    again = rounded.replay(drawn, rounded.parts(drawn)[0]).logp_BS.detach()
    assert float((again - drawn.logp_BS)[drawn.mask_BS].abs().max()) < 0.15, "drawn and replayed in one type"


def test_blocks_are_computed_again_where_memory_is_short(vlm_folder: Path, pictures: list[str]) -> None:
    """transformers recomputes in training mode alone, and the network never is in it."""
    grads, calls = [], []
    prompts = [Prompt("p", "which ?", source_images=tuple(pictures[:2]))]
    for fields in ({}, {"gradient_checkpointing": True}):
        policy = TokenPolicy(model_of(vlm_folder, **fields), keep_reference=False)
        network: Any = policy.model.network
        [rollout] = policy.sample(prompts, 2, range(2), TokenPlan(micro_batch_size=2, max_new_tokens=4))
        count = [0]
        network.model.text_model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        policy.replay(rollout, policy.parts(rollout)[0]).logp_BS.sum().backward()
        calls.append(count[0])
        grads.append(network.model.vision_model.post_layernorm.weight.grad)
        assert not any(module.training for module in network.modules())
    assert calls == [1, 2]
    torch.testing.assert_close(*grads)


def test_the_usual_list_has_six_targets_in_nanovlm(nano_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(nano_folder, lora={"target_modules": list(USUAL)})
    found = layers(model)
    assert len(found) == 2 * 6 and not any("o_proj" in name or "vision" in name for name in found)
    assert "policy.lora.target_modules: 'o_proj' fits no layer of a nanoVLM model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="none of o_proj fits a layer of a nanoVLM model"):
        model_of(nano_folder, lora={"target_modules": ["o_proj"]})


def test_six_targets_of_nanovlm_230m_have_the_published_number_of_parameters() -> None:
    """4.33 M at rank 16, as NanoVLM-Lab prints: SmolLM2-135M between 30 blocks."""
    config = NanoVlmConfig(lm_hidden_dim=576, lm_inter_dim=1536, lm_n_heads=9, lm_n_kv_heads=3, lm_n_blocks=30)
    table = layout.key_table(config)
    names = {theirs: ours for ours, theirs in layout.modules(config).items()}
    found = [table[f"{names[layer]}.weight"] for end in SIX for layer in layers_of(config, end)]
    assert len(found) == 180 and 16 * sum(sum(shape) for shape in found) == 4_331_520


def save_adapters(
    folder: Path, layers: dict[str, tuple[int, int]], rank: int = 4, alpha: int = 8
) -> dict[str, torch.Tensor]:
    """A folder as PEFT saves one around nanoVLM's own model."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (outputs, inputs) in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "lusxvr/nanoVLM-222M"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return tensors


@torch.no_grad()
def test_adapters_in_nanovlms_names_are_gone_on_from(nano_folder: Path, tmp_path: Path) -> None:
    own = {"decoder.blocks.1.attn.out_proj": (32, 32), "vision_encoder.blocks.0.attn.qkv_proj": (96, 32)}
    tensors = save_adapters(tmp_path / "lora", own)
    lora = {"rank": 4, "alpha": 4.0, "path": str(tmp_path / "lora"), "target_modules": ["out_proj", "qkv_proj"]}
    model = model_of(nano_folder, lora=lora)
    base = model_of(nano_folder)
    merged = model.network.merge_and_unload().state_dict()
    for ours, theirs in (
        ("decoder.blocks.1.attn.out_proj", ["model.text_model.layers.1.self_attn.o_proj"]),
        (
            "vision_encoder.blocks.0.attn.qkv_proj",
            [f"model.vision_model.encoder.layers.0.self_attn.{p}_proj" for p in "qkv"],
        ),
    ):
        a, b = (tensors[f"base_model.model.{ours}.lora_{each}.weight"] for each in "AB")
        weight = torch.cat([base.network.get_submodule(name).weight for name in theirs])
        found = torch.cat([merged[f"{name}.weight"] for name in theirs])
        torch.testing.assert_close(found, weight + 8 / 4 * (b @ a), atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ConfigError,
        match=r"adapters of 4 layers, and 4 of them get none here, first model.text_model.layers.1.self_attn",
    ):
        model_of(nano_folder, lora=lora | {"target_modules": ["q_proj"]})


def test_a_folder_of_adapters_is_no_model(tmp_path: Path) -> None:
    save_adapters(tmp_path / "lora", {"decoder.blocks.0.attn.q_proj": (32, 32)})
    with pytest.raises(
        ConfigError, match=r"set policy.pretrained to lusxvr/nanoVLM-222M and policy.lora.path to .*lora"
    ):
        model_of(tmp_path / "lora")


def test_a_model_is_named_or_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither of pretrained and initialize is given"):
        VlmConfig(type="vlm")
    with pytest.raises(ValueError, match="both of pretrained and initialize is given"):
        VlmConfig(type="vlm", pretrained="x", initialize={"load_backbone": False})
    reference.save_tokenizer(tmp_path)
    fields = reference.settings(lm_tokenizer=str(tmp_path)).model_dump()
    section = VlmConfig.model_validate({"type": "vlm", "initialize": {"vlm_config": fields, "load_backbone": False}})
    model = build(section, CPU)
    assert model.about == "A fresh nanoVLM model, with random weights."
    assert sizes(section).trained == sum(parameter.numel() for parameter in model.network.parameters())


def test_sizes_are_those_of_what_is_trained(vlm_folder: Path, nano_folder: Path) -> None:
    for folder in (vlm_folder, nano_folder):
        for fields in ({}, {"freeze": ["vision"]}, {"lora": {"rank": 3}}):
            section = VlmConfig.model_validate({"type": "vlm", "pretrained": str(folder), **fields}, strict=False)
            model = build(section, CPU)
            parts = list(model.network.parameters())
            found = sizes(section)
            assert found.trained == sum(each.numel() for each in parts if each.requires_grad), (folder, fields)


def test_a_hub_id_that_cannot_be_reached_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        build(VlmConfig(type="vlm", pretrained="nobody/no-such-model"), CPU)
    message = str(caught.value)
    assert "policy.pretrained = nobody/no-such-model is no folder here, and the hub did not give it" in message
    assert "hf download nobody/no-such-model --local-dir models/no-such-model" in message


def test_a_hub_id_that_is_in_the_cache_is_taken(
    vlm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    revision = "0" * 40
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / revision
    shutil.copytree(vlm_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = model_of(Path("somebody/tiny"))
    assert model.about == "Started from somebody/tiny."


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"outputs/bose is no folder, and no id of the hub .*did you mean outputs/base\?"
    ):
        build(VlmConfig(type="vlm", pretrained="outputs/bose"), CPU)


def test_answers_that_leave_nanovlms_positions_are_refused(nano_folder: Path) -> None:
    policy = TokenPolicy(model_of(nano_folder), keep_reference=False)
    prompt = Prompt("p", "what is this a cat")
    reading = policy.model.read(prompt)
    count = 256 - len(reading.ids_T)
    policy.logp([reading], [[5] * count])
    with pytest.raises(
        ConfigError, match=rf"with {count + 1} behind it .* set policy.max_prompt_tokens to {255 - count}"
    ):
        policy.logp([reading], [[5] * (count + 1)])
    with pytest.raises(ConfigError, match=r"is longer than lm_max_position_embeddings = 256"):
        list(policy.sample([prompt], 1, [0], TokenPlan(micro_batch_size=1, max_new_tokens=count + 1)))


def test_what_leaves_nanovlms_positions_is_found_before_the_step_that_meets_it(nano_folder: Path) -> None:
    """RL: the longest prompt with the longest answer. Given texts: the row, which is then passed over, or cut."""
    policy = TokenPolicy(model_of(nano_folder), keep_reference=False)
    policy.check_room(10_000)  # nothing was checked yet
    prompts = [Prompt(f"p{n}", "what is this" + " a cat" * n) for n in (1, 9, 4)]
    policy.check_prompts(prompts)
    room = 256 - len(policy.model.read(prompts[1]).ids_T)
    policy.check_room(room)
    with pytest.raises(
        ConfigError, match=rf"with {room + 1} behind it .* is longer than lm_max_position_embeddings = 256"
    ):
        policy.check_room(room + 1)
    long = Conversation("row 1", (Turn("user", "what is this"), Turn("assistant", "a cat " * 200)))
    text = policy.read_conversation(long)
    assert text.length > 256
    with pytest.raises(
        ConfigError, match=rf"row 1 has {text.length} tokens, and the model has positions for 256; set max"
    ):
        shortened(text, None, "row 1")
    assert shortened(text, 256, "row 1").length == 256


def test_a_template_that_refuses_turns_is_named_with_them(vlm_folder: Path, tmp_path: Path) -> None:
    """Some have no system turn, and say so by an exception of their own; some are no templates."""
    folder = Path(shutil.copytree(vlm_folder, tmp_path / "model"))
    for template, told in {
        "{{ raise_exception('no system turn') if messages[0]['role'] == 'system' }}": "no system turn; leave out policy.system_prompt",
        "{% for message in": "correct the folder's chat_template.jinja",
        "{{ 'turn: ' + messages[0]['content'] }}": "correct the folder's chat_template.jinja",
    }.items():
        (folder / "chat_template.jinja").write_text(template)
        config = VlmConfig(type="vlm", pretrained=str(folder), dtype="float32", system_prompt="be brief")
        with pytest.raises(ConfigError) as raised:
            TokenPolicy(build(config, CPU), keep_reference=False).check_prompts(
                [Prompt("p", "what", place="a.jsonl:3")]
            )
        assert "(a.jsonl:3): the chat template of policy.pretrained" in str(raised.value)
        assert "does not take these turns (system, user)" in str(raised.value) and told in str(raised.value)


def test_weights_that_are_damaged_or_of_another_model_are_named(vlm_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vlm_folder, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["vocab_size"] += 5
    (folder / "config.json").write_text(json.dumps(settings))
    held = settings["text_config"]["vocab_size"] - 5
    with pytest.raises(
        ConfigError, match=rf"embed_tokens.weight has shape \({held}, 64\), by config.json it has \({held + 5}, 64\)"
    ):
        model_of(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        ConfigError, match=r"its weights are damaged, or a pointer in their place .*download the folder again"
    ):
        model_of(folder)


def test_a_model_that_reads_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}')
    with pytest.raises(ConfigError, match="It reads no images: give a vision-language model"):
        model_of(tmp_path)
