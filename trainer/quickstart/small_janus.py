"""The small model of the quickstart of pairs, before any training: a Janus of a million parameters that reads and draws scenes.

An image of 32x32 pixels is 4x4 tokens, whether it is looked at or drawn. The codebook has a token for each patch of 8x8 pixels that
an image can have, so drawing loses nothing.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainer.quickstart.scenes import COLORS, LETTERS, SHAPES, SIDES, SIZE, Pixels, all_halves

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration, JanusProcessor, PreTrainedTokenizerFast

PATCH = 8
IMAGE_TOKENS = (SIZE // PATCH) ** 2
LAYERS, VISION_LAYERS = 4, 2
CODE_WIDTH = 16
PALE = 0.8  # from -1 to 1, about the mean of all pixels
PIXEL_MEAN = PIXEL_STD = 0.5
PAD, BEGIN, END, USER, ASSISTANT = "<pad>", "<begin>", "<end>", "<user>", "<assistant>"
IMAGE, BEGIN_IMAGE, END_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
SPECIAL = (PAD, BEGIN, END, USER, ASSISTANT, IMAGE, BEGIN_IMAGE, END_IMAGE)
TAGS = ("<answer>", "</answer>")
UNKNOWN = "<unk>"
CHAT_TEMPLATE = (
    "<begin>"
    "{%- for message in messages -%}"
    "<{{ message['role'] }}>"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<image_placeholder>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}<end>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def words() -> list[str]:
    """All words of scenes' captions, questions and answers, each once."""
    return list(dict.fromkeys(("draw", "say", "what", "color", "shape", *SIDES, "?", *LETTERS, *COLORS, *SHAPES)))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and one a tag."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = (*SPECIAL, *TAGS, UNKNOWN, *words())
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in TAGS])
    kind: Any = PreTrainedTokenizerFast  # its signature has no types
    made = kind(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE},
    )
    return cast("PreTrainedTokenizerFast", made)


def processor() -> JanusProcessor:
    """Images and texts as the network takes them, without torchvision."""
    from transformers import JanusProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    pictures = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, min_size=PATCH, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
    )
    return JanusProcessor(pictures, word_tokenizer(), chat_template=CHAT_TEMPLATE, num_image_tokens=IMAGE_TOKENS)


def new_network(tokenizer: PreTrainedTokenizerFast) -> JanusForConditionalGeneration:
    """The network with random weights, drawn from torch's generator."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    def token(name: str) -> int:
        return int(cast(Any, tokenizer.convert_tokens_to_ids(name)))

    width = 128
    config = JanusConfig(
        image_token_id=token(IMAGE),
        tie_word_embeddings=False,  # as published; the class's own default ties head and embeddings
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
            "mlp_ratio": 2.0,
            "projection_dim": width,
            "num_image_tokens": IMAGE_TOKENS,
        },
        vq_config={
            "embed_dim": CODE_WIDTH,
            "num_embeddings": len(codebook()),
            "latent_channels": 64,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],  # three times twice as large: 4x4 codes to 32x32 pixels
            "num_res_blocks": 0,  # and one in the decoder
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 256,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "pad_token_id": token(PAD),
            "bos_token_id": token(BEGIN),
            "eos_token_id": token(END),
            "tie_word_embeddings": False,
        },
    )
    kind: Any = JanusForConditionalGeneration
    network: JanusForConditionalGeneration = kind(config)
    _initialize(network)
    _initialize_decoder(cast(Any, network).model.vqmodel)
    return network


@torch.no_grad()
def _initialize(network: nn.Module) -> None:
    """Weights whose outputs are about as large as their inputs.

    transformers' own standard deviation of .02 is made for wide layers. At this width the embedding of an image token, which passes
    two of them, would come out smaller than what RMSNorm takes for nothing, and the model would not see what it has drawn.
    """
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            continue  # biases are 0 and norms 1 already
        if "embed" in name and not name.endswith("patch_embedding.weight"):
            std = 1.0
        elif name.endswith(("lm_head.weight", "vision_head.weight")):
            std = 0.02
        else:
            std = 1 / math.sqrt(parameter[0].numel())  # of what one output is summed over
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * LAYERS)  # each layer adds two of these to the residual stream
        elif name.endswith(("projection_layer.weight", "mlp.fc2.weight")):
            std /= math.sqrt(2 * VISION_LAYERS)
        parameter.normal_(0.0, std)


@torch.no_grad()
def _initialize_decoder(decoder: Any) -> None:
    """Codes that lie near each other where their patches do, and a decoder that begins with pale images of the right size."""
    patches = torch.from_numpy(codebook().reshape(len(codebook()), -1)).float() / 255
    centred = patches - patches.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:CODE_WIDTH]  # of principal components
    decoder.quantize.embedding.weight.copy_(centred @ directions.T)  # their lengths do not count
    for module in decoder.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    decoder.decoder.conv_out.weight.mul_(0.1)
    decoder.decoder.conv_out.bias.fill_(PALE)


@cache
def codebook() -> Pixels:
    """(C, 8, 8, 3) uint8: every patch that an image can have, each once, in a fixed order."""
    patches = np.concatenate([_patches(half) for half in all_halves()])
    found: Pixels = np.unique(patches.reshape(len(patches), -1), axis=0).reshape(-1, PATCH, PATCH, 3)
    return found


@cache
def _codes() -> dict[bytes, int]:
    return {patch.tobytes(): code for code, patch in enumerate(codebook())}


def tokens_of(image: Pixels) -> Tensor:
    """(16,) int64: the codes of an image's patches, row by row."""
    codes = _codes()
    return torch.tensor([codes[patch.tobytes()] for patch in _patches(image)])


def _patches(image: Pixels) -> Pixels:
    height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
    cut = image.reshape(height, PATCH, width, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(cut.reshape(-1, PATCH, PATCH, 3))
