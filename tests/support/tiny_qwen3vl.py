"""A Qwen3-VL checkpoint with random weights and a byte tokenizer, made on the spot: 1.5 MB, no hub.

It says nonsense, but by the real architecture: its answer depends on the pixels, on their order and on the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import torch

PATCH, MERGE = 16, 2  # an image token stands for (PATCH * MERGE)² pixels
IMAGE_MULTIPLE = PATCH * MERGE  # images whose sides are multiples of this are not resized
MAX_PIXELS = 256 * 256

_END, _TURN, _IMAGE, _VIDEO = "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>"
_SPECIAL = ["<|endoftext|>", _TURN, _END, "<|vision_start|>", "<|vision_end|>", _IMAGE, _VIDEO]
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- else -%}<|vision_start|><|image_pad|><|vision_end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
_IMAGE_SETTINGS = {
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": IMAGE_MULTIPLE**2, "longest_edge": MAX_PIXELS},
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write weights, tokenizer, chat template and image settings as a published checkpoint has them; gives `folder`."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**_config(tokenizer)))
        _spread(model)
    model.save_pretrained(folder)
    still = {"image_processor_type": "Qwen2VLImageProcessor"} | _IMAGE_SETTINGS
    video = {"video_processor_type": "Qwen3VLVideoProcessor"} | _IMAGE_SETTINGS
    (folder / "preprocessor_config.json").write_text(json.dumps(still))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder


def token_ids(text: str) -> list[int]:
    """The tokens of printable ASCII, one per character."""
    letters = _alphabet()
    return [letters.index(character) for character in text]


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer() -> Any:
    """One token per byte, so that any text has tokens and any grammar can be followed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(_alphabet())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=_END, pad_token=_SPECIAL[0])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _config(tokenizer: Any) -> dict[str, Any]:
    """Two layers each way. vLLM's CPU attention needs heads of at least 32."""
    number = tokenizer.convert_tokens_to_ids
    return {
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": number(_END),
            "pad_token_id": number(_SPECIAL[0]),
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
        },
        "image_token_id": number(_IMAGE),
        "video_token_id": number(_VIDEO),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def _spread(model: torch.nn.Module) -> None:
    """Weights large enough that activations keep their size: at the usual 0.02 every answer would be the same."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=1.5 * fan_in**-0.5)


class Reference:
    """The same checkpoint run by transformers without batching or a key-value cache: an independent computation."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self._model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def answer(self, images: Sequence[Image.Image], text: str, num_tokens: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and their log-probabilities for a message of `images`, in this order, and then `text`."""
        import torch

        ids, types, pixels = self._inputs(images, text)
        logps = []
        for _ in range(num_tokens):
            logp, token = self._next(ids, types, pixels).max(-1)
            logps.append(float(logp))
            ids = torch.cat([ids, token.view(1, 1)], 1)
            types = torch.cat([types, types.new_zeros(1, 1)], 1)
        return ids[0, -num_tokens:].tolist(), logps

    def likeliest(self, images: Sequence[Image.Image], text: str, count: int) -> list[tuple[str, float]]:
        """The first token's likeliest texts and their log-probabilities, best first."""
        best = self._next(*self._inputs(images, text)).topk(count)
        return [(self._tokenizer.decode([int(i)]), float(logp)) for logp, i in zip(*best, strict=True)]

    def _next(self, ids: torch.Tensor, types: torch.Tensor, pixels: Any) -> torch.Tensor:
        """Log-probabilities of the next token, [vocabulary]."""
        import torch

        with torch.no_grad():
            logits = self._model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **pixels).logits
        distribution: torch.Tensor = logits[0, -1].log_softmax(-1)
        return distribution

    def _inputs(self, images: Sequence[Image.Image], text: str) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Token numbers [1, length], which of them are of images [1, length], and the images' patches."""
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pixels = self._pixels(images=list(images), return_tensors="pt")
        head, *rest = chat.split(_IMAGE)
        for grid, tail in zip(pixels["image_grid_thw"], rest, strict=True):
            head += _IMAGE * (int(grid.prod()) // MERGE**2) + tail
        ids = self._tokenizer(head, return_tensors="pt").input_ids
        return ids, (ids == self._model.config.image_token_id).long(), pixels
