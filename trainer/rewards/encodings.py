"""In which encoding images travel to a service: as the configuration says or, for `auto`, the cheapest that is exact."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trainer.rewards.answers import OnEvent, RewardEvent
from trainer.rewards.payload import MEDIA_TYPES, encode_samples, make_call
from trainer.rewards.transport import AttemptError, ServiceCaller
from trainer.types import Prompt, Sample
from wire.images import decode

# None of them changes a pixel, so whichever is taken gives the same scores. JPEG does, and is only taken where it is named.
EXACT = ("rgb8", "png", "webp")
_IMAGES, _ROUNDS = 4, 3
_TIMEOUT_S = 30.0
# A service reads a request to its end and says that it has no such reward: nothing is decoded or scored for a measurement.
_NO_REWARD = "what-an-encoding-costs"
_NOT_FOUND = 404

Choice = dict[str, Any]  # `encoding`; and what was measured: `images`, `size` and the `ms` of an image


class Encodings:
    """What was chosen for each service. The first images that travel to it are measured, so that their size and kind count."""

    def __init__(
        self, kept: Mapping[str, Choice] | None = None, keep: Callable[[Mapping[str, Choice]], None] | None = None
    ) -> None:
        """`kept`: the choices of the run that goes on, by service; `keep` is called with all of them at each new one."""
        self._chosen: dict[str, Choice] = {name: dict(choice) for name, choice in (kept or {}).items()}
        self._keep = keep
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, caller: ServiceCaller, samples: Sequence[Sample], on_event: OnEvent) -> str:
        """The encoding for these samples; measures it where that is still to be done."""
        if caller.config.image_encoding != "auto" or not any(sample.images for sample in samples):
            return caller.config.probe_encoding
        async with self._locks[caller.name]:
            if caller.name not in self._chosen:
                self._chosen[caller.name] = await self._choose(caller, samples, on_event)
        return str(self._chosen[caller.name]["encoding"])

    async def _choose(self, caller: ServiceCaller, samples: Sequence[Sample], on_event: OnEvent) -> Choice:
        few = [image_HWC for sample in samples for image_HWC in sample.images][:_IMAGES]
        try:
            costs = await measure(caller, [Sample(str(n), "g", _PROMPT, (image,)) for n, image in enumerate(few)])
        except AttemptError as error:
            text = f"image_encoding auto could not be measured, images travel as they are: {error.message}"
            on_event(RewardEvent("hint", caller.name, text))
            return {"encoding": caller.config.probe_encoding}
        best = min(costs, key=lambda name: sum(costs[name].values()))
        height, width = few[0].shape[:2]
        choice = {"encoding": best, "images": len(few), "size": [width, height], "ms": costs}
        if self._keep is not None:
            measured = {name: each for name, each in self._chosen.items() if "ms" in each}
            self._keep({**measured, caller.name: choice})
        said = "; ".join(
            f"{name} {sum(ms.values()):.2f} ({' + '.join(f'{each:.2f}' for each in ms.values())})"
            for name, ms in costs.items()
        )
        text = f"images travel as {best}. Ms to encode + send + decode one of {width}x{height}: {said}"
        on_event(RewardEvent("encoding", caller.name, text))
        return choice


_PROMPT = Prompt(id="encoding", text="encoding")


async def measure(caller: ServiceCaller, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Milliseconds an image to `encode`, `send` (until the service has read it) and `decode` (here), by encoding: the least of
    some rounds in turn. An encoding that the service refuses, being too large, is left out.

    Raises:
        AttemptError: the service does not answer, or takes none of them.
    """
    endpoint = caller.pool.pick() or caller.pool.endpoints[0]
    limit_s = min(_TIMEOUT_S, caller.config.timeout_s)
    best: dict[str, dict[str, float]] = {}
    refused: dict[str, AttemptError] = {}
    for _ in range(_ROUNDS):
        for encoding in (each for each in EXACT if each not in refused):
            moments = [time.monotonic()]
            encoded = await asyncio.to_thread(encode_samples, samples, encoding)
            moments.append(time.monotonic())
            call, _left = make_call(samples, encoded, encoding, _NO_REWARD)
            assert call is not None
            try:
                await caller.score_at(endpoint, call, limit_s)
            except AttemptError as error:
                if error.status is None:
                    raise
                if error.status != _NOT_FOUND:
                    refused[encoding] = error
                    continue
            moments.append(time.monotonic())
            await asyncio.to_thread(_decode, samples, encoded, encoding)
            moments.append(time.monotonic())
            taken = [1000 * (end - begin) / len(samples) for begin, end in pairwise(moments)]
            before = best.get(encoding, {})
            best[encoding] = {
                name: round(min(ms, before.get(name, ms)), 3)
                for name, ms in zip(("encode", "send", "decode"), taken, strict=True)
            }
    usable = {encoding: ms for encoding, ms in best.items() if encoding not in refused}
    if not usable:
        raise next(iter(refused.values()))
    return usable


def _decode(samples: Sequence[Sample], encoded: Sequence[Sequence[bytes]], encoding: str) -> None:
    for sample, images in zip(samples, encoded, strict=True):
        for pixels_HWC, data in zip(sample.images, images, strict=True):
            height, width = pixels_HWC.shape[:2]
            decode(data, MEDIA_TYPES[encoding], width=width, height=height)
