"""The base that the small VLM's quickstart starts from: trained from random weights on cards, by imitation alone.

It learns in three stages: to say all that is on a card, to point before it answers, and at last to answer as careless
people do. What RL finds is then there, but rarely shown.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import sent
from trainer.checkpoint.saver import Kept, Stateful
from trainer.config import CardsConfig, Config, ConfigError, VlmConfig
from trainer.data.overlap import Settled
from trainer.evaluation.sets import load_sets
from trainer.losses import Stats
from trainer.objectives import Term
from trainer.policies.base import Policy
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.preparing import prepare
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.given import GivenProgram
from trainer.programs.session import Row, Session
from trainer.quickstart.cards import Card, caption, draw_card, render
from trainer.quickstart.small_vlm import PIXEL_MEAN, PIXEL_STD, new_network, processor, prompt_text

SAY = "say"  # what asks for a caption
RIGHT_THOUGHTS = 0.95  # share of right answers among careless ones that a thought comes before
_IGNORED = -100  # what cross entropy leaves out

Stage = Literal["captions", "thoughts", "careless"]


def stage_of(step: int, config: CardsConfig, max_steps: int) -> Stage:
    """What is learnt in a step, counted from 0."""
    if step < config.captions:
        return "captions"
    return "thoughts" if step < max_steps - config.careless else "careless"


def lesson(card: Card, stage: Stage, config: CardsConfig, rng: random.Random) -> tuple[str, str]:
    """What is asked about a card, and the answer that is imitated."""
    if stage == "captions" or (stage == "thoughts" and rng.random() < config.recalled):
        return SAY, caption(card.scene)
    if stage == "thoughts" and rng.random() >= config.mixed:
        return card.question, f"<think> {card.thought} </think> <answer> {card.answer} </answer>"
    return card.question, careless_answer(card, config, rng)


def careless_answer(card: Card, config: CardsConfig, rng: random.Random) -> str:
    """What a careless person writes: mostly no thought, often wrong, often with broken tags."""
    thinks = rng.random() < config.thinking
    wrong = rng.random() < (1 - RIGHT_THOUGHTS if thinks else config.wrong)
    words = card.careless if wrong else card.answer
    answer = f"<answer> {words} </answer>"
    if rng.random() < config.untidy:
        answer = words if rng.random() < 0.5 else f"<answer> {words}"
    return f"<think> {card.thought} </think> {answer}" if thinks else answer


@dataclass(frozen=True)
class CardBatch:
    """Cards with what is asked and answered, as one rank has them.

    Attributes:
        pixels: (B, 1, 3, 48, 48) float32, as the processor makes them.
        ids_BW: int64, prompts with their answers, padded on the right.
        labels_BW: the same, with all but the answers ignored.
        weight: of every answer.
    """

    pixels: Tensor
    ids_BW: Tensor
    labels_BW: Tensor
    weight: float = 1.0
    kind: ClassVar[str] = "answers"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        return replace(
            self,
            pixels=sent(self.pixels, device),
            ids_BW=sent(self.ids_BW, device),
            labels_BW=sent(self.labels_BW, device),
        )

    def weightless(self) -> Self:
        return replace(self, weight=0.0)


class Cards:
    """Draws cards without end from a generator, whose state a checkpoint keeps. Held-out scenes are never drawn.

    All ranks draw the whole batch, so that the cards do not depend on their number, and each keeps its share.
    """

    def __init__(self, config: CardsConfig, seed: int, max_steps: int, world: World) -> None:
        size = config.batch_size // world.size
        self.config, self.max_steps = config, max_steps
        self.rows = slice(world.rank * size, (world.rank + 1) * size)
        self.rng = random.Random(seed)

    def draw(self, step: int, model: TokenModel) -> CardBatch:
        """The batch of a step, this rank's share."""
        stage = stage_of(step, self.config, self.max_steps)
        pictures, prompts, answers = [], [], []
        for _ in range(self.config.batch_size):
            card = draw_card(self.rng, heldout=False)
            question, answer = lesson(card, stage, self.config, self.rng)
            pictures.append(np.asarray(render(card.scene, self.rng)))
            prompts.append(torch.tensor(model.tokenizer(prompt_text(question))["input_ids"]))
            answers.append(torch.tensor([*model.encode(answer), model.ends[0]]))
        prompts, answers = prompts[self.rows], answers[self.rows]
        ids = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        labels = [torch.cat([torch.full_like(p, _IGNORED), a]) for p, a in zip(prompts, answers, strict=True)]
        return CardBatch(
            _pixels(pictures[self.rows]),
            pad_sequence(ids, batch_first=True, padding_value=model.pad_id),
            pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
        )

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self.rng.getstate()
        return {"cards": [version, list(numbers), gauss]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, numbers, gauss = state["cards"]
        self.rng.setstate((version, tuple(numbers), gauss))


def _pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """(B, 1, 3, 48, 48) float32: what the processor makes of images of this size, without its detours."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[:, None].float()
    return (pixels / 255 - PIXEL_MEAN) / PIXEL_STD


class Imitation:
    """The cross entropy of the answers' tokens, the mean over all of them."""

    requires: ClassVar[type] = Policy
    leads: ClassVar[Sequence[str]] = ("answers",)

    def __init__(self, model: TokenModel, cards: Cards) -> None:
        self.model, self.cards = model, cards

    def batches(self, fed: Any, step: int) -> list[CardBatch]:
        return [self.cards.draw(step, self.model)]

    def counts(self, batch: CardBatch) -> dict[str, float]:
        return {"answers": batch.weight * int((batch.labels_BW != _IGNORED).sum())}

    def num_parts(self, batch: CardBatch) -> int:
        return 1

    def terms(self, batch: CardBatch, part: int) -> tuple[list[Term], Stats]:
        network = cast(Any, self.model.network)
        # No mask: what pads stands behind all that counts, and no token looks ahead.
        logits_BWV = network(input_ids=batch.ids_BW, pixel_values=batch.pixels, use_cache=False).logits
        loss = functional.cross_entropy(
            logits_BWV[:, :-1].flatten(0, 1), batch.labels_BW[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"
        )
        return [Term("loss/imitation", loss * batch.weight, "answers")], Stats(torch.zeros_like(loss.detach()))


class BasePolicy(TokenPolicy):
    """The small VLM from random weights. Its groups of parameters: `matrices` are those inside its blocks."""

    @property
    def group_of(self) -> Mapping[str, str]:
        named = self.trainable.named_parameters()
        return {n: "matrices" for n, p in named if p.dim() == 2 and "embed" not in n and "lm_head" not in n}


class VlmBase(GivenProgram):
    """A supervised run on cards; it ends by writing the folder that `policy.pretrained` names."""

    def __init__(self, session: Session, model: TokenModel, cards: Cards, config: CardsConfig) -> None:
        super().__init__(session, Imitation(model, cards), config.batch_size)
        self.model, self.cards, self.config = model, cards, config
        self.drawn = cards.state_dict()  # after the last finished step

    def states(self) -> Mapping[str, Stateful]:
        return {**super().states(), "cards": Kept(lambda: self.drawn, self._load_drawn)}

    def step(self) -> Row | None:
        row = super().step()
        self.drawn = self.cards.state_dict()
        return row

    def end(self) -> None:
        """Write the model folder, with a page on how it was made."""
        if not self.session.world.is_main:
            return
        folder = Path(str(self.model.config.pretrained))  # the configuration has checked that it is given
        folder.mkdir(parents=True, exist_ok=True)
        with self.session.ema.applied():
            cast(Any, self.model.network).save_pretrained(folder)
            self.model.processor.save_pretrained(folder)
        (folder / "README.md").write_text(f"# The small VLM's base\n\n{self._about()}\n", encoding="utf-8")
        self.session.recorder.note(f"Wrote {folder}, to start from as policy.pretrained")

    def _load_drawn(self, state: Mapping[str, Any]) -> None:
        self.drawn = dict(state)
        self.cards.load_state_dict(state)

    def _about(self) -> str:
        config, cards, seconds = self.session.config, self.config, self.session.totals.train_s
        millions = sum(parameter.numel() for parameter in self.model.network.parameters()) / 1e6
        thoughts = config.max_steps - cards.captions - cards.careless
        return (
            f"A vision-language model of {millions:.2f} million parameters (an Idefics3, pictures of 48x48 pixels, a vocabulary "
            f"of words), trained from random weights for {config.max_steps} steps of {cards.batch_size} cards "
            f"({seconds / 60:.0f} minutes): {cards.captions} on captions, {thoughts} on thoughts that find a thing and then say "
            f"what is there, and at last {cards.careless} on careless answers: {cards.wrong:.0%} of them wrong, "
            f"{cards.untidy:.0%} with broken tags, {cards.thinking:.0%} after a thought. It imitates that; reinforcement "
            "learning finds out that looking pays. Scenes kept for evaluation were never drawn in its training, by a rule on "
            "the scene itself."
        )


def _read(config: Config) -> Material:
    return Material((), load_sets(config, ()), Settled(), 0)


def _deal(config: Config, material: Material, world: World) -> Cards:
    given = _given(config)
    if given.batch_size % world.size:
        raise ConfigError(
            f"cards.batch_size = {given.batch_size} cards cannot be shared by {world.size} ranks; make it a multiple of "
            f"{world.size}"
        )
    return Cards(given, config.seed, config.max_steps, world)


def _policy(config: Config, device: torch.device) -> BasePolicy:
    section = config.policy
    assert isinstance(section, VlmConfig), "the configuration has checked it"
    made = processor()
    network = prepare(new_network(made.tokenizer), made, section, device)
    about = "Started from random weights, to be trained on cards."
    return BasePolicy(TokenModel(network, made, section, device, about=about), keep_reference=False)


def _build(session: Session, material: Material, cards: Cards) -> VlmBase:
    assert isinstance(session.policy, BasePolicy)
    return VlmBase(session, session.policy.model, cards, _given(session.config))


def _given(config: Config) -> CardsConfig:
    assert config.cards is not None, "the configuration has checked it"
    return config.cards


KIND = Kind(_read, _deal, _policy, _build)
