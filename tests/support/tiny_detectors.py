"""Folders of small random detectors in the published layouts: Mask2Former with a Swin, Grounding DINO, OWLv2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_clip import END, START, write_clip_tokenizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
OWL_MEAN, OWL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHORT, LONG, SIDE, CONTEXT = 128, 160, 48, 24
CLASSES = ("dog", "cup", "remote")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "cup", "dining", "table"]
_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "patch_size": 4}


def write_mask2former(folder: Path, seed: int, **changes: Any) -> Path:
    """As facebook/mask2former-swin-small-coco-instance is laid out; its file holds the loss's tensor, as theirs does."""
    from transformers import Mask2FormerConfig, SwinConfig

    from services.geneval.segmenter import Segmenter

    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    sizes |= {"dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    backbone = SwinConfig(image_size=SHORT, out_features=["stage1", "stage2", "stage3", "stage4"], **_SWIN)
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=6, id2label=dict(enumerate(CLASSES)), **sizes)
    model = _random(Segmenter(config), seed)
    state = model.state_dict() | {"criterion.empty_weight": torch.tensor([1.0, 1.0, 1.0, 0.1])} | changes
    model.save_pretrained(folder, state_dict=state)
    settings = json.loads((folder / "config.json").read_text())
    settings["architectures"] = ["Mask2FormerForUniversalSegmentation"]
    (folder / "config.json").write_text(json.dumps(settings))
    processor = {"image_processor_type": "Mask2FormerImageProcessor", "ignore_index": 255, "size_divisor": 32}
    processor |= _scaling(SHORT, LONG)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_grounding_dino(folder: Path, seed: int) -> Path:
    """As IDEA-Research/grounding-dino-tiny is laid out, with a vocabulary of ten words."""
    from transformers import BertConfig, BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    backbone = SwinConfig(image_size=SHORT, out_features=["stage2", "stage3", "stage4"], **_SWIN)
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=10,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_text_len=16,
    )
    _random(GroundingDinoForObjectDetection(config), seed, gain=0.3).save_pretrained(folder)
    processor = {"image_processor_type": "GroundingDinoImageProcessor", "do_pad": True} | _scaling(SHORT, LONG)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "GroundingDinoProcessor"}))
    return folder


def write_owlv2(folder: Path, seed: int) -> Path:
    """As google/owlv2-base-patch16-ensemble is laid out."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    vocabulary = write_clip_tokenizer(folder, CONTEXT)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(vocabulary), "max_position_embeddings": CONTEXT, "pad_token_id": 0}
    text |= {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
    vision = tower | {"image_size": SIDE, "patch_size": 16}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    _random(Owlv2ForObjectDetection(config), seed).save_pretrained(folder)
    processor = {
        "image_processor_type": "Owlv2ImageProcessor",
        "do_pad": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_normalize": True,
        "image_mean": OWL_MEAN,
        "image_std": OWL_STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Owlv2Processor"}))
    return folder


def _scaling(short: int, long: int) -> dict[str, Any]:
    return {
        "do_resize": True,
        "size": {"shortest_edge": short, "longest_edge": long},
        "resample": 2,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _random(model: Any, seed: int, gain: float = 1.5) -> Any:
    """Weights wide enough that objects are told apart; norms stay near one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "queries" in name:  # of which all would see the same, were they alike
                torch.nn.init.normal_(weight, 0, 4)
            elif weight.ndim > 1:
                torch.nn.init.normal_(weight, 0, gain * weight[0].numel() ** -0.5)
            elif "norm" not in name:
                torch.nn.init.normal_(weight, 0, 0.2)
    return model
