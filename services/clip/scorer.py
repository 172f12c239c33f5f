"""The rewards of one CLIP, one PickScore and one aesthetic head, with one copy of each backbone in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from PIL import Image

from services.clip.samples import samples
from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.models.sources import Source
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    from services.clip.rewards import Reward
    from services.kit.models.backbone import Backbone

# Preprocessing, units and formulas as they are here; a change of any of them changes this, and every cached score's key.
SCORING_REVISION = "1"


class ClipScorer(NetworkScorer):
    """Serves what its weights allow: `clip_sim`, `image_similarity`, `clip_direction` and `diversity` of `model`,
    `aesthetic` of `model` with a head, `pickscore`, `pickscore_26` and `pickscore_cosine` of `pickscore`. A `Scorer`.

    An image that several rewards score is encoded once, also over several calls: features are remembered.

    model: a CLIP or SigLIP. pickscore: PickScore_v1. aesthetic: the head for `model`. At least one of the first two.
    entries: how many images' (and prompts') features each backbone remembers.
    network: device, dtype, max_batch and threads, as `NetworkScorer` takes them.
    """

    off_scale = ("truncated_tokens",)
    image_only = ("aesthetic", "image_similarity", "diversity")  # clients that send no prompts may ask for these

    def __init__(
        self,
        model: Source | None,
        pickscore: Source | None = None,
        aesthetic: Source | None = None,
        *,
        entries: int = 16_384,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(**network)
        self._model, self._pickscore, self._aesthetic = model, pickscore, aesthetic
        self._entries = entries
        self._served: dict[str, tuple[Backbone, Reward]] = {}
        self.backbones: dict[Source, Backbone] = {}
        self._rewards = {info.name: info for info in self._infos()}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    def load(self) -> None:
        """Raises SourceError, also for an aesthetic head made for another backbone."""
        from services.clip import rewards
        from services.kit.models.linear_head import LinearHead
        from services.kit.models.sources import SourceError
        from services.kit.models.tensors import read_tensors

        self._take_threads()
        if self._model is not None:
            clip = self._backbone(self._model)
            self._served = {
                "clip_sim": (clip, rewards.likeness(rewards.cosine)),
                "image_similarity": (clip, rewards.image_similarity),
                "clip_direction": (clip, rewards.clip_direction),
                "diversity": (clip, rewards.diversity),
            }
            if self._aesthetic is not None:
                head = LinearHead(read_tensors(self._aesthetic.path), self._aesthetic.path)
                width = clip.images([Image.new("RGB", (8, 8))]).shape[1]
                if head.width != width:
                    raise SourceError(
                        f"--aesthetic takes {head.width} features and --model gives {width}: the published head "
                        "belongs to ViT-L/14"
                    )
                self._served["aesthetic"] = (clip, rewards.aesthetic(head))
        if self._pickscore is not None:
            backbone = self._backbone(self._pickscore)
            units = {
                "pickscore": rewards.logit,
                "pickscore_26": rewards.logit_over_26,
                "pickscore_cosine": rewards.cosine,
            }
            self._served |= {name: (backbone, rewards.likeness(unit)) for name, unit in units.items()}

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Details: `images`, the score of each, where an item has several."""
        if not self._served:
            raise RuntimeError("call load() before score()")
        backbone, compute = self._served[reward]
        if self._rewards[reward].grouped:
            return compute(backbone, items)
        pictured = [item for item in items if item.images]
        results = iter(compute(backbone, pictured) if pictured else [])
        return [next(results) if item.images else _no_image(reward) for item in items]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        image = Image.new("RGB", (64, 48))
        item = Item(
            id="warmup",
            prompt="a photo",
            images=(image,),
            source_images=(Image.new("RGB", (64, 48), "white"),),
            metadata={"source_prompt": "a white photo"},
        )
        return [(name, item) for name, info in self._rewards.items() if not info.grouped]

    def close(self) -> None:
        self._served = {}
        self.backbones = {}

    def _backbone(self, source: Source) -> Backbone:
        """Loaded at most once: PickScore's folder may be given as the model, too."""
        from services.kit.models.backbone import Backbone

        if source not in self.backbones:
            self.backbones[source] = Backbone(
                source, self._device, self._dtype, batch=self._max_batch, entries=self._entries
            )
        return self.backbones[source]

    def _infos(self) -> list[ScorerInfo]:
        def info(name: str, of: str, least: float | None, most: float | None, *, grouped: bool = False) -> ScorerInfo:
            revision = f"{SCORING_REVISION} {of} {self._dtype}"
            return ScorerInfo(name=name, revision=revision, range=(least, most), grouped=grouped)

        found = []
        if self._model is not None:
            of = self._model.name
            found += [info("clip_sim", of, -1, 1)]
            if self._aesthetic is not None:
                found += [info("aesthetic", f"{of} {self._aesthetic.name}", None, None)]
            found += [info("image_similarity", of, -1, 1), info("clip_direction", of, -1, 1)]
            found += [info("diversity", of, 0, 2, grouped=True)]
        if self._pickscore is not None:
            of = self._pickscore.name
            found += [info("pickscore", of, None, None), info("pickscore_26", of, None, None)]
            found += [info("pickscore_cosine", of, -1, 1)]
        return found


def _no_image(reward: str) -> Failure:
    return Failure(ErrorCode.BAD_INPUT, f"{reward} needs an image: `images` is empty")
