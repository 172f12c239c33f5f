"""Detectors of transformers, by folder: closed ones (Mask2Former) and open-vocabulary ones (Grounding DINO, OWL)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from services.kit.models.pixels import to_rgb
from services.kit.models.sources import Source, SourceError

# Boxes below this confidence are not even kept; it is below every threshold of the rules.
FLOOR = 0.05


@dataclass(frozen=True)
class Found:
    """One object. box: x1, y1, x2, y2 in pixels and confidence 0 to 1. mask: its pixels, where the detector gives them."""

    box: tuple[float, float, float, float, float]
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None


class Detector(Protocol):
    """Looks for named things in images."""

    @property
    def classes(self) -> frozenset[str] | None:
        """The names it knows; None when it takes any words."""
        ...

    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        """Every name with what was found of it, in any order, down to a confidence of FLOOR."""
        ...


class SegmentingDetector:
    """A Mask2Former with the classes of its folder, such as COCO's: the detector of GenEval's own evaluation."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        self._model, self._processor = _load(source, AutoModelForUniversalSegmentation, AutoImageProcessor, device)
        self._device = device
        self._names = {number: str(name) for number, name in self._model.config.id2label.items()}

    @property
    def classes(self) -> frozenset[str] | None:
        return frozenset(self._names.values())

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        shown = to_rgb(image)
        inputs = self._processor(images=[shown], return_tensors="pt").to(self._device)
        outputs = self._model(**inputs)
        # Every query's best class and mask. Published post-processing would drop overlapping ones, which GenEval keeps.
        chances, labels = outputs.class_queries_logits[0].softmax(-1)[:, :-1].max(-1)
        masks = torch.nn.functional.interpolate(
            outputs.masks_queries_logits[0][None], (shown.height, shown.width), mode="bilinear", align_corners=False
        )[0]
        found: dict[str, list[Found]] = {name: [] for name in names}
        for chance, label, mask in zip(chances.tolist(), labels.tolist(), masks, strict=True):
            name, inside = self._names.get(label), mask > 0
            if name not in found or chance <= FLOOR or not bool(inside.any()):
                continue
            # A query's confidence is its class's chance times how sure it is of its own pixels, as mmdet counts it.
            confidence = chance * float(mask.sigmoid()[inside].mean())
            found[name].append(Found((*_bounds(inside), confidence), inside.cpu().numpy()))
        return found


class WordsDetector:
    """Grounding DINO or OWL(v2): any words, boxes only."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model, self._processor = _load(source, AutoModelForZeroShotObjectDetection, AutoProcessor, device)
        self._device = device
        self._grounding = source.kind == "grounding-dino"

    @property
    def classes(self) -> frozenset[str] | None:
        return None

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        shown = to_rgb(image)
        found: dict[str, list[Found]] = {}
        for name in names:  # one at a time, so that what is found does not depend on what else is asked for
            text: Any = f"{name.lower()}." if self._grounding else [[f"a photo of a {name}"]]
            inputs = self._processor(text=text, images=shown, return_tensors="pt").to(self._device)
            outputs = self._model(**inputs)
            sizes = torch.tensor([[shown.height, shown.width]])
            extra = {"input_ids": inputs["input_ids"], "text_threshold": FLOOR} if self._grounding else {}
            [result] = self._processor.post_process_grounded_object_detection(
                outputs, threshold=FLOOR, target_sizes=sizes, **extra
            )
            rows = zip(result["boxes"].tolist(), result["scores"].tolist(), strict=True)
            found[name] = [Found((x1, y1, x2, y2, score)) for (x1, y1, x2, y2), score in rows]
        return found


DETECTORS: dict[str, Callable[[Source, torch.device], Detector]] = {
    "mask2former": SegmentingDetector,
    "grounding-dino": WordsDetector,
    "owlvit": WordsDetector,
    "owlv2": WordsDetector,
}


def load_detector(source: Source, device: torch.device) -> Detector:
    """The detector for a folder. Raises SourceError when it cannot be loaded."""
    return DETECTORS[source.kind](source, device)


def _load(source: Source, model_class: Any, processor_class: Any, device: torch.device) -> tuple[Any, Any]:
    local = {"local_files_only": True}
    try:
        model, found = model_class.from_pretrained(source.path, output_loading_info=True, weights_only=True, **local)
        processor = processor_class.from_pretrained(source.path, backend="pil", **local)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SourceError(f"{source.path}: cannot be loaded ({reason}); download the folder again, whole") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        raise SourceError(f"{source.path}: its weights are not those of its config.json; download the folder again")
    return model.to(device).train(False).requires_grad_(False), processor


def _bounds(inside: torch.Tensor) -> tuple[float, float, float, float]:
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1
