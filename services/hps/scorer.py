"""The HPS scorer: the cosine between a prompt's and an image's embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

from PIL import Image
from pydantic import JsonValue

from services.hps.checkpoint import REWARDS, Checkpoint
from services.hps.samples import samples
from services.hps.tokenizer import Tokenizer, Tokens
from services.hps.vocabulary import read_merges
from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    from services.hps.model import HpsModel

# Preprocessing, tokenizer and score as they are here; a change of any of them changes this, and every cached score's key.
SCORING_REVISION = "2"


class _Loaded(NamedTuple):
    model: HpsModel
    tokenizer: Tokenizer


class HpsScorer(NetworkScorer):
    """Serves `hpsv2` or `hpsv2.1`, the one whose weights it was given. A `Scorer`.

    The score is the cosine of image and text embedding, without the logit scale and not in percent, as
    HPSv2's `img_score.py` returns it: in (-1, 1), for v2.1 mostly 0.1 to 0.4. Scores of the two versions are not
    comparable, nor those of different prompts. The model reads 75 tokens; the component `truncated_tokens` says how
    many more the prompt has. Several images of one item are scored each for itself and the item gets their mean.

    max_batch: items per `score` call and images per forward pass; None takes 64 on a GPU and 8 on the CPU.
    threads: torch's threads on the CPU, for the whole process; None leaves torch's own choice.
    Raises ValueError when the device is not there.
    """

    off_scale = ("truncated_tokens",)

    def __init__(
        self,
        checkpoint: Checkpoint,
        vocabulary: Path | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(**network)
        from services.hps.preprocess import RESIZE

        self._checkpoint = checkpoint
        self._vocabulary = vocabulary or checkpoint.vocabulary
        self._loaded: _Loaded | None = None
        name = REWARDS[checkpoint.version]
        weights = f"{checkpoint.version} sha256:{checkpoint.sha256[:16]}"
        revision = f"{SCORING_REVISION} {weights} resize={RESIZE} {self._dtype}"
        self._rewards = {name: ScorerInfo(name=name, revision=revision, range=(-1.0, 1.0))}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    def load(self) -> None:
        """Raises VocabularyError or CheckpointError."""
        from services.hps.model import load_model

        self._take_threads()
        tokenizer = Tokenizer(read_merges(self._vocabulary))
        model = load_model(self._checkpoint, tokenizer.vocab_size, self._device, self._dtype)
        self._loaded = _Loaded(model, tokenizer)

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Components: `truncated_tokens`. Details: `images`, the score of each image."""
        if self._loaded is None:
            raise RuntimeError("call load() before score()")
        model, tokenizer = self._loaded
        pictured = [item for item in items if item.images]
        tokens = {prompt: tokenizer.encode(prompt) for prompt in dict.fromkeys(item.prompt for item in pictured)}
        rows = {prompt: row for row, prompt in enumerate(tokens)}
        pairs = [(rows[item.prompt], image) for item in pictured for image in item.images]
        cosines = iter(model.cosines([each.ids for each in tokens.values()], pairs, self._max_batch))
        return [
            _to_score([next(cosines) for _ in item.images], tokens[item.prompt])
            if item.images
            else Failure(ErrorCode.BAD_INPUT, "HPS needs an image: `images` is empty")
            for item in items
        ]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        return [
            (name, Item(id="warmup", prompt="a photo", images=(Image.new("RGB", (64, 48)),))) for name in self._rewards
        ]

    def close(self) -> None:
        self._loaded = None


def _to_score(cosines: Sequence[float], tokens: Tokens) -> Result:
    if not all(math.isfinite(cosine) for cosine in cosines):
        return Failure(ErrorCode.NON_FINITE, f"the cosines are {cosines}: the weights are damaged, or try --dtype fp32")
    images: list[JsonValue] = list(cosines)
    return Score(sum(cosines) / len(cosines), {"truncated_tokens": float(tokens.truncated)}, {"images": images})
