"""Vision-language models of other families with random weights, as their published folders are laid out: no hub.

All share a byte tokenizer, whose special tokens are those of the family.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tiny_qwen3vl import make_checkpoint

_MEAN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_END, _PAD = "<|im_end|>", "<|endoftext|>"


def qwen2_5_vl(folder: Path) -> Path:
    """Patches of 14 pixels, of which 2 x 2 become a token."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    images = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    number = _save_tokenizer(folder, images, "<|vision_start|><|image_pad|><|vision_end|>")
    text = {
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    ids = {name: number(f"<|{token}|>") for name, token in _QWEN_IDS.items()}
    config = Qwen2_5_VLConfig(text_config=_text(number, **text), vision_config=vision, **ids, tie_word_embeddings=False)
    _save(Qwen2_5_VLForConditionalGeneration, config, folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    settings = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "size": size} | _MEAN
    _settings(
        folder, "preprocessor_config", settings, "Qwen2_5_VLProcessor", image_processor_type="Qwen2VLImageProcessor"
    )
    _settings(
        folder,
        "video_preprocessor_config",
        settings,
        "Qwen2_5_VLProcessor",
        video_processor_type="Qwen2VLVideoProcessor",
    )
    return folder


def qwen3_vl(folder: Path) -> Path:
    """With features of an inner vision layer added to the language model's (deepstack)."""
    return make_checkpoint(folder)


def smolvlm(folder: Path) -> Path:
    """Images are cut into tiles of 32 pixels with a view of the whole; 4 tokens a tile."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    tags = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    own = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tags]
    number = _save_tokenizer(folder, own, "<image>")
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    text = _text(number, model_type="llama", tie_word_embeddings=False)
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=number("<image>"),
        pad_token_id=number(_PAD),
    )
    _save(SmolVLMForConditionalGeneration, config, folder)
    settings = {
        "do_image_splitting": True,
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32},
        "do_convert_rgb": True,
    } | _MEAN
    _settings(folder, "preprocessor_config", settings, "SmolVLMProcessor", image_processor_type="SmolVLMImageProcessor")
    _settings(folder, "processor_config", {"image_seq_len": 4}, "SmolVLMProcessor")
    return folder


def llava(folder: Path) -> Path:
    """A CLIP tower whose class token is dropped; 9 tokens an image."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    number = _save_tokenizer(folder, ["<image>"], "<image>\n")
    vision = CLIPVisionConfig(**_SMALL, image_size=24, patch_size=8)
    config = LlavaConfig(
        text_config=_text(number, model_type="llama"),
        vision_config=vision,
        image_token_id=number("<image>"),
        image_seq_length=9,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    _save(LlavaForConditionalGeneration, config, folder)
    settings = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}} | _MEAN
    _settings(folder, "preprocessor_config", settings, "LlavaProcessor", image_processor_type="CLIPImageProcessor")
    more = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    _settings(folder, "processor_config", more, "LlavaProcessor")
    return folder


def qwen2_vl(folder: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    images = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    number = _save_tokenizer(folder, images, "<|vision_start|><|image_pad|><|vision_end|>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = _text(number, max_position_embeddings=4096, rope_parameters=rope)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    ids = {name: number(f"<|{token}|>") for name, token in _QWEN_IDS.items()}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
    _save(Qwen2VLForConditionalGeneration, config, folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    settings = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "size": size} | _MEAN
    _settings(folder, "preprocessor_config", settings, "Qwen2VLProcessor", image_processor_type="Qwen2VLImageProcessor")
    return folder


def internvl(folder: Path) -> Path:
    """16 patches an image, of which 2 x 2 become a token."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    number = _save_tokenizer(folder, list(named.values()), "<IMG_CONTEXT>\n", named)
    config = InternVLConfig(
        text_config=_text(number, model_type="qwen2"),
        vision_config={**_SMALL, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=number("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    _save(InternVLForConditionalGeneration, config, folder)
    settings = {"size": {"height": 32, "width": 32}, "crop_to_patches": False} | _MEAN
    _settings(
        folder, "preprocessor_config", settings, "InternVLProcessor", image_processor_type="GotOcr2ImageProcessor"
    )
    _settings(folder, "processor_config", {"image_seq_length": 4}, "InternVLProcessor")
    return folder


def llava_onevision(folder: Path) -> Path:
    """Images of their own shapes: a view of the whole and up to four tiles, which are padded where others have more."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    number = _save_tokenizer(folder, ["<image>", "<video>"], "<image>\n")
    shapes = [[24, 24], [24, 48], [48, 24], [48, 48]]
    vision = {"model_type": "siglip_vision_model", "image_size": 24, "patch_size": 8, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        text_config=_text(number, model_type="qwen2"),
        vision_config={**_SMALL, **vision},
        image_token_id=number("<image>"),
        video_token_id=number("<video>"),
        image_grid_pinpoints=shapes,
        tie_word_embeddings=False,
    )
    _save(LlavaOnevisionForConditionalGeneration, config, folder)
    settings = {"size": {"height": 24, "width": 24}, "image_grid_pinpoints": shapes} | _MEAN
    kind = "LlavaOnevisionImageProcessor"
    _settings(folder, "preprocessor_config", settings, "LlavaOnevisionProcessor", image_processor_type=kind)
    more = {"num_image_tokens": 9, "vision_feature_select_strategy": "full"}
    _settings(folder, "processor_config", more, "LlavaOnevisionProcessor")
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "llava": llava,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "internvl": internvl,
}
_QWEN_IDS = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}


def _save_tokenizer(
    folder: Path, special: list[str], image: str, named: dict[str, str] | None = None
) -> Callable[[str], int]:
    """A byte a token, and a chat template in which an image is written as `image`. Gives the numbering.

    Args:
        named: tokens that the tokenizer gives by a name of their own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([_PAD, "<|im_start|>", _END, *special])
    more = {"extra_special_tokens": named} if named else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=_END, pad_token=_PAD, **more)
    tokenizer.chat_template = (
        "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
        "{%- for part in message.content -%}{%- if part.type == 'text' -%}{{ part.text }}{%- else -%}"
        f"{{{{ {image!r} }}}}"
        "{%- endif -%}{%- endfor -%}<|im_end|>\n{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
    )
    tokenizer.save_pretrained(folder)
    number: Callable[[str], int] = tokenizer.convert_tokens_to_ids
    return number


def _text(number: Callable[[str], int], **more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": number(_END), "pad_token_id": number(_PAD), "bos_token_id": None}
    return {**_SMALL, "num_key_value_heads": 2, "vocab_size": 300, **ids, **more}


def _save(kind: Any, config: Any, folder: Path) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 1.2 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)


def _settings(folder: Path, name: str, settings: dict[str, Any], processor: str, **more: str) -> None:
    (folder / f"{name}.json").write_text(json.dumps(settings | {"processor_class": processor} | more))
