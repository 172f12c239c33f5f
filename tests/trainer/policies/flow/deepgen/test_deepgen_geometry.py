"""The published model's tensors, by name and shape, on the meta device: nothing is allocated."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from trainer.config import ConfigError
from trainer.policies.flow.deepgen.checkpoint import canonical_name
from trainer.policies.flow.deepgen.geometry import ConnectorGeometry, full_geometry
from trainer.policies.flow.deepgen.networks import DeepGenNetworks

D, MLP = 1536, 6144  # width of the transformer and of its feed-forward layers
FIRST_13, FIRST_23, ALL_24 = r"([0-9]|1[0-2])", r"(1?[0-9]|2[0-2])", r"(1?[0-9]|2[0-3])"
LAYERS, TOWER = r"([0-9]|[12][0-9]|3[0-5])", r"([0-9]|[12][0-9]|3[01])"
BLOCK, DECODER, VISION = (
    rf"transformer\.transformer_blocks\.{ALL_24}",
    rf"lmm\.model\.layers\.{LAYERS}",
    rf"lmm\.visual\.blocks\.{TOWER}",
)


def linear(name: str, out: int, into: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {rf"{name}\.weight": (out, into)} | ({rf"{name}\.bias": (out,)} if bias else {})


# The published checkpoint's table of tensors (names of transformers 4.51 for the language model): pattern to shape.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "meta_queries": (128, 2048),
    **linear("projector_1", 2048, 12288),
    **linear("projector_2", 2048, 2048),
    **linear("projector_3", 4096, 2048),
    **linear(r"connector\.layers\.[0-5]\.self_attn\.(q|k|v|out)_proj", 2048, 2048),
    r"connector\.layers\.[0-5]\.layer_norm[12]\.(weight|bias)": (2048,),
    **linear(r"connector\.layers\.[0-5]\.mlp\.fc1", 11946, 2048),
    **linear(r"connector\.layers\.[0-5]\.mlp\.fc2", 2048, 11946),
    r"transformer\.pos_embed\.pos_embed": (1, 147456, D),
    r"transformer\.pos_embed\.proj\.weight": (D, 16, 2, 2),
    r"transformer\.pos_embed\.proj\.bias": (D,),
    **linear(r"transformer\.time_text_embed\.timestep_embedder\.linear_1", D, 256),
    **linear(r"transformer\.time_text_embed\.(timestep|text)_embedder\.linear_2", D, D),
    **linear(r"transformer\.time_text_embed\.text_embedder\.linear_1", D, 2048),
    **linear(r"transformer\.context_embedder", D, 4096),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_13}\.norm1\.linear", 13824, D),
    **linear(r"transformer\.transformer_blocks\.(1[3-9]|2[0-3])\.norm1\.linear", 9216, D),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_23}\.norm1_context\.linear", 9216, D),
    **linear(r"transformer\.transformer_blocks\.23\.norm1_context\.linear", 3072, D),
    **linear(rf"{BLOCK}\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0)", D, D),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_23}\.attn\.to_add_out", D, D),
    rf"{BLOCK}\.attn\.norm_(q|k|added_q|added_k)\.weight": (64,),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_13}\.attn2\.(to_[qkv]|to_out\.0)", D, D),
    rf"transformer\.transformer_blocks\.{FIRST_13}\.attn2\.norm_[qk]\.weight": (64,),
    **linear(rf"{BLOCK}\.ff\.net\.0\.proj", MLP, D),
    **linear(rf"{BLOCK}\.ff\.net\.2", D, MLP),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_23}\.ff_context\.net\.0\.proj", MLP, D),
    **linear(rf"transformer\.transformer_blocks\.{FIRST_23}\.ff_context\.net\.2", D, MLP),
    **linear(r"transformer\.norm_out\.linear", 3072, D),
    **linear(r"transformer\.proj_out", 64, D),
    r"lmm\.model\.embed_tokens\.weight": (151936, 2048),
    r"lmm\.model\.norm\.weight": (2048,),
    **linear(rf"{DECODER}\.self_attn\.q_proj", 2048, 2048),
    **linear(rf"{DECODER}\.self_attn\.[kv]_proj", 256, 2048),
    **linear(rf"{DECODER}\.self_attn\.o_proj", 2048, 2048, bias=False),
    **linear(rf"{DECODER}\.mlp\.(gate|up)_proj", 11008, 2048, bias=False),
    **linear(rf"{DECODER}\.mlp\.down_proj", 2048, 11008, bias=False),
    rf"{DECODER}\.(input|post_attention)_layernorm\.weight": (2048,),
    r"lmm\.visual\.patch_embed\.proj\.weight": (1280, 3, 2, 14, 14),
    rf"{VISION}\.norm[12]\.weight": (1280,),
    **linear(rf"{VISION}\.attn\.qkv", 3840, 1280),
    **linear(rf"{VISION}\.attn\.proj", 1280, 1280),
    **linear(rf"{VISION}\.mlp\.(gate|up)_proj", 3420, 1280),
    **linear(rf"{VISION}\.mlp\.down_proj", 1280, 3420),
    r"lmm\.visual\.merger\.ln_q\.weight": (1280,),
    **linear(r"lmm\.visual\.merger\.mlp\.0", 5120, 5120),
    **linear(r"lmm\.visual\.merger\.mlp\.2", 2048, 5120),
}


@pytest.fixture(scope="module")
def full() -> DeepGenNetworks:
    with torch.device("meta"):
        return DeepGenNetworks.from_geometry(full_geometry())


def published_name(name: str) -> str:
    return name.replace("lmm.language_model.", "lmm.model.")


def test_every_tensor_has_a_published_name_and_shape(full: DeepGenNetworks) -> None:
    tables = {re.compile(pattern): shape for pattern, shape in PUBLISHED.items()}
    seen = set()
    for name, tensor in full.state_dict().items():
        if name.startswith("vae."):
            continue
        published = published_name(name)
        matching = [pattern for pattern in tables if pattern.fullmatch(published)]
        assert len(matching) == 1, (name, matching)
        assert tuple(tensor.shape) == tables[matching[0]], name
        assert canonical_name(published) == name
        seen.add(matching[0])
    assert seen == set(tables)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_are_the_published_ones(full: DeepGenNetworks) -> None:
    assert len(full.transformer.state_dict()) == 909  # the position buffer included
    assert count(full.transformer) == 2_243_171_520
    assert count(full.connector) == 394_430_460
    assert [count(each) for each in (full.projector_1, full.projector_2, full.projector_3)] == [
        25_167_872,
        4_196_352,
        8_392_704,
    ]
    assert full.meta_queries.numel() == 262_144


def test_the_adapters_of_the_language_model_count_as_published(full: DeepGenNetworks) -> None:
    """Rank 64 on every linear layer and embedding; the head, which is not built, is the 416th."""
    targets = [module.weight.shape for module in full.lmm.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert len(targets) == 415
    assert sum(64 * (out + into) for out, into in [*targets, (151936, 2048)]) == 185_163_776


def test_six_hidden_states_of_36_layers_are_fused(full: DeepGenNetworks) -> None:
    assert full.fused_layers == [35, 29, 23, 17, 11, 5]


def test_the_published_sizes_fit_together(full: DeepGenNetworks) -> None:
    """A prompt of 20 tokens and its queries, and a picture of 512x512 with a source beside it."""
    with torch.device("meta"):
        states, pooled = full.condition([torch.empty(1, 148, 2048)] * 37)
        (v,) = full.transformer(
            hidden_states=torch.empty(1, 16, 64, 64),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=torch.empty(1),
            text_mask=torch.ones(1, 148, dtype=torch.bool),
            sources=torch.empty(1, 1, 16, 48, 80),
            source_grids=torch.ones(1, 1, 2, dtype=torch.int64),
            return_dict=False,
        )
    assert (states.shape, pooled.shape, v.shape) == ((1, 148, 4096), (1, 2048), (1, 16, 64, 64))


def test_the_sizes_are_read_from_a_checkpoint(full: DeepGenNetworks) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    assert ConnectorGeometry.from_shapes(shapes) == full_geometry().connector


def test_another_kind_of_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no meta_queries, projector_1\.weight.*it holds 1 tensors.*unet\.conv"):
        ConnectorGeometry.from_shapes({"unet.conv": (1,)})


def test_sizes_that_contradict_are_refused(full: DeepGenNetworks) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"projector_1\.weight \(2048, 12000\) must take a multiple of meta_queries' 2048"
    ):
        ConnectorGeometry.from_shapes(shapes | {"projector_1.weight": (2048, 12000)})
