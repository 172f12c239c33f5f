"""A native model grown from a language model: texts keep their logits, new parts begin where NEO begins them, stages train their set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_neo import neo_section
from trainer.config import ConfigError
from trainer.config.neo import GrowConfig, NeoConfig
from trainer.policies.tokens.draw import Reading
from trainer.policies.unified.neo import build
from trainer.policies.unified.neo.attending import attend_packs
from trainer.policies.unified.neo.geometry import NeoGeometry, grown_geometry
from trainer.policies.unified.neo.growth import image_queries, read_language
from trainer.policies.unified.neo.model import NeoModel
from trainer.policies.unified.neo.rows import packed
from trainer.policies.unified.neo.sizes import shapes

CPU = torch.device("cpu")
IDS = torch.tensor([5, 9, 17, 3, 30, 12, 12, 40, 8, 21, 4, 33])
LAYERS = "language_model.model.layers."


def logits_of(model: NeoModel, ids: torch.Tensor) -> torch.Tensor:
    given, layout = packed([model.row(Reading(ids))], CPU)
    with torch.no_grad():
        found: torch.Tensor = model.network(given, attend_packs(layout, "rows"), torch.arange(len(ids)))
    return found


def grown(folder: Path, **fields: Any) -> NeoModel:
    torch.manual_seed(1)
    return build(neo_section(folder, **fields), CPU)


def test_without_new_layers_texts_have_the_logits_that_they_had(qwen3_folder: Path) -> None:
    from transformers import Qwen3ForCausalLM

    base = Qwen3ForCausalLM.from_pretrained(qwen3_folder)
    with torch.no_grad():
        expected = base(IDS[None]).logits[0]
    found = logits_of(grown(qwen3_folder, extra_layers=0), IDS)
    assert (found[:, : expected.shape[1]] - expected).abs().max() <= 1e-5 < expected.abs().max()
    changed = logits_of(grown(qwen3_folder, extra_layers=1), IDS)[:, : expected.shape[1]]
    assert (changed - expected).abs().max() > 1e-2, "a new layer says something of its own"


def test_layers_move_up_by_the_new_ones_and_twins_begin_as_neo_begins_them(qwen3_folder: Path) -> None:
    base, state = read_language(qwen3_folder), grown(qwen3_folder, extra_layers=2).network.state_dict()
    for number in range(2):
        old, new = f"model.layers.{number}.", f"{LAYERS}{number + 2}."
        names = [name for name in base if name.startswith(old)]
        assert len(names) == 11
        for name in names:
            assert torch.equal(state[name.replace(old, new)], base[name]), name
        assert not state[f"{new}self_attn.k_proj_hw.weight"].any()
        queries = base[f"{old}self_attn.q_proj.weight"]  # 4 heads of 16 numbers: quarters of 4 rows
        head = queries[16:32]
        expected = torch.cat([head[0:4], head[8:12], head[0:4], head[8:12]])
        assert torch.equal(state[f"{new}self_attn.q_proj_hw.weight"][16:32], expected)
    for number in range(4):
        for part in ("q_norm_h", "q_norm_w", "k_norm_h", "k_norm_w"):
            assert torch.equal(state[f"{LAYERS}{number}.self_attn.{part}.weight"], torch.ones(8))
    fresh = state[f"{LAYERS}0.mlp.gate_proj.weight"]
    assert 0.018 < fresh.std() < 0.022 and torch.equal(state[f"{LAYERS}1.input_layernorm.weight"], torch.ones(64))
    rows = len(base["model.embed_tokens.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):  # the head of a tied model is its embedding
        assert torch.equal(state[f"language_model.{name}"][:rows], base["model.embed_tokens.weight"])


def test_stage_1_trains_what_the_language_model_did_not_have(qwen3_folder: Path) -> None:
    network = grown(qwen3_folder, extra_layers=1, train="stage_1").network
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    twins = {
        f"{LAYERS}{layer}.self_attn.{part}.weight"
        for layer in (1, 2)
        for part in ("q_proj_hw", "k_proj_hw", "q_norm_h", "q_norm_w", "k_norm_h", "k_norm_w")
    }
    first = {name for name in network.state_dict() if name.startswith(f"{LAYERS}0.")}
    patches = {
        f"vision_model.embeddings.{part}.{kind}"
        for part in ("patch_embedding", "dense_embedding")
        for kind in ("weight", "bias")
    }
    assert trained == twins | first | patches and len(first) == 17
    assert all(p.requires_grad for p in grown(qwen3_folder).network.parameters())


@pytest.mark.parametrize(
    ("hidden", "heads", "inner", "layers", "extra", "total"),
    [(2048, 16, 6144, 28, 12, 2896618496), (4096, 32, 12288, 36, 6, 10246797312)],
)
def test_the_published_sizes_have_every_key_and_shape(
    hidden: int, heads: int, inner: int, layers: int, extra: int, total: int
) -> None:
    """Qwen3-1.7B with 12 new layers and Qwen3-8B with 6, as NEO's scripts grow them, on the meta device."""
    qwen3 = {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-6,
    }
    geometry = grown_geometry(qwen3, GrowConfig(language="x", extra_layers=extra), 151936, "config.json")
    found = shapes(geometry)
    assert geometry.num_layers == layers + extra and len(found) == (layers + extra) * 17 + 3 + 4
    layer = {
        name.removeprefix(f"{LAYERS}39."): tuple(shape)
        for name, shape in found.items()
        if name.startswith(f"{LAYERS}39.")
    }
    assert layer == {
        **dict.fromkeys((f"self_attn.{part}.weight" for part in ("q_proj", "q_proj_hw")), (128 * heads, hidden)),
        **dict.fromkeys((f"self_attn.{part}.weight" for part in ("k_proj", "k_proj_hw", "v_proj")), (1024, hidden)),
        "self_attn.o_proj.weight": (hidden, 128 * heads),
        **dict.fromkeys((f"self_attn.{part}_norm.weight" for part in "qk"), (128,)),
        **dict.fromkeys((f"self_attn.{part}_norm_{axis}.weight" for part in "qk" for axis in "hw"), (64,)),
        **dict.fromkeys((f"mlp.{part}_proj.weight" for part in ("gate", "up")), (inner, hidden)),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    rest = {name: tuple(shape) for name, shape in found.items() if not name.startswith(LAYERS)}
    assert rest == {
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 16, 16),
        "vision_model.embeddings.patch_embedding.bias": (1024,),
        "vision_model.embeddings.dense_embedding.weight": (hidden, 1024, 2, 2),
        "vision_model.embeddings.dense_embedding.bias": (hidden,),
        "language_model.model.embed_tokens.weight": (151936, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.lm_head.weight": (151936, hidden),
    }
    assert sum(shape.numel() for shape in found.values()) == total


def test_queries_of_rows_and_columns_are_the_first_and_third_quarter_twice() -> None:
    geometry = NeoGeometry(8, 8, 1, 1, 1, 8, 10, 1e-6, 1e6, 1e4, 8, 8, 2, 1e4, 0)
    queries = torch.arange(8.0)[:, None] * torch.ones(8)
    assert image_queries(queries, geometry)[:, 0].tolist() == [0, 1, 4, 5, 0, 1, 4, 5]


def broken(folder: Path, target: Path, change: str) -> Path:
    shutil.copytree(folder, target)
    settings, weights = target / "config.json", target / "model.safetensors"
    fields, state = json.loads(settings.read_text()), load_file(weights)
    if change == "another model":
        fields["model_type"] = "llama"
    elif change == "stretched":
        fields["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    elif change == "biased":
        fields["attention_bias"] = True
    elif change == "a size":
        del fields["hidden_size"]
    elif change == "a weight":
        del state["model.layers.1.mlp.up_proj.weight"]
    elif change == "a stranger":
        state["model.layers.1.mlp.gate.weight"] = torch.zeros(2)
    elif change == "a shape":
        state["model.norm.weight"] = torch.zeros(2)
    elif change == "no weights":
        state = {"model.norm.weight": torch.zeros(64)}
    settings.write_text(json.dumps(fields))
    save_file(state, weights)
    return target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("another model", "model_type = llama; policy.grow.language is a Qwen3 folder"),
        ("stretched", "rope_type = yarn stretches positions, which this network does not compute"),
        ("biased", "attention_bias = True, which this network does not compute"),
        ("a size", "hidden_size = None is no size"),
        ("a weight", "lacks 1 weights, first language_model.model.layers.2.mlp.up_proj.weight"),
        ("a stranger", "1 tensors that a Qwen3 has not, first language_model.model.layers.2.mlp.gate.weight"),
        ("a shape", "language_model.model.norm.weight would be (2,), but its config.json makes it (64,)"),
        ("no weights", "holds no model.embed_tokens.weight; give a Qwen3 folder"),
    ],
)
def test_what_cannot_grow_is_said(qwen3_folder: Path, tmp_path: Path, change: str, said: str) -> None:
    folder = broken(qwen3_folder, tmp_path / "base", change)
    with pytest.raises(ConfigError) as raised:
        grown(folder)
    assert said in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither of pretrained and grow is given"),
        ({"pretrained": "a", "grow": {"language": "b"}}, "both of pretrained and grow is given"),
        ({"grow": {"language": "b"}, "extra_layers": 2}, "here it is grow.extra_layers"),
        ({"pretrained": "a", "min_pixels": 2, "max_pixels": 1}, "min_pixels = 2 is more than max_pixels = 1"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        NeoConfig(type="neo", **fields)
