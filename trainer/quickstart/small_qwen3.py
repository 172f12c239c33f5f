"""The small language model that the native model's quickstart grows from: a Qwen3 of 0.3 million parameters that has read of scenes.

It has never seen an image. It knows 20 words, that `say` is answered by two things side by side, and that a question is answered by
one of the three words that it offers: by any, because nothing in a text says which.

    python -m trainer.quickstart.small_qwen3 FOLDER    trains it, in a minute or so, and writes the folder
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer.quickstart.scenes import COLORS, KINDS, OPTIONS, SHAPES, SIDES, Kind, Scene, draw_scene

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

START, END, PAD, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>"
ROLES = ("system", "user", "assistant")
SAY = "say"  # what asks for a description
WORDS = (*ROLES, SAY, "what", "color", "shape", "?", "or", *SIDES, *COLORS, *SHAPES)
OFFERED = 3  # words of a question, of which one is right
STEPS, BATCH, RATE = 150, 48, 3e-3
SEED = 1


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and one a line's end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = (PAD, START, END, UNKNOWN, "\n", *WORDS)
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    tokenizer.add_special_tokens([START, END, PAD])
    kind: Any = PreTrainedTokenizerFast  # its signature has no types
    return cast(
        "PreTrainedTokenizerFast", kind(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model with random weights, drawn from torch's generator."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": 0.088,  # 1 / sqrt(hidden_size), as 0.02 is for a published one
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    kind: Any = Qwen3ForCausalLM
    model: Qwen3ForCausalLM = kind(Qwen3Config(**settings))
    return model


def question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about one of the two things, which offers three words, and the right one."""
    side, kind = rng.choice(SIDES), rng.choice(KINDS)
    right: str = getattr(getattr(scene, side), kind)
    return asked(side, kind, right, rng), right


def asked(side: str, kind: Kind, right: str, rng: random.Random) -> str:
    """The words of a question: `what color left ? red or blue or green`, in any order."""
    offered = [right, *rng.sample([word for word in OPTIONS[kind] if word != right], OFFERED - 1)]
    rng.shuffle(offered)
    return f"what {kind} {side} ? {' or '.join(offered)}"


def talk(rng: random.Random) -> tuple[str, str]:
    """What is asked and answered where nobody sees anything. No held-out scene is named."""
    scene = draw_scene(rng, heldout=False)
    if rng.random() < 0.5:
        return SAY, scene.caption
    words, _ = question(scene, rng)
    return words, rng.choice(words.split(" ? ")[1].split(" or "))


def framed(words: str, answer: str) -> str:
    """A conversation as Qwen3 writes it."""
    return f"{START}user\n{words}{END}\n{START}assistant\n{answer}{END}\n"


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = SEED) -> float:
    """Let it read conversations; gives the loss of the last batch, in nats a token."""
    import torch
    from torch.nn import functional

    rng, network = random.Random(seed), cast(Any, model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, 2 * (1 - step / STEPS), 1)
    )
    network.train()
    for _ in range(STEPS):
        ids_BT, inside_BT = _batch(tokenizer, [framed(*talk(rng)) for _ in range(BATCH)])
        logits = network(input_ids=ids_BT, attention_mask=inside_BT).logits[:, :-1]
        targets = ids_BT[:, 1:].masked_fill(inside_BT[:, 1:] == 0, -100)
        loss: Any = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    return float(loss)


def _batch(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    made = tokenizer(list(texts), padding=True, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description="Train the small language model that the native model's quickstart grows from."
    )
    parser.add_argument("folder", type=Path, help="Where it is written.")
    folder = parser.parse_args().folder
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = word_tokenizer()
    model = new_model(tokenizer)
    loss = train(model, tokenizer)
    kind: Any = model
    kind.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"Wrote {folder}: {sum(each.numel() for each in kind.parameters()) / 1e6:.2f} M parameters, loss {loss:.3f}")


if __name__ == "__main__":
    main()
