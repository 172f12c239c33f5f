"""ImageReward as a scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from PIL import Image
from pydantic import JsonValue

from services.imagereward.samples import samples
from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.models.sources import Source, SourceError
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    import torch

    from services.imagereward.model import ImageRewardModel

# Preprocessing, tokens and units as they are here; a change of any of them changes this, and every cached score's key.
SCORING_REVISION = "1"
CONTEXT = 35  # tokens of the prompt, with the first and the last, as in training


class ImageRewardScorer(NetworkScorer):
    """Serves `imagereward`: the head's output in standard deviations from its mean over the published training set,
    mostly -2.3 to 2. A `Scorer`.

    The model reads 33 tokens of a prompt; the component `truncated_tokens` says how many more it has. Several images of
    one item are scored each for itself and the item gets their mean.

    weights: ImageReward.pt as published or converted. tokenizer: a folder of bert-base-uncased's vocabulary.
    network: device, dtype, max_batch and threads, as `NetworkScorer` takes them.
    """

    off_scale = ("truncated_tokens", "raw")

    def __init__(
        self,
        weights: Source,
        tokenizer: Path,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(**network)
        self._weights, self._tokenizer_path = weights, tokenizer
        self._model: ImageRewardModel | None = None
        self._tokenizer: Any = None
        revision = f"{SCORING_REVISION} {weights.name} {self._dtype}"
        self._rewards = {"imagereward": ScorerInfo(name="imagereward", revision=revision, range=(None, None))}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    def load(self) -> None:
        """Raises SourceError."""
        from services.imagereward.model import load_model

        self._take_threads()
        self._tokenizer = _read_tokenizer(self._tokenizer_path)
        self._model = load_model(self._weights.path, self._device, self._dtype)
        if len(self._tokenizer) > self._model.vocabulary:
            raise SourceError(
                f"--tokenizer {self._tokenizer_path}: has {len(self._tokenizer)} words, the model "
                f"{self._model.vocabulary}: give the vocabulary of bert-base-uncased"
            )

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Components: `truncated_tokens`, `raw` (the head's own number). Details: `images`, where there are several."""
        from services.imagereward.model import MEAN, STD

        if self._model is None:
            raise RuntimeError("call load() before score()")
        pictured = [item for item in items if item.images]
        pairs = [(item.prompt, image) for item in pictured for image in item.images]
        raw = iter(self._raw(self._model, pairs))
        results: list[Result] = []
        for item in items:
            if not item.images:
                results.append(Failure(ErrorCode.BAD_INPUT, "ImageReward needs an image: `images` is empty"))
                continue
            values = [next(raw) for _ in item.images]
            results.append(_to_score(values, [(value - MEAN) / STD for value in values], self._truncated(item.prompt)))
        return results

    def warmup(self) -> Sequence[tuple[str, Item]]:
        return [("imagereward", Item("warmup", "a photo", (Image.new("RGB", (64, 48)),)))]

    def close(self) -> None:
        self._model = self._tokenizer = None

    def _raw(self, model: ImageRewardModel, pairs: Sequence[tuple[str, Image.Image]]) -> list[float]:
        import torch

        from services.imagereward.preprocess import preprocess

        found: list[float] = []
        for start in range(0, len(pairs), self._max_batch):
            some = pairs[start : start + self._max_batch]
            ids, mask = self._tokens([prompt for prompt, _ in some])
            pixels = torch.stack([preprocess(image, model.image_size) for _, image in some])
            found += model.raw(pixels, ids, mask)
        return found

    def _tokens(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        given = self._tokenizer(prompts, **options)
        return given["input_ids"], given["attention_mask"]

    def _truncated(self, prompt: str) -> int:
        return max(len(self._tokenizer(prompt, verbose=False)["input_ids"]) - CONTEXT, 0)


def _read_tokenizer(path: Path) -> Any:
    from transformers import BertTokenizer

    remedy = "give a folder with vocab.txt of huggingface.co/google-bert/bert-base-uncased"
    if not (path / "vocab.txt").is_file():
        raise SourceError(f"--tokenizer {path}: there is no vocab.txt; {remedy}")
    try:
        return BertTokenizer.from_pretrained(path, local_files_only=True, do_lower_case=True)
    except (OSError, ValueError, LookupError) as error:
        raise SourceError(f"--tokenizer {path}: cannot be read ({error}); {remedy}") from error


def _to_score(raw: Sequence[float], values: Sequence[float], truncated: int) -> Result:
    if not all(math.isfinite(value) for value in values):
        return Failure(
            ErrorCode.NON_FINITE, f"the scores are {list(values)}: the weights are damaged, or try --dtype fp32"
        )
    components = {"truncated_tokens": float(truncated), "raw": sum(raw) / len(raw)}
    images: list[JsonValue] = list(values)
    return Score(sum(values) / len(values), components, {"images": images} if len(values) > 1 else {})
