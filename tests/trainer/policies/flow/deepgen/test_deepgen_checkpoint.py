"""Checkpoints as they are published: prefixes, older names, shards, pickled tensors, adapters of the language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.support.tiny_deepgen import TinyDeepGen, published, published_name
from trainer.config import ConfigError
from trainer.policies.flow.deepgen.checkpoint import LoadReport, Stored, canonical_name, load_into, open_checkpoint
from trainer.policies.flow.deepgen.model import DeepGenFlow

Build = Callable[..., DeepGenFlow]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("meta_queries", "meta_queries"),
        ("module.model.projector_1.weight", "projector_1.weight"),
        ("model.transformer.proj_out.bias", "transformer.proj_out.bias"),
        ("lmm.visual.merger.ln_q.weight", "lmm.visual.merger.ln_q.weight"),
        ("lmm.model.visual.merger.ln_q.weight", "lmm.visual.merger.ln_q.weight"),
        ("lmm.model.layers.3.mlp.up_proj.weight", "lmm.language_model.layers.3.mlp.up_proj.weight"),
        ("module.lmm.model.language_model.norm.weight", "lmm.language_model.norm.weight"),
        ("lmm.model.embed_tokens.lora_embedding_A.default", "lmm.language_model.embed_tokens.lora_embedding_A.default"),
        ("lmm.lm_head.weight", "lmm.lm_head.weight"),
    ],
)
def test_published_names_become_ours(name: str, ours: str) -> None:
    assert canonical_name(name) == ours


def tensors_of(tiny: TinyDeepGen) -> dict[str, Tensor]:
    return load_file(tiny.checkpoint)


def safetensors_file(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def folder_with_model(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def shards(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    names = sorted(tensors)
    parts = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickled(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    torch.save({"state_dict": dict(tensors), "iteration": 7}, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize("write", [safetensors_file, folder_with_model, shards, pickled])
def test_every_kind_of_file_gives_the_same_model(
    tiny: TinyDeepGen, build: Build, tmp_path: Path, write: Callable[[Path, Mapping[str, Tensor]], Path]
) -> None:
    path = write(tmp_path, published(tensors_of(tiny)))
    expected, loaded = build().networks.state_dict(), build(checkpoint=str(path)).networks.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())


def test_what_was_loaded_is_counted(tiny: TinyDeepGen, build: Build, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    own = [name for name in tensors if not name.startswith("lmm.")]
    model = build(checkpoint=str(safetensors_file(tmp_path, tensors | {"rotor.weight": torch.ones(1)})))
    # 13 decoder layers of 7, 2 vision blocks of 5, 2 of the merger, the embedding; the head's two halves are left aside.
    assert (
        f": {len(own)} tensors loaded, 104 adapters merged, 2 left aside, 1 unexpected (rotor.weight)." in model.about
    )


def test_adapters_merge_to_what_peft_computes(tiny: TinyDeepGen, build: Build, tmp_path: Path) -> None:
    """LoRA, arXiv 2106.09685, section 4.1: h = W x + (alpha / r) B A x, on every linear layer and on the embedding."""
    lmm = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny.qwen_path, local_files_only=True)
    targets = [name for name, module in lmm.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    lmm.config.tie_word_embeddings = False  # as DeepGen does before it adds adapters
    torch.manual_seed(1)
    lmm.add_adapter(LoraConfig(r=4, lora_alpha=128, init_lora_weights=False, target_modules=targets))
    for name, parameter in lmm.named_parameters():
        if "lora_" in name:
            parameter.data *= 0.05  # adapters that change the model, not drown it
    trained = {f"lmm.{published_name(name)}": tensor.clone() for name, tensor in lmm.state_dict().items()}
    assert "lmm.model.layers.0.mlp.up_proj.lora_B.default.weight" in trained
    assert "lmm.visual.blocks.1.attn.qkv.base_layer.weight" in trained
    own = {name: tensor for name, tensor in tensors_of(tiny).items() if not name.startswith("lmm.")}
    model = build(checkpoint=str(safetensors_file(tmp_path, own | trained)))
    ids = torch.tensor([[5, 80, 7, 99]])
    with torch.no_grad():
        expected = lmm.eval()(input_ids=ids, output_hidden_states=True).hidden_states
        merged = model.networks.lmm(input_ids=ids, output_hidden_states=True).hidden_states
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny.qwen_path, local_files_only=True)
    with torch.no_grad():
        without = plain(input_ids=ids, output_hidden_states=True).hidden_states
    for index in (0, 6, 12):
        torch.testing.assert_close(merged[index], expected[index], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged[index], without[index], rtol=1e-2, atol=1e-3)


def test_a_checkpoint_after_rl_can_take_the_adapters_of_the_one_before(
    tiny: TinyDeepGen, build: Build, tmp_path: Path
) -> None:
    after = {name: tensor for name, tensor in tensors_of(tiny).items() if not name.startswith("lmm.")}
    path = str(safetensors_file(tmp_path, after))
    both = build(checkpoint=path, lmm_checkpoint=str(tiny.checkpoint)).networks.state_dict()
    assert all(torch.equal(tensor, both[name]) for name, tensor in build().networks.state_dict().items())
    alone = build(checkpoint=path)
    assert "nothing for the language model" in alone.about
    name = "lmm.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(alone.networks.state_dict()[name], both[name])
    with pytest.raises(ConfigError, match=r"policy\.lmm_checkpoint.*has 210 tensors of the language model itself"):
        build(lmm_checkpoint=str(tiny.checkpoint))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("transformer.proj_out.bias"), r"1 tensors missing \(transformer\.proj_out\.bias\) of \d+"),
        (lambda t: t.pop("meta_queries"), r"has no meta_queries: it is no DeepGen checkpoint"),
        (
            lambda t: t.update({"transformer.proj_out.bias": torch.ones(3)}),
            r"transformer\.proj_out\.bias has the shape \(3,\), the model's is \(16,\)",
        ),
        (
            lambda t: t.pop("lmm.model.layers.0.mlp.up_proj.lora_B.default.weight"),
            r"of the adapter of lmm\.language_model\.layers\.0\.mlp\.up_proj but lora_A\.default\.weight",
        ),
        (
            lambda t: t.update({"lmm.model.layers.0.mlp.up_proj.lora_B.default.weight": torch.ones(96, 3)}),
            r"layers\.0\.mlp\.up_proj\.weight has the ranks 4 and 3",
        ),
        (
            lambda t: t.update({"lmm.model.layers.0.mlp.up_proj.lora_B.default.weight": torch.ones(95, 4)}),
            r"gives \(95, 64\), not \(96, 64\)",
        ),
        (lambda t: t.update({"projector_2.weight": torch.ones(39, 128)}), r"pooled_projection_dim are 39 and 40"),
        (lambda t: t.update({"model.meta_queries": torch.ones(4, 64)}), r"meta_queries twice, the second time as"),
    ],
    ids=["missing", "other model", "shape", "half an adapter", "ranks", "adapter's shape", "other base", "twice"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny: TinyDeepGen, build: Build, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    tensors = tensors_of(tiny)
    change(tensors)
    with pytest.raises(ConfigError, match=words):
        build(checkpoint=str(safetensors_file(tmp_path, tensors)))


def test_files_that_are_missing_or_damaged_are_named(tiny: TinyDeepGen, build: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.checkpoint = .*nowhere does not exist"):
        build(checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"holds none of model\.safetensors\.index\.json"):
        build(checkpoint=str(tmp_path))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny.checkpoint.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"damaged\.safetensors is no safetensors file or a damaged one"):
        build(checkpoint=str(damaged))
    shards(tmp_path, tensors_of(tiny))
    (tmp_path / "model-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-00002\.safetensors is missing, one of the 2 shards"):
        build(checkpoint=str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('["model-00001.safetensors"]')
    with pytest.raises(ConfigError, match=r"index\.json is no index of safetensors shards .* needs a `weight_map`"):
        build(checkpoint=str(tmp_path))


def test_a_pickle_of_more_than_tensors_is_not_run(build: Build, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (harm, ("harm",))

    torch.save({"meta_queries": Harm()}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="no file of tensors alone"):
        open_checkpoint(tmp_path / "weights.pt")
    assert not RAN


RAN: list[str] = []


def harm(word: str) -> None:
    RAN.append(word)


@pytest.mark.parametrize("field", ["sd3_path", "qwen_path", "checkpoint"])
def test_a_missing_path_names_the_field_and_the_variable(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    variable = {"sd3_path": "SD3_5_MODEL_NAME_OR_PATH", "qwen_path": "QWEN2_5_VL_MODEL_NAME_OR_PATH"}.get(
        field, "CHECKPOINT"
    )
    with pytest.raises(ConfigError, match=rf"policy\.{field} is missing.*{variable}"):
        build(**{field: None})
    with pytest.raises(ConfigError, match=rf"policy\.{field}.*does not exist"):
        build(**{field: str(tmp_path / "nowhere")})


@pytest.mark.parametrize("part", ["qwen", "sd3/transformer", "sd3/vae"])
def test_a_base_model_without_all_its_weights_is_refused(
    tmp_path: Path, tiny: TinyDeepGen, build: Build, part: str
) -> None:
    """The libraries would fill the gap with random numbers and a warning."""
    copied = {"qwen": tmp_path / "qwen", "sd3": tmp_path / "sd3"}
    shutil.copytree(tiny.qwen_path, copied["qwen"])
    shutil.copytree(tiny.sd3_path, copied["sd3"])
    (file,) = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    paths = {"qwen_path": str(copied["qwen"]), "sd3_path": str(copied["sd3"])}
    with pytest.raises(ConfigError, match=rf"{part} is incomplete: 1 tensors missing"):
        build(**paths)
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=rf"{part} cannot be loaded as "):
        build(**paths)


def test_loading_reports_by_name() -> None:
    targets = {"meta_queries": torch.zeros(2), "lmm.language_model.a.weight": torch.zeros(1)}
    saved = {
        "meta_queries": torch.ones(2),
        "ema.meta_queries": torch.ones(2),
        "lmm.language_model.b.weight": torch.ones(1),
    }
    report = load_into(targets, stored(saved), path=Path("here"))
    assert targets["meta_queries"].tolist() == [1, 1]
    assert report == LoadReport(
        loaded=["meta_queries"], merged=[], unexpected=["lmm.language_model.b.weight"], ignored=["ema.meta_queries"]
    )


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    return {name: Stored(tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()}
