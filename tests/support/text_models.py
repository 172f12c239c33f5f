"""Random language models of several families, small, with weights large enough that each token is a clear choice."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY, PAD, END, IMAGE, VISION_START = 41, 0, 2, 3, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": END,
}
SPACES = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 2, 2]}
_EYE = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1, "in_channels": 3}


def text_model_of(name: str) -> Any:
    """The network of a family by name, in evaluation."""
    import transformers as t

    makers: dict[str, Any] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=4)),
        "llama_grouped_tied": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
        ),
        "llama_biases": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, num_key_value_heads=1, attention_bias=True, mlp_bias=True, head_dim=16)
        ),
        "llama3_positions": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                **SIZES,
                num_key_value_heads=2,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 100.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            )
        ),
        "yarn_positions": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                **SIZES,
                num_key_value_heads=2,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 100.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            )
        ),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)),
        "qwen2_vl": lambda: t.Qwen2VLForConditionalGeneration(
            t.Qwen2VLConfig(
                **_ids(),
                text_config={**SIZES, "num_key_value_heads": 2, "rope_parameters": SPACES},
                vision_config={**_EYE, "depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2},
            )
        ),
        "qwen2_5_vl": lambda: t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(
                **_ids(),
                text_config={**SIZES, "num_key_value_heads": 2, "rope_parameters": SPACES},
                vision_config={
                    **_EYE,
                    "depth": 1,
                    "hidden_size": 16,
                    "out_hidden_size": 48,
                    "num_heads": 2,
                    "intermediate_size": 32,
                    "window_size": 16,
                    "fullatt_block_indexes": [0],
                },
            )
        ),
        "qwen3_vl": lambda: t.Qwen3VLForConditionalGeneration(
            t.Qwen3VLConfig(
                **_ids(),
                text_config={**SIZES, "num_key_value_heads": 2, "head_dim": 12, "rope_parameters": SPACES},
                vision_config={
                    **_EYE,
                    "depth": 2,
                    "hidden_size": 16,
                    "out_hidden_size": 48,
                    "num_heads": 2,
                    "intermediate_size": 32,
                    "num_position_embeddings": 16,
                    "deepstack_visual_indexes": [0, 1],
                },
            )
        ),
        # No relatives: what differs in them is not computed.
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=12)),
        "window": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)),
        "some_windows": lambda: t.Qwen2ForCausalLM(
            t.Qwen2Config(
                **SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
            )
        ),
        "dynamic_positions": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                **SIZES,
                num_key_value_heads=2,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
            )
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = makers[name]().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.25)
                else:
                    parameter.add_(0.3 * torch.randn_like(parameter))  # gains and biases that can be seen
    return network


def _ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": 5,
        "video_token_id": 6,
        "pad_token_id": PAD,
    }


def prompts_of(name: str, *, left: bool) -> dict[str, Any]:
    """A padded batch of four prompts of unequal length; of a family that sees, three have one to three images."""
    generator = torch.Generator().manual_seed(1)
    sees = name.endswith("_vl")
    grids = [[], [(1, 4, 4)], [(1, 4, 8), (1, 8, 4)], [(1, 4, 4), (1, 4, 4), (1, 8, 8)]] if sees else [[]] * 4
    rows = []
    for images, length in zip(grids, (5, 9, 3, 7), strict=True):
        row = torch.randint(8, VOCABULARY, (length,), generator=generator).tolist()
        for _, height, width in images:
            row = [VISION_START, *[IMAGE] * (height * width // 4), 5, *row]
        rows.append(row)
    longest = max(map(len, rows))
    padded = [[PAD] * (longest - len(row)) * left + row + [PAD] * (longest - len(row)) * (not left) for row in rows]
    inside = [
        [0] * (longest - len(row)) * left + [1] * len(row) + [0] * (longest - len(row)) * (not left) for row in rows
    ]
    batch: dict[str, Any] = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(inside)}
    flat = [grid for images in grids for grid in images]
    if flat:
        batch["image_grid_thw"] = torch.tensor(flat)
        patches = sum(height * width for _, height, width in flat)
        batch["pixel_values"] = torch.randn(patches, 3 * 4 * 4, generator=generator)
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
    return batch
