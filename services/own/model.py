"""A reward that a network gives, from a class of a user's file: what the class says, and the scorer that is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from machine.own import Own, OwnError, raised
from services.kit.functions.outcomes import checked
from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    import torch

# How far a score may move when its item has neighbours: padding and 16-bit sums round differently, and nothing else may differ.
_CLOSE = {"fp32": 1e-3, "bf16": 5e-2}


class RewardModel(ABC):
    """To be made a class of your own from: say `load` and `score`, and what of the rest is not as here.

    Batching, limits, tokens, metrics, the cache and the failure of single items are the service's. `score` runs without
    gradients, under autocast where the arithmetic is bf16; it may not be called again before it is done.

    Attributes:
        name: of the reward; the class's own where it is empty.
        range: lowest and highest score, None where there is none. A score outside is a failure.
        higher_is_better: which way is good.
        revision: your own version, to be raised when scores change for a reason outside the file. The hashes of the file and of
            the checkpoint are added to it.
        images: how many images an item must have; None: any number.
        image_only: the prompt does not matter.
        gpu_batch, cpu_batch: how many items `score` gets at most, where --max-batch says nothing.
        device: where the network is to run: --device, else the first GPU, else the CPU.
        checkpoint: the folder of --checkpoint, or of the class; of an id of the hub, where its files lie.
    """

    name: ClassVar[str] = ""
    range: ClassVar[tuple[float | None, float | None]] = (None, None)
    higher_is_better: ClassVar[bool] = True
    revision: ClassVar[str] = "1"
    images: ClassVar[int | None] = 1
    image_only: ClassVar[bool] = True
    gpu_batch: ClassVar[int] = 64
    cpu_batch: ClassVar[int] = 8

    device: torch.device
    checkpoint: str | None = None

    @abstractmethod
    def load(self) -> None:
        """Load the network. Heavy imports belong here, too."""

    @abstractmethod
    def score(self, items: Sequence[Item]) -> Sequence[float | Score | Failure | None] | torch.Tensor:
        """One score for each item, in order: a tensor (N,), or a list of numbers; None: the reward does not apply."""

    def probes(self) -> Sequence[Item]:
        """What is scored before the service is ready, together and each alone: at least one must get a score."""
        colors = ("white", (200, 30, 30))
        pictures = [Image.new("RGB", (64, 64), color) for color in colors]
        pictures[1].paste((30, 60, 200), (16, 16, 48, 48))
        return [Item(f"probe{n}", "a blue square", (each,) * (self.images or 1)) for n, each in enumerate(pictures)]


class ModelScorer(NetworkScorer):
    """Serves one `RewardModel`. A `Scorer`.

    Args:
        own: the class.
        source: names the checkpoint's bytes, for the revision; None where there is no checkpoint.

    Raises OwnError where the class does not say what it must.
    """

    def __init__(
        self, own: Own, kind: type[RewardModel], checkpoint: Path | None, source: str | None, options: NetworkOptions
    ) -> None:
        for method in ("load", "score"):
            if getattr(kind, method) is getattr(RewardModel, method):
                raise own.error(
                    f"the class {own.name} has no {method}; write def {method}(self{', items' * (method == 'score')})"
                )
        self.gpu_batch, self.cpu_batch = kind.gpu_batch, kind.cpu_batch
        super().__init__(**options)
        self._own, self._model = own, kind()
        self._model.device = self._device
        if checkpoint is not None:
            self._model.checkpoint = str(checkpoint)
        low, high = kind.range
        if low is not None and high is not None and not low < high:
            raise own.error(f"range = {kind.range} of {own.name} is not (lowest, highest)")
        more = "" if source is None else f"+{source}"
        name = kind.name or own.name
        revision = f"{kind.revision}+sha256:{own.source.sha256}{more}+{self._dtype}"
        self._info = ScorerInfo(name=name, revision=revision, range=kind.range, higher_is_better=kind.higher_is_better)
        self._rewards = {name: self._info}

    @property
    def image_only(self) -> Sequence[str]:
        return [self._info.name] if self._model.image_only else []

    def load(self) -> None:
        """Load the network, and score the probes together and alone: one score an item, the same whatever its neighbours."""
        self._take_threads()
        try:
            self._model.load()
        except OwnError:
            raise
        except Exception as error:  # the user's code; whatever it raises is said with its line
            raise raised(self._own, error, "in load") from error
        self._prove()

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        wanted = self._model.images
        fit = [item for item in items if wanted is None or len(item.images) == wanted]
        found = iter(self._scored(fit) if fit else [])
        return [
            next(found)
            if wanted is None or len(item.images) == wanted
            else Failure(ErrorCode.BAD_INPUT, f"{reward} scores {wanted} image(s); `images` has {len(item.images)}")
            for item in items
        ]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """Nothing more: `load` has scored the probes."""
        return []

    def close(self) -> None:
        """The network goes with the process."""

    def _scored(self, items: Sequence[Item]) -> list[Result]:
        import torch

        with torch.inference_mode(), self._arithmetic():
            given: Any = self._model.score(items)
        shape: object = type(given).__name__
        values: Sequence[Any] = []
        if isinstance(given, torch.Tensor):
            shape = tuple(given.shape)
            values = given.float().cpu().tolist() if shape == (len(items),) else []
        elif isinstance(given, Sequence):
            shape, values = (len(given),), given
        if len(values) != len(items):
            raise self._own.error(
                f"{self._own.name}.score gave {shape} for {len(items)} items; give one number an item, ({len(items)},)"
            )
        return [checked(self._info, value) for value in values]

    def _arithmetic(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == "bf16")

    def _prove(self) -> None:
        """Raises OwnError where a probe's score depends on its neighbour, or none has a score."""
        items = list(self._model.probes())
        together = self._call(items)
        failed = [each for each in together if isinstance(each, Failure)]
        if len(failed) == len(items):
            raise self._own.error(
                f"{self._own.name} scored none of its {len(items)} probes: {failed[0].message if failed else 'there are none'}; "
                "say what it can score in def probes(self)"
            )
        for number, (item, before) in enumerate(zip(items, together, strict=True)):
            (alone,) = self._call([item])
            if isinstance(before, Score) and isinstance(alone, Score):
                difference, most = abs(before.value - alone.value), _CLOSE[self._dtype] * max(1.0, abs(alone.value))
                if difference > most:
                    raise self._own.error(
                        f"{self._own.name}.score gives probe {number} {before.value:.6g} beside another and {alone.value:.6g} alone: "
                        "a score may not depend on its neighbours in the batch (is a mean or a softmax over the items?)"
                    )

    def _call(self, items: Sequence[Item]) -> list[Result]:
        try:
            return list(self.score(self._info.name, items))
        except OwnError:
            raise
        except Exception as error:  # the user's code; whatever it raises is said with its line
            raise raised(self._own, error, f"on {len(items)} probes") from error
