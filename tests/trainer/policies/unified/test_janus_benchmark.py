"""The benchmark on a GPU has the published model's geometry."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu_janus import geometry
from tests.support.tiny_janus import write_processor
from trainer.policies.tokens.llama.layout import supports


def test_it_is_of_janus_pro_1b(tmp_path: Path) -> None:
    """2.077 billion parameters, 576 image tokens among 16,384 codes, and layers that are computed by hand."""
    from transformers import JanusForConditionalGeneration

    tokenizer = write_processor(tmp_path, 384, 24)
    with torch.device("meta"):
        network = JanusForConditionalGeneration(geometry(tokenizer))
    assert round(sum(each.numel() for each in network.parameters()) / 1e9, 3) == 2.077
    assert network.model.vqmodel.quantize.quant_state_dims == [24, 24]
    assert network.model.generation_head.vision_head.out_features == 16384
    assert network.lm_head.weight is not network.model.language_model.embed_tokens.weight
    assert supports(network) is None
