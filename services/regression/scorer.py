"""A recipe's reward as a scorer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from PIL import Image
from pydantic import JsonValue

from services.kit.models.network_scorer import NetworkOptions, NetworkScorer
from services.kit.models.sources import Source, SourceError
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from services.regression.recipe import Recipe
from services.regression.samples import sample_of
from wire.schema import ErrorCode, ScorerInfo

if TYPE_CHECKING:
    from services.regression.inputs import Inputs
    from services.regression.model import RegressionModel

# Inputs, resize and combination as they are here; a change of any of them changes this, and every cached score's key.
SCORING_REVISION = "1"
PLACEHOLDER = "{prompt}"
_PUBLISHED_PLACEHOLDER = "{text_prompt}"


class RegressionScorer(NetworkScorer):
    """Serves the recipe's reward, unbounded. A `Scorer`.

    templates: files with the text of each pass, `{prompt}` where the item's prompt goes.
    network: device, dtype, max_batch and threads, as `NetworkScorer` takes them.
    Raises SourceError when a template cannot be used.
    """

    gpu_batch, cpu_batch = 16, 2

    def __init__(
        self,
        recipe: Recipe,
        backbone: Path,
        weights: Source,
        templates: Sequence[Path],
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(**network)
        self._recipe, self._backbone, self._weights = recipe, backbone, weights
        self._templates = read_templates(recipe, templates)
        self._model: RegressionModel | None = None
        digest = hashlib.sha256("\0".join(self._templates).encode()).hexdigest()
        fields = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
        revision = f"{SCORING_REVISION} {backbone.name} {weights.name} recipe {fields} {self._dtype}"
        info = ScorerInfo(name=recipe.name, revision=revision, template_sha256=digest, range=(None, None))
        self._rewards = {recipe.name: info}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return {self._recipe.name: sample_of(self._recipe)}

    def load(self) -> None:
        """Raises SourceError."""
        from services.regression.model import RegressionModel

        self._take_threads()
        self._model = RegressionModel(self._backbone, self._weights.path, self._recipe, self._device, self._dtype)

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Components: `pass_0`, `pass_1`, ... where there are several. Details: `images`, where an item has several."""
        if self._model is None:
            raise RuntimeError("call load() before score()")
        results: list[Result] = []
        for item in items:
            problem = self._problem(item)
            results.append(problem if problem is not None else self._score_one(self._model, item))
        return results

    def warmup(self) -> Sequence[tuple[str, Item]]:
        image = Image.new("RGB", (64, 48))
        item = Item("warmup", "a photo", (image,), source_images=(image,))
        return [(self._recipe.name, item)]

    def close(self) -> None:
        self._model = None

    def _problem(self, item: Item) -> Failure | None:
        if not item.images:
            return Failure(ErrorCode.BAD_INPUT, f"{self._recipe.name} needs an image: `images` is empty")
        if self._recipe.images == "source_and_edited" and len(item.source_images) != 1:
            message = f"{self._recipe.name} compares an edit with one source image; source_images has {len(item.source_images)}"
            return Failure(ErrorCode.NOT_APPLICABLE, message)
        return None

    def _score_one(self, model: RegressionModel, item: Item) -> Result:
        """Of each image and pass a row; the rows of one item go through the model together."""
        seen = [
            (item.source_images[0], image) if self._recipe.images == "source_and_edited" else (image,)
            for image in item.images
        ]
        numbers = []
        for head, template in enumerate(self._templates):
            text = template.replace(PLACEHOLDER, item.prompt)
            try:
                rows = [model.inputs.make(images, text, self._recipe.pixels) for images in seen]
                numbers.append(self._through(model, rows, head))
            except ValueError as error:
                return Failure(ErrorCode.BAD_INPUT, str(error))
        if not all(math.isfinite(number) for passed in numbers for number in passed):
            return Failure(
                ErrorCode.NON_FINITE, f"the scores are {numbers}: the weights are damaged, or try --dtype fp32"
            )
        combine = min if self._recipe.combine == "min" else _mean
        values = [combine(passed) for passed in zip(*numbers, strict=True)]
        parts = {f"pass_{n}": _mean(passed) for n, passed in enumerate(numbers)} if len(numbers) > 1 else {}
        images: list[JsonValue] = list(values)
        return Score(_mean(values), parts, {"images": images} if len(values) > 1 else {})

    def _through(self, model: RegressionModel, rows: Sequence[Inputs], head: int) -> list[float]:
        found: list[float] = []
        for start in range(0, len(rows), self._max_batch):
            found += model.numbers(rows[start : start + self._max_batch], head)
        return found


def read_templates(recipe: Recipe, paths: Sequence[Path]) -> list[str]:
    """The text of each pass. Raises SourceError for a wrong number of files, or one without its placeholders."""
    if len(paths) != len(recipe.heads):
        raise SourceError(f"recipe {recipe.name} has {len(recipe.heads)} passes and {len(paths)} --templates are given")
    texts = []
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"--templates {path}: cannot be read ({error})") from error
        text = text.replace(_PUBLISHED_PLACEHOLDER, PLACEHOLDER)
        if text.count(PLACEHOLDER) != 1:
            raise SourceError(f"--templates {path}: {PLACEHOLDER} is {text.count(PLACEHOLDER)} times in it, not once")
        if recipe.reward_token is not None and text.count(recipe.reward_token) != 1:
            count = text.count(recipe.reward_token)
            raise SourceError(f"--templates {path}: {recipe.reward_token} is {count} times in it, not once")
        texts.append(text)
    return texts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
