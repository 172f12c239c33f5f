"""GenEval's scores and T2I-R1's `gdino` for images, by one detector and one CLIP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from PIL import Image
from pydantic import JsonValue

from services.geneval.grounding import GroundingTask, gdino_score
from services.geneval.reward_server import RewardServerRows
from services.geneval.rules import Verdict, verdict
from services.geneval.samples import CLOSED, samples
from services.geneval.specification import Specification
from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.models.sources import Source
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    from services.geneval.colors import ColorClassifier
    from services.geneval.detector import Detector, Found

# Rules, thresholds and preprocessing as they are here; a change of any of them changes this, and every cached score's key.
SCORING_REVISION = "2"

_MARKS: dict[str, Callable[[Verdict], float]] = {
    "geneval": lambda judged: float(judged.correct),
    "geneval_strict": lambda judged: float(judged.strict),
    "geneval_soft": lambda judged: judged.soft,
    "geneval_soft_plain": lambda judged: judged.soft_plain,
}
_RANGES: dict[str, tuple[float | None, float | None]] = {"geneval_soft": (None, 1.0)}
_REMEMBERED = 256  # images whose objects are kept for the other rewards


@dataclass(frozen=True)
class Seen:
    """What was found in an image, by name, and the colours of those of which a colour was asked."""

    found: Mapping[str, Sequence[Found]]
    colors: Mapping[str, Sequence[str]]


class GenevalScorer(NetworkScorer):
    """Serves `geneval` (the benchmark's 0 or 1), `geneval_strict`, `geneval_soft`, `geneval_soft_plain` and `gdino`.

    What to look for comes in the item's metadata: a row of GenEval's file (tag, include, exclude), or T2I-R1's fields.
    A `Scorer`.

    detector: a Mask2Former, Grounding DINO or OWL folder. clip: a CLIP for colours, ViT-L/14 in GenEval; without one,
    items that ask for a colour have no score.
    network: device, dtype, max_batch and threads, as `NetworkScorer` takes them.
    """

    legacy_rows = RewardServerRows()

    def __init__(
        self,
        detector: Source,
        clip: Source | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(**network)
        self._sources = detector, clip
        self._detector: Detector | None = None
        self._colors: ColorClassifier | None = None
        self._seen: OrderedDict[tuple[bytes, str, tuple[str, ...]], Seen] = OrderedDict()
        colors = f" colours {clip.name} {self._dtype}" if clip else ""
        revision = f"{SCORING_REVISION} {detector.kind} {detector.name}{colors}"
        self._rewards = {
            name: ScorerInfo(name=name, revision=revision, range=_RANGES.get(name, (0.0, 1.0)))
            for name in (*_MARKS, "gdino")
        }

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples(open_vocabulary=self._sources[0].kind != CLOSED)

    def load(self) -> None:
        """Raises SourceError."""
        from services.geneval.colors import ColorClassifier
        from services.geneval.detector import load_detector
        from services.kit.models.backbone import Backbone

        self._take_threads()
        detector, clip = self._sources
        self._detector = load_detector(detector, self._device)
        if clip is not None:
            backbone = Backbone(clip, self._device, self._dtype, batch=64, entries=4096)
            self._colors = ColorClassifier(backbone)

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Components of GenEval's: strict, soft, soft_plain, correct. Details: clauses with reasons, objects with boxes."""
        if self._detector is None:
            raise RuntimeError("call load() before score()")
        return [self._score_one(reward, item, self._detector) for item in items]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        assert self._detector is not None, "warmup comes after load"
        known = sorted(self._detector.classes or {"circle"})[0]
        metadata: dict[str, JsonValue] = {"tag": "single_object", "include": [{"class": known, "count": 1}]}
        return [("geneval", Item("warmup", "a photo", (Image.new("RGB", (64, 64)),), metadata=metadata))]

    def close(self) -> None:
        self._detector = self._colors = None
        self._seen.clear()

    def _score_one(self, reward: str, item: Item, detector: Detector) -> Result:
        wanted = self._wanted(reward, item, detector)
        if isinstance(wanted, Failure):
            return wanted
        try:
            seen = self._look(item.images[0], wanted, detector)
        except ValueError as error:  # a strip of an image, or a name that is too long
            return Failure(ErrorCode.BAD_INPUT, str(error))
        boxes = {name: [each.box for each in found] for name, found in seen.found.items()}
        if isinstance(wanted, GroundingTask):
            return Score(gdino_score(boxes, wanted), {}, {"images": [{"objects": _objects(seen, None)}]})
        judged = verdict(boxes, seen.colors, wanted)
        components = {name.removeprefix("geneval_"): mark(judged) for name, mark in _MARKS.items()}
        details: dict[str, JsonValue] = {
            "clauses": [
                {"wanted": report.wanted, "found": report.found, "class": clause.name, "reason": report.reason}
                for clause, report in zip(wanted.include, judged.clauses, strict=True)
            ],
            "exclusions": [report.reason for report in judged.exclusions if report.reason],
            "images": [{"objects": _objects(seen, judged)}],
        }
        components["correct"] = components.pop("geneval")
        return Score(_MARKS[reward](judged), components, details)

    def _wanted(self, reward: str, item: Item, detector: Detector) -> Specification | GroundingTask | Failure:
        """What the item's metadata asks for, or why it cannot be judged."""
        if len(item.images) != 1:
            return Failure(ErrorCode.BAD_INPUT, f"{reward} needs one image; `images` has {len(item.images)}")
        missing = "task_type" if reward == "gdino" else "include"
        if missing not in item.metadata and not (reward != "gdino" and "exclude" in item.metadata):
            message = f"metadata has no {missing}: nothing says what must be in the image"
            return Failure(ErrorCode.NOT_APPLICABLE, message)
        try:
            wanted = GroundingTask.read(item.metadata) if reward == "gdino" else Specification.read(item.metadata)
        except ValueError as error:
            return Failure(ErrorCode.BAD_INPUT, str(error))
        return self._unknown(wanted, detector) or wanted

    def _unknown(self, wanted: Specification | GroundingTask, detector: Detector) -> Failure | None:
        """Why this detector, or the lack of a CLIP, cannot judge what is wanted."""
        if not wanted.names:
            return Failure(ErrorCode.NOT_APPLICABLE, "metadata names no object: there is nothing to look for")
        strangers = [name for name in wanted.names if detector.classes is not None and name not in detector.classes]
        if strangers:
            message = f"the detector does not know {strangers[0]!r}; it knows {len(detector.classes or ())} classes"
            return Failure(ErrorCode.NOT_APPLICABLE, message)
        coloured = isinstance(wanted, Specification) and any(clause.color for clause in wanted.include)
        if coloured and self._colors is None:
            return Failure(ErrorCode.NOT_APPLICABLE, "a colour is asked for and the service runs without --clip")
        return None

    def _look(self, image: Image.Image, wanted: Specification | GroundingTask, detector: Detector) -> Seen:
        """What is in the image; remembered, since several rewards are asked for the same images."""
        from services.kit.models.features import image_key
        from services.kit.models.pixels import check_ratio

        coloured: tuple[str, ...] = ()
        if isinstance(wanted, Specification):
            coloured = tuple(dict.fromkeys(clause.name for clause in wanted.include if clause.color))
        key = (image_key(image), " ".join(coloured), wanted.names)
        if key not in self._seen:
            check_ratio(image)
            found = detector.detect(image, wanted.names)
            colors = {}
            for name in coloured:
                assert self._colors is not None, "checked in _unknown"
                colors[name] = self._colors.classify(image, name, found[name])
            boxes_only = {name: [_without_mask(each) for each in some] for name, some in found.items()}
            self._seen[key] = Seen(boxes_only, colors)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return self._seen[key]


def _without_mask(found: Found) -> Found:
    from services.geneval.detector import Found

    return Found(found.box)  # a mask of every object of 256 images would fill the memory


def _objects(seen: Seen, judged: Verdict | None) -> list[JsonValue]:
    """What was found, as the page draws it: name, colour, confidence, corners, and whether it counted."""
    objects: list[JsonValue] = []
    for name, found in seen.found.items():
        colors = seen.colors.get(name)
        for index, each in enumerate(found):
            counted = judged is None or index in judged.kept.get(name, ())
            if not counted:
                continue
            x1, y1, x2, y2, confidence = each.box
            text = f"{colors[index]} {name}" if colors else name
            corners: list[JsonValue] = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            objects.append({"text": text, "confidence": confidence, "box": corners})
    return objects
