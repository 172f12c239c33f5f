"""The base that the quickstart starts from: the tiny policy, trained from random weights on rendered words.

It imitates its captions, mistakes included: that is what web-scale pre-training does, and what RL then removes. Beside the
transformer, which RL trains, its text encoder is trained here; the codec is fitted once, before the first step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from machine.transfers import sent
from trainer.checkpoint.saver import Kept, Stateful
from trainer.config import Config, ConfigError, QuickstartBaseConfig, TinyConfig
from trainer.data.overlap import Settled
from trainer.evaluation.sets import load_sets
from trainer.losses import Stats
from trainer.objectives import Term
from trainer.policies.base import Policy, SamplingPlan
from trainer.policies.flow.policy import Conditioning, FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import LATENT_SHAPE, PAD, TinyModel, token_tensor
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.given import GivenProgram
from trainer.programs.session import Row, Session
from trainer.quickstart.words import Word, corrupt, draw_word, render
from trainer.types import Prompt, Rollout

PCA_PICTURES = 6000
PROMPT_DROPOUT = 0.1  # for classifier-free guidance
TIME_MEAN, TIME_STD = 0.2, 1.0  # t = sigmoid(N(mean, std)): arXiv 2403.03206, section 3.1


@dataclass(frozen=True)
class WordBatch:
    """Rendered words with careless captions, as one rank has them, and what is random about their noise.

    Attributes:
        images: (B, 3, 24, 48) float32 in [-1, 1].
        captions: B texts.
        time_B: noise levels in (0, 1).
        noise: (B, 48, 3, 6), of the latents.
        dropped_B: where the caption is left empty.
        weight: of every image.
    """

    images: Tensor
    captions: Sequence[str]
    time_B: Tensor
    noise: Tensor
    dropped_B: Tensor
    weight: float = 1.0
    kind: ClassVar[str] = "images"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        return replace(
            self,
            images=sent(self.images, device),
            time_B=sent(self.time_B, device),
            noise=sent(self.noise, device),
            dropped_B=sent(self.dropped_B, device),
        )

    def weightless(self) -> Self:
        return replace(self, weight=0.0)


class Words:
    """Draws words without end from two generators, whose states a checkpoint keeps. Held-out words are never drawn.

    All ranks draw the whole batch, so that the words do not depend on their number, and each keeps its share.
    """

    def __init__(self, config: QuickstartBaseConfig, seed: int, latent_shape: Sequence[int], world: World) -> None:
        size = config.batch_size // world.size
        self.config, self.latent_shape = config, tuple(latent_shape)
        self.rows = slice(world.rank * size, (world.rank + 1) * size)
        # Both draw on the CPU, so that the numbers are the same on every device.
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def for_codec(self) -> Tensor:
        """The images that the codec is fitted to: (6000, 3, 24, 48). To be called once, before the first `draw`."""
        return _images([draw_word(self.rng, heldout=False) for _ in range(PCA_PICTURES)], self.rng)

    def draw(self) -> WordBatch:
        """The next batch, this rank's share."""
        config, count = self.config, self.config.batch_size
        words = [draw_word(self.rng, heldout=False) for _ in range(count)]
        captions = [corrupt(word, self.rng, config.char_noise, config.color_noise).prompt for word in words]
        images = _images(words, self.rng)
        time_B = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(count, generator=self.generator))
        noise = torch.randn((count, *self.latent_shape), generator=self.generator)
        dropped_B = torch.rand(count, generator=self.generator) < PROMPT_DROPOUT
        rows = self.rows
        return WordBatch(images[rows], captions[rows], time_B[rows], noise[rows], dropped_B[rows])

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self.rng.getstate()
        noise = self.generator.get_state().numpy().tobytes().hex()
        return {"words": [version, list(numbers), gauss], "noise": noise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, numbers, gauss = state["words"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.generator.set_state(torch.frombuffer(bytearray.fromhex(state["noise"]), dtype=torch.uint8))


def _images(words: Sequence[Word], rng: random.Random) -> Tensor:
    """(B, 3, 24, 48) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(render(word, rng)) for word in words])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class FlowMatching:
    """The mean squared error of the rectified-flow velocity (noise - data), arXiv 2209.03003, equation 1."""

    requires: ClassVar[type] = Policy
    leads: ClassVar[Sequence[str]] = ("images",)

    def __init__(self, model: TinyModel, words: Words) -> None:
        self.model, self.words = model, words

    def batches(self, fed: Any, step: int) -> list[WordBatch]:
        return [self.words.draw()]

    def counts(self, batch: WordBatch) -> dict[str, float]:
        return {"images": batch.weight * len(batch.captions)}

    def num_parts(self, batch: WordBatch) -> int:
        return 1

    def terms(self, batch: WordBatch, part: int) -> tuple[list[Term], Stats]:
        with torch.no_grad():
            latents = self.model.codec.encode(batch.images)
        tokens = token_tensor(batch.captions, latents.device).masked_fill(batch.dropped_B[:, None], PAD)
        time = batch.time_B[:, None, None, None]
        states, pooled = self.model.text(tokens)
        predicted = self.model.velocity((1 - time) * latents + time * batch.noise, batch.time_B, states, pooled)
        # One mean over all numbers, times the images: the sum that the update divides by the images of all ranks.
        loss = torch.mean((predicted - (batch.noise - latents)) ** 2) * len(latents) * batch.weight
        return [Term("loss/flow", loss, "images")], Stats(torch.zeros_like(loss.detach()))


class _TrainedText(TinyFlow):
    """The tiny policy while its text encoder is trained: what a text is encoded to is never kept."""

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        self._encoded.clear()
        return super().encode(prompts_B)


class BasePolicy(FlowPolicy):
    """The tiny policy with its text encoder trained, too.

    Its groups of parameters: `blocks` are the matrices of the transformer's blocks.
    """

    def __init__(self, flow: TinyFlow) -> None:
        super().__init__(flow, keep_reference=False)
        self.tiny = flow.model
        self.tiny.text.requires_grad_(True)

    @property
    def trainable(self) -> nn.Module:
        return self.tiny

    @property
    def group_of(self) -> Mapping[str, str]:
        named = self.tiny.named_parameters()
        return {name: "blocks" for name, p in named if "transformer_blocks" in name and p.dim() == 2}

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: SamplingPlan
    ) -> Iterator[Rollout]:
        self._encoded = ((), ())  # of other weights
        return super().sample(prompts_P, group_size, seeds_B, plan)


class QuickstartBase(GivenProgram):
    """A supervised run on words; it ends by writing the file that `policy.checkpoint` takes."""

    def __init__(self, session: Session, model: TinyModel, words: Words, config: QuickstartBaseConfig) -> None:
        super().__init__(session, FlowMatching(model, words), config.batch_size)
        self.model, self.words, self.config = model, words, config
        self.drawn = words.state_dict()  # after the last finished step

    def states(self) -> Mapping[str, Stateful]:
        return {**super().states(), "words": Kept(lambda: self.drawn, self._load_drawn)}

    def step(self) -> Row | None:
        row = super().step()
        self.drawn = self.words.state_dict()
        return row

    def decay(self) -> float:
        """A short memory while the run is young, so that random weights leave the average soon."""
        step = self.session.step
        return min(self.session.ema.decay, (1 + step) / (10 + step))

    def end(self) -> None:
        """Write the averaged weights, with a paragraph on how they were made."""
        if not self.session.world.is_main:
            return
        output = Path(self.config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(f".{output.name}.writing")  # renamed when whole: a kill leaves no half of a file
        with self.session.ema.applied():
            self.model.save(unfinished, self._about())
        unfinished.replace(output)
        self.session.recorder.note(f"Wrote {output}, to start from as policy.checkpoint")

    def _load_drawn(self, state: Mapping[str, Any]) -> None:
        self.drawn = dict(state)
        self.words.load_state_dict(state)

    def _about(self) -> str:
        config, seconds = self.session.config, self.session.totals.train_s
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return (
            f"A text-to-image model of {millions:.1f} million parameters (an SD3 transformer, 24x48 pixels), trained "
            f"from random weights for {config.max_steps} steps ({seconds / 60:.0f} minutes on {torch.get_num_threads()} CPU "
            "threads) on rendered words whose captions are often wrong, "
            f"as captions from the web are: {self.config.char_noise:.0%} of the characters and "
            f"{self.config.color_noise:.0%} of the colours. It imitates that noise; reinforcement learning removes it. "
            "Words kept for evaluation were never drawn in its training, by a rule on the word itself."
        )


def _read(config: Config) -> Material:
    return Material((), load_sets(config, ()), Settled(), 0)


def _deal(config: Config, material: Material, world: World) -> Words:
    given = _given(config)
    if given.batch_size % world.size:
        raise ConfigError(
            f"quickstart.batch_size = {given.batch_size} images cannot be shared by {world.size} ranks; make it a multiple of "
            f"{world.size}"
        )
    return Words(given, config.seed, LATENT_SHAPE, world)


def _policy(config: Config, device: torch.device) -> BasePolicy:
    assert isinstance(config.policy, TinyConfig), "the configuration has checked it"
    return BasePolicy(_TrainedText.build(config.policy, device))


def _build(session: Session, material: Material, words: Words) -> QuickstartBase:
    assert isinstance(session.policy, BasePolicy)
    model = session.policy.tiny
    model.codec.fit(words.for_codec())  # on the CPU, so that it is the same on every device
    return QuickstartBase(session, model, words, _given(session.config))


def _given(config: Config) -> QuickstartBaseConfig:
    assert config.quickstart is not None, "the configuration has checked it"
    return config.quickstart


KIND = Kind(_read, _deal, _policy, _build)
