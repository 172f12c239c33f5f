"""A vision-language model with random weights and a tokenizer of whole words, made on the spot: Idefics3 at 60,000 parameters.

It says nonsense, but by the real architecture: what it says depends on the pixels, on their order and on the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIDE, PATCH = 32, 8  # an image is (SIDE / PATCH)² patches, of which each 2 x 2 become one token
IMAGE_TOKENS = 4
PAD, START, END, IMAGE, AROUND, GLOBAL = (
    "<pad>",
    "<turn>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
)
SPECIAL = (PAD, START, END, IMAGE, AROUND, GLOBAL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORDS = tuple(
    [
        "user",
        "assistant",
        "system",
        "what",
        "color",
        "shape",
        "is",
        "the",
        "left",
        "right",
        "how",
        "many",
        "which",
        "a",
        "b",
        "c",
        "d",
        "yes",
        "no",
        "red",
        "blue",
        "green",
        "black",
        "disc",
        "bar",
        "cross",
        "ring",
        "one",
        "two",
        "three",
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "?",
        ".",
        ":",
        ",",
        "(",
        ")",
        "say",
        "nothing",
    ]
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<turn> {{ message['role'] }} : "
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<image>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}<end_of_utterance>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<turn> assistant : {%- endif -%}"
)


def make_vlm(folder: Path, seed: int = 0, *, spread: float = 0.2) -> Path:
    """Write model, processor and tokenizer as a published checkpoint has them; gives `folder`.

    Args:
        spread: standard deviation of the matrices; larger makes the model surer of what it says.
    """
    import torch
    from transformers import Idefics3ForConditionalGeneration

    tokenizer = write_processor(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(vlm_config(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, spread)
    model.save_pretrained(folder)
    return folder


def write_processor(folder: Path, side: int = SIDE, image_tokens: int = IMAGE_TOKENS) -> Any:
    """Write a processor for images of `side` pixels, which become so many tokens; gives its tokenizer."""
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder)
    edge = {"longest_edge": side}
    settings = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": False,
        "do_convert_rgb": True,
        "size": edge,
        "max_image_size": edge,
        # Of no value 0: Idefics3 takes an image of zeros alone for padding.
        "image_mean": [0.45, 0.45, 0.45],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": image_tokens}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer


def vlm_config(tokenizer: Any) -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        scale_factor=2,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids(END),
            "tie_word_embeddings": True,
        },
    )


def word_tokenizer() -> Any:
    """One token a word, and one a tag."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = (*SPECIAL, *TAGS, "<unk>", *WORDS)
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token="<unk>")


def picture(color: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """One colour with a dark corner, so that no two sides look the same."""
    image = Image.new("RGB", size, tuple(color))
    image.paste((20, 30, 40), (0, 0, size[0] // 3, size[1] // 2))
    return image


def save_pictures(folder: Path) -> list[str]:
    """Four pictures of different colours and two sizes; gives their paths."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (color, size) in enumerate(
        [((220, 40, 40), (32, 32)), ((40, 200, 60), (32, 32)), ((40, 60, 220), (32, 20)), ((230, 220, 30), (24, 32))]
    ):
        path = folder / f"picture{number}.png"
        picture(color, size).save(path)
        paths.append(str(path))
    return paths
