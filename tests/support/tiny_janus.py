"""A Janus with random weights and a tokenizer of whole words, made on the spot: both tasks of the real class at 100,000 parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny_vlm import TAGS, WORDS

SIDE, PATCH = 32, 8  # an image is (SIDE / PATCH)² = 16 patches to look at, and as many tokens to draw
GRID = SIDE // PATCH
CODES = 24
PAD, BEGIN, END, IMAGE, BEGIN_IMAGE, END_IMAGE = (
    "<pad>",
    "<begin>",
    "<end>",
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
)
SPECIAL = (PAD, BEGIN, END, IMAGE, BEGIN_IMAGE, END_IMAGE)
CHAT_TEMPLATE = (
    "<begin>"
    "{%- for message in messages -%}"
    "{{ message['role'] }} : "
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<image_placeholder>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}<end>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant : {%- endif -%}"
)


def make_janus(folder: Path, seed: int = 0, *, spread: float = 0.2, text: Mapping[str, int] | None = None) -> Path:
    """Write model, processor and tokenizer as a published checkpoint has them; gives `folder`.

    Args:
        spread: standard deviation of the matrices; larger makes the model surer of what it says and draws.
        text: sizes of the language model in place of the tiny ones.
    """
    import torch
    from transformers import JanusForConditionalGeneration

    tokenizer = write_processor(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(janus_config(tokenizer, text))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, spread)
    model.save_pretrained(folder)
    return folder


def write_processor(folder: Path, side: int = SIDE, grid: int = GRID) -> Any:
    """Write a processor for images of `side` pixels, which are `grid` ** 2 tokens; gives its tokenizer."""
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": side, "width": side},
        "min_size": 8,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = {"processor_class": "JanusProcessor", "num_image_tokens": grid**2}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer


def janus_config(tokenizer: Any, text: Mapping[str, int] | None = None) -> Any:
    from transformers import JanusConfig

    text = text or {}
    width = text.get("hidden_size", 64)

    return JanusConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        # The class's own default ties head and embeddings, which no published Janus does.
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "mlp_ratio": 2.0,
            "projection_dim": width,
            "num_image_tokens": GRID**2,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": CODES,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],  # three times twice as large: 4 x 4 codes to 32 x 32 pixels
            "num_res_blocks": 1,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
            **text,
        },
    )


def word_tokenizer() -> Any:
    """One token a word, and one a tag; it puts nothing around a text, as the template has it all."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = (*SPECIAL, *TAGS, "<unk>", *WORDS, "draw", "answer")
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token="<unk>",
        extra_special_tokens={"image_token": IMAGE, "boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE},
    )
