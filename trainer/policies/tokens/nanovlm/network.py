"""The Idefics3 network of a nanoVLM model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from trainer.config.nanovlm import NanoVlmConfig


class WholeTiles(Idefics3VisionEmbeddings):
    """Patch embeddings of tiles that are full: patch i has position i, as in nanoVLM.

    Idefics3's own find a patch's position from its place as a fraction of the side. In bfloat16 that is off by one for most
    numbers of patches a side that are no power of two (6, 7, 9 to 14, ...), in float32 for some (19, 25, 29, ...).
    """

    def forward(self, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
        embedded: Tensor = self.patch_embedding(pixel_values)
        # By a call of the module: weights that are cut over ranks are whole inside it alone.
        positions: Tensor = self.position_embedding(torch.arange(self.num_positions, device=pixel_values.device))
        return embedded.flatten(2).transpose(1, 2) + positions


def idefics3_config(settings: NanoVlmConfig, image_token_id: int, pad_token_id: int | None, end: int | None) -> Any:
    """transformers' configuration of the same network.

    Args:
        image_token_id, pad_token_id, end: ids of the tokenizer: nanoVLM's files do not hold them.
    """
    vision = Idefics3VisionConfig(
        hidden_size=settings.vit_hidden_dim,
        intermediate_size=settings.vit_inter_dim,
        num_hidden_layers=settings.vit_n_blocks,
        num_attention_heads=settings.vit_n_heads,
        image_size=settings.vit_img_size,
        patch_size=settings.vit_patch_size,
        layer_norm_eps=settings.vit_ln_eps,
        hidden_act="gelu_pytorch_tanh",
    )
    text = {
        "model_type": "llama",
        "hidden_size": settings.lm_hidden_dim,
        "intermediate_size": settings.lm_inter_dim,
        "num_hidden_layers": settings.lm_n_blocks,
        "num_attention_heads": settings.lm_n_heads,
        "num_key_value_heads": settings.lm_n_kv_heads,
        "head_dim": settings.lm_hidden_dim // settings.lm_n_heads,
        "vocab_size": settings.lm_vocab_size,
        "rms_norm_eps": settings.lm_rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(settings.lm_re_base)},
        "max_position_embeddings": settings.lm_max_position_embeddings,
        "tie_word_embeddings": settings.lm_tie_weights,
        "pad_token_id": pad_token_id,
        "bos_token_id": None,
        "eos_token_id": end,
    }
    return Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=settings.mp_pixel_shuffle_factor,
        image_token_id=image_token_id,
        pad_token_id=pad_token_id,
        tie_word_embeddings=settings.lm_tie_weights,
    )


def place_whole_tiles(network: Any) -> None:
    """Let the network's vision encoder place patches as nanoVLM does. Names and numbers of the weights stay."""
    vision = network.model.vision_model
    own = vision.embeddings
    with torch.device("meta"):
        whole = WholeTiles(vision.config)
    whole.patch_embedding, whole.position_embedding = own.patch_embedding, own.position_embedding
    vision.embeddings = whole


@torch.no_grad()
def is_placed_alike(network: Any, dtype: torch.dtype) -> bool:
    """Whether transformers' own Idefics3, with these weights in `dtype`, places every patch as nanoVLM does."""
    vision = network.model.vision_model
    with torch.device("meta"):
        own, whole = Idefics3VisionEmbeddings(vision.config), WholeTiles(vision.config)
    side, patches = vision.config.image_size, own.num_patches_per_side
    numbers = torch.arange(own.num_patches, dtype=torch.float32)[:, None].expand(-1, own.embed_dim)
    for each in (own, whole):
        each.to_empty(device="cpu")
        for parameter in each.patch_embedding.parameters():
            parameter.zero_()
        each.position_embedding.weight.copy_(numbers)
    full = torch.ones(1, patches, patches, dtype=torch.bool)
    # Positions are looked up by pixels of this type; their numbers are kept in float32.
    own.patch_embedding.to(dtype)
    found = own(torch.zeros(1, 3, side, side, dtype=dtype), full)
    return torch.equal(found.float(), whole(torch.zeros(1, 3, side, side), full))


def new_network(config: Any, dtype: torch.dtype) -> Any:
    """The network of a configuration with random weights, in evaluation mode."""
    network: Any = Idefics3ForConditionalGeneration(config)
    network.to(dtype)
    place_whole_tiles(network)
    return network.eval()


def load_state(network: Any, state: dict[str, Tensor]) -> None:
    """Put all weights in, in the network's own type. Tied weights stay tied."""
    network.load_state_dict(state, strict=True)
    network.tie_weights()
