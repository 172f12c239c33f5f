"""A Qwen3 with random weights and a tokenizer of whole words, made on the spot: what a native model grows from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny_vlm import WORDS

PAD, END, UNKNOWN = "<|endoftext|>", "<|im_end|>", "<unk>"
ROLES = ("system", "user", "assistant")
PIECES = r"\n|\w+|[^\w\s]"  # a line's end is a token, too


def make_qwen3(folder: Path, seed: int = 0, *, spread: float = 0.2, words: tuple[str, ...] = (), **sizes: Any) -> Path:
    """Write a language model and its tokenizer as a published Qwen3 has them; gives `folder`.

    Args:
        spread: standard deviation of the matrices.
        words: that the tokenizer knows beside those of the tests.
        sizes: fields of `Qwen3Config` in place of the tiny ones.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = word_tokenizer(words)
    tokenizer.save_pretrained(folder)
    tiny: Mapping[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**{**tiny, **sizes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, spread)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def word_tokenizer(words: tuple[str, ...] = ()) -> Any:
    """One token a word, a sign or a line's end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = dict.fromkeys((PAD, END, UNKNOWN, "\n", *ROLES, *WORDS, *words))
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def neo_section(folder: Path, *, extra_layers: int = 1, **fields: Any) -> Any:
    """The section of a small native model that grows from `make_qwen3`'s folder; a token is 16 x 16 pixels."""
    from trainer.config.neo import NeoConfig

    grow = {"language": str(folder), "extra_layers": extra_layers, "vision_hidden_size": 32, "patch_size": 8}
    usual = {"type": "neo", "grow": grow, "dtype": "float32", "min_pixels": 16 * 16, "max_pixels": 64 * 64}
    return NeoConfig(**{**usual, **fields})


def make_neo(folder: Path, base: Path, seed: int = 0, **fields: Any) -> Path:
    """Write a small native model in NEO's layout, its new keys and patches not nearly nothing; gives `folder`."""
    import torch

    from trainer.policies.unified.neo import build
    from trainer.policies.unified.neo.exporting import write

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(neo_section(base, **fields), torch.device("cpu"))
        with torch.no_grad():
            for parameter in model.network.parameters():
                if parameter.dim() > 1 and parameter.std() < 0.1:
                    parameter.normal_(0.0, 0.2)
    folder.mkdir(exist_ok=True)
    write(model, folder, torch.float32)
    return folder
