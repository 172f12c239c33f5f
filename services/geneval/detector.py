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

# GenEval's names of COCO's classes, and what published folders call the same ones.
ALSO_CALLED = {
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}


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
        """Every name with what was found of it, in any order, down to a confidence of FLOOR.

        Raises ValueError, a sentence, for a name that it cannot read whole.
        """
        ...


class SegmentingDetector:
    """A Mask2Former with the classes of its folder, such as COCO's: the detector of GenEval's own evaluation."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from transformers import AutoImageProcessor

        from services.geneval.segmenter import Segmenter

        self._model, self._processor = _load(source, Segmenter, AutoImageProcessor, device)
        self._device = device
        self._labels = {str(name): int(number) for number, name in self._model.config.id2label.items()}
        # Both names of a class lead to its number, whichever of them the folder has.
        for name, other in [*ALSO_CALLED.items(), *((other, name) for name, other in ALSO_CALLED.items())]:
            if other in self._labels:
                self._labels.setdefault(name, self._labels[other])

    @property
    def classes(self) -> frozenset[str] | None:
        return frozenset(self._labels)

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        shown = to_rgb(image)
        inputs = self._processor(images=[shown], return_tensors="pt")
        class_logits, mask_logits = self._model(inputs["pixel_values"].to(self._device))
        # As mmdet reads a Mask2Former: of all pairs of a query and a class the surest, as many as there are queries. One
        # query may so be two things, and overlapping ones are kept.
        chances = class_logits.softmax(-1)[:, :-1]
        surest, places = chances.flatten().topk(len(chances))
        # Masks are a quarter of the network's size in each direction, which is the image's but for its scale.
        masks = torch.nn.functional.interpolate(
            mask_logits[None], (shown.height, shown.width), mode="bilinear", align_corners=False
        )[0]
        found: dict[int, list[Found]] = {self._labels[name]: [] for name in names}
        for chance, place in zip(surest.tolist(), places.tolist(), strict=True):
            query, label = divmod(place, chances.shape[1])
            mask = masks[query]
            inside = mask > 0  # half a chance or more that the pixel belongs to the object
            if label not in found or chance <= FLOOR or not bool(inside.any()):
                continue
            # A pair's confidence is its class's chance times how sure the query is of its own pixels, as mmdet counts it.
            confidence = chance * float(mask.sigmoid()[inside].mean())
            if confidence > FLOOR:
                found[label].append(Found((*_bounds(inside), confidence), inside.cpu().numpy()))
        return {name: found[self._labels[name]] for name in names}


class WordsDetector:
    """Grounding DINO or OWL(v2): any words, boxes only."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model, self._processor = _load(source, AutoModelForZeroShotObjectDetection, AutoProcessor, device)
        self._device = device
        self._kind = source.kind

    @property
    def classes(self) -> frozenset[str] | None:
        return None

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        shown = to_rgb(image)
        found: dict[str, list[Found]] = {}
        for name in names:  # one at a time, so that what is found does not depend on what else is asked for
            inputs = self._inputs(shown, name).to(self._device)
            outputs = self._model(**inputs)
            sizes = torch.tensor([[shown.height, shown.width]])
            extra = {"text_threshold": FLOOR} if self._kind == "grounding-dino" else {}
            [result] = self._processor.post_process_grounded_object_detection(
                outputs, threshold=FLOOR, target_sizes=sizes, **extra
            )
            rows = zip(result["boxes"].tolist(), result["scores"].tolist(), strict=True)
            found[name] = [Found((x1, y1, x2, y2, score)) for (x1, y1, x2, y2), score in rows]
        return found

    def _inputs(self, shown: Image.Image, name: str) -> Any:
        """What the network is given: the words as its family was trained on them, and the image."""
        if self._kind == "grounding-dino":
            return self._processor(text=f"{name.lower()}.", images=shown, return_tensors="pt")
        text = f"a photo of a {name}"
        most, given = (
            self._model.config.text_config.max_position_embeddings,
            len(self._processor.tokenizer(text).input_ids),
        )
        if given > most:
            raise ValueError(
                f"{name!r} has {given} tokens with its sentence, and the detector reads {most}: shorten it"
            )
        if self._kind == "owlvit":
            return self._processor(text=[[text]], images=shown, return_tensors="pt")
        from services.geneval.owlv2_pixels import owlv2_pixels

        inputs = self._processor(text=[[text]], return_tensors="pt")
        scale = self._processor.image_processor
        inputs["pixel_values"] = owlv2_pixels(shown, scale.size["height"], scale.image_mean, scale.image_std)
        return inputs


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
        model, found = model_class.from_pretrained(
            source.path, dtype=torch.float32, output_loading_info=True, weights_only=True, **local
        )  # in float32 also what is published in half precision: images come in float32
        processor = processor_class.from_pretrained(source.path, backend="pil", **local)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SourceError(f"{source.path}: cannot be loaded ({reason}); download the folder again, whole") from error
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{source.path}: its network needs a package that is not installed ({reason})") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        raise SourceError(f"{source.path}: its weights are not those of its config.json; download the folder again")
    return model.to(device).train(False).requires_grad_(False), processor


def _bounds(inside: torch.Tensor) -> tuple[float, float, float, float]:
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1
