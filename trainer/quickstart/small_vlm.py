"""The small VLM of the quickstart, before any training: an Idefics3 of 0.75 million parameters that knows 60 words.

An image of 48x48 pixels is 6x6 patches, of which each 3x3 become one token: four tokens, one a quarter of a card.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from trainer.quickstart.cards import COUNTS, PLACES, QUESTIONS_OF_SIDES, SHAPES, SIZE
from trainer.quickstart.words import INKS

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedTokenizerFast

PATCH, SCALE = 8, 3
IMAGE_TOKENS = (SIZE // PATCH // SCALE) ** 2
# Mean and standard deviation of the cards' pixels. White is not 0 in it: Idefics3 takes an image of zeros for padding.
PIXEL_MEAN, PIXEL_STD = 0.90, 0.26
PAD, IMAGE, AROUND, GLOBAL, END = "<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
ROLES = {role: f"<{role}>" for role in ("system", "user", "assistant")}
SPECIAL = (PAD, IMAGE, AROUND, GLOBAL, END, *ROLES.values())
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
UNKNOWN = "<unk>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<{{ message['role'] }}>"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<image>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}<end_of_utterance>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def words() -> list[str]:
    """All words of cards' questions, answers and captions, each once."""
    sentences: Iterable[str] = (
        "say what color is the how many ?",
        *(question.replace("{}", "") for question in QUESTIONS_OF_SIDES.values()),
        *INKS,
        *SHAPES,
        *SHAPES.values(),
        *PLACES,
        *map(str, (*COUNTS, len(PLACES))),
    )
    return list(dict.fromkeys(" ".join(sentences).split()))


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
    return cast(
        "PreTrainedTokenizerFast", kind(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    )


def new_network(tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """The network with random weights, drawn from torch's generator."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    def token(name: str) -> int:
        return int(cast(Any, tokenizer.convert_tokens_to_ids(name)))

    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "pad_token_id": token(PAD),
        "bos_token_id": None,
        "eos_token_id": token(END),
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    config = Idefics3Config(
        image_token_id=token(IMAGE),
        pad_token_id=token(PAD),
        scale_factor=SCALE,
        vision_config=vision,
        text_config=text,
        tie_word_embeddings=True,
    )
    kind: Any = Idefics3ForConditionalGeneration
    network: Idefics3ForConditionalGeneration = kind(config)
    return network


def processor() -> Idefics3Processor:
    """Images and texts as the network takes them, without torchvision."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    edge = {"longest_edge": SIZE}
    pictures = Idefics3ImageProcessorPil(
        do_image_splitting=False, size=edge, max_image_size=edge, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
    )
    return Idefics3Processor(pictures, word_tokenizer(), image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def prompt_text(question: str) -> str:
    """A card with a question as the processor writes it: the image first, then the words, then it is the model's turn."""
    card = f"{AROUND}{GLOBAL}{IMAGE * IMAGE_TOKENS}{AROUND}"
    return f"{ROLES['user']}{card}{question}{END}{ROLES['assistant']}"
