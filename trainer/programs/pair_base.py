"""The base that the quickstart of pairs starts from: a small Janus, trained from random weights on scenes, by imitation alone.

It learns both tasks together: to draw what a caption names, and to answer questions about what it sees. First captions and answers
are right, at last they are those of careless people. What RL finds is then there, but no longer what the model mostly does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import sent
from trainer.checkpoint.saver import Kept, Stateful
from trainer.config import Config, ConfigError, JanusConfig, ScenesConfig
from trainer.data.overlap import Settled
from trainer.evaluation.sets import load_sets
from trainer.losses import Stats
from trainer.objectives import Term
from trainer.policies.base import Policy
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.preparing import prepare
from trainer.policies.unified.images import ImagePolicy, Planner
from trainer.policies.unified.janus.model import JanusModel, part_of
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.given import GivenProgram
from trainer.programs.session import Row, Session
from trainer.quickstart.scenes import (
    Care,
    Pixels,
    careless_answer,
    careless_scene,
    draw_scene,
    questions_of,
    render,
)
from trainer.quickstart.small_janus import PIXEL_MEAN, PIXEL_STD, codebook, new_network, processor, tokens_of
from trainer.types import Prompt

SAY = "say"  # what asks for a description
_IGNORED = -100  # what cross entropy leaves out


@dataclass(frozen=True)
class SceneBatch:
    """Scenes to draw and scenes with what is asked and answered, as one rank has them.

    Attributes:
        prompts_BT: int64, prompts to draw up to and with the tag that begins an image; all are equally long.
        codes_BN: int64, the tokens of their images.
        pixels: (Q, 3, 32, 32) float32, the images that questions are about, as the processor makes them.
        ids_QW: int64, questions with their answers, padded on the right.
        labels_QW: the same, with all but the answers ignored.
        shown: (B, 3, 32, 32) float32 from -1 to 1, the images that `codes_BN` are the tokens of.
        weight: of every scene.
    """

    prompts_BT: Tensor
    codes_BN: Tensor
    pixels: Tensor
    ids_QW: Tensor
    labels_QW: Tensor
    shown: Tensor
    weight: float = 1.0
    kind: ClassVar[str] = "drawn"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        names = ("prompts_BT", "codes_BN", "pixels", "ids_QW", "labels_QW", "shown")
        moved: dict[str, Any] = {name: sent(getattr(self, name), device) for name in names}
        return replace(self, **moved)

    def weightless(self) -> Self:
        return replace(self, weight=0.0)


class Scenes:
    """Draws scenes without end from a generator, whose state a checkpoint keeps. Held-out scenes are never drawn or named.

    All ranks draw the whole batch, so that the scenes do not depend on their number, and each keeps its share.
    """

    def __init__(self, config: ScenesConfig, seed: int, max_steps: int, world: World) -> None:
        self.config, self.max_steps, self.world = config, max_steps, world
        self.rng = random.Random(seed)

    def draw(self, step: int, model: JanusModel) -> SceneBatch:
        """The batch of a step, this rank's share."""
        config = self.config
        care = self._care() if step >= self.max_steps - config.careless else None
        drawings = [self._drawing(model, care) for _ in range(config.drawings)]
        talks = [self._talk(model, care) for _ in range(config.talks)]
        drawings, talks = list(self._share(drawings)), list(self._share(talks))
        images = [image for _, image in drawings]
        return SceneBatch(
            prompts_BT=torch.stack([ids for ids, _ in drawings]),
            codes_BN=torch.stack([tokens_of(image) for image in images]),
            pixels=_pixels([image for image, _, _ in talks]),
            ids_QW=pad_sequence([ids for _, ids, _ in talks], batch_first=True, padding_value=model.pad_id),
            labels_QW=pad_sequence([labels for _, _, labels in talks], batch_first=True, padding_value=_IGNORED),
            shown=_pixels(images),
        )

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self.rng.getstate()
        return {"scenes": [version, list(numbers), gauss]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, numbers, gauss = state["scenes"]
        self.rng.setstate((version, tuple(numbers), gauss))

    def _share(self, drawn: Sequence[Any]) -> Iterator[Any]:
        size = len(drawn) // self.world.size
        yield from drawn[self.world.rank * size : (self.world.rank + 1) * size]

    def _care(self) -> Care:
        config = self.config
        return Care(
            look_alike=config.look_alike,
            color=config.wrong_color,
            shape=config.wrong_shape,
            order=config.wrong_order,
            answer=config.wrong_answer,
        )

    def _drawing(self, model: JanusModel, care: Care | None) -> tuple[Tensor, Pixels]:
        """What asks for a drawing, in some cases with nothing in it, and the image."""
        scene = draw_scene(self.rng, heldout=False)
        said = scene if care is None else careless_scene(scene, care, self.rng)
        drawing = model.read_drawing(Prompt("scene", said.prompt))
        emptied = self.rng.random() < self.config.dropout
        return drawing.uncond_T if emptied else drawing.cond_T, render(scene, self.rng)

    def _talk(self, model: JanusModel, care: Care | None) -> tuple[Pixels, Tensor, Tensor]:
        """An image, and two questions about it with their answers, in some cases also a description: ids and labels."""
        scene = draw_scene(self.rng, heldout=False)
        turns = [
            (each.text, answer_text(each.answer if care is None else careless_answer(each, care, self.rng)))
            for each in self.rng.sample(questions_of(scene), 2)
        ]
        if self.rng.random() < self.config.descriptions:
            said = scene if care is None else careless_scene(scene, care, self.rng)
            turns.append((SAY, said.caption))
        ids, labels = talk_ids(model, turns)
        return render(scene, self.rng), ids, labels


def answer_text(letter: str) -> str:
    """An answer as it is imitated and scored."""
    return f"<answer> {letter} </answer>"


def talk_ids(model: JanusModel, turns: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Ids of questions with their answers, the image before the first, and labels that ignore all but the answers."""
    made = model.processor
    image = f"{made.image_start_token}{made.image_token * made.num_image_tokens}{made.image_end_token}"
    ids: list[int] = model.encode("<begin>")
    labels = [_IGNORED] * len(ids)
    for number, (question, answer) in enumerate(turns):
        asked = model.encode(f"<user>{image if number == 0 else ''}{question}<assistant>")
        said = [*model.encode(answer), model.ends[0]]
        ids += asked + said
        labels += [_IGNORED] * len(asked) + said
    return torch.tensor(ids), torch.tensor(labels)


def _pixels(images: Sequence[Pixels]) -> Tensor:
    """(B, 3, 32, 32) float32: what the processor makes of images of this size, without its detours."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (pixels / 255 - PIXEL_MEAN) / PIXEL_STD


class Imitation:
    """Cross entropies of image tokens and of answers, each the mean over its own tokens, and the decoder's squared error.

    The decoder of image tokens shares no weights with the rest: it learns beside it to make pixels of codes.
    """

    requires: ClassVar[type] = Policy
    leads: ClassVar[Sequence[str]] = ("drawn",)

    def __init__(self, model: JanusModel, scenes: Scenes) -> None:
        self.model, self.scenes = model, scenes

    def batches(self, fed: Any, step: int) -> list[SceneBatch]:
        return [self.scenes.draw(step, self.model)]

    def counts(self, batch: SceneBatch) -> dict[str, float]:
        return {
            "drawn": batch.weight * batch.codes_BN.numel(),
            "answers": batch.weight * int((batch.labels_QW != _IGNORED).sum()),
            "pixels": batch.weight * batch.shown[: self._decoded].numel(),
        }

    @property
    def _decoded(self) -> int:
        return self.scenes.config.decoded

    def num_parts(self, batch: SceneBatch) -> int:
        return 1

    def terms(self, batch: SceneBatch, part: int) -> tuple[list[Term], Stats]:
        model, network = self.model, cast(Any, self.model.network)
        embeds = torch.cat(
            [
                model.embed_text(network, batch.prompts_BT),
                model.embed_image(network, batch.codes_BN[:, :-1]),  # the last token is predicted and never read
            ],
            1,
        )
        hidden = network.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits_BNC = model.image_logits(network, hidden[:, batch.prompts_BT.shape[1] - 1 :])
        drawn = functional.cross_entropy(logits_BNC.flatten(0, 1), batch.codes_BN.flatten(), reduction="sum")
        # No mask: what pads stands behind all that counts, and no token looks ahead.
        logits_QWV = network(input_ids=batch.ids_QW, pixel_values=batch.pixels, use_cache=False).logits
        said = functional.cross_entropy(
            logits_QWV[:, :-1].flatten(0, 1), batch.labels_QW[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"
        )
        codes, shown = batch.codes_BN[: self._decoded], batch.shown[: self._decoded]
        seen = network.decode_image_tokens(codes).permute(0, 3, 1, 2)
        pixels = (seen - shown).square().sum()
        terms = {"drawn": drawn, "answers": said, "pixels": pixels}
        found = [Term(f"loss/{name}", loss * batch.weight, name) for name, loss in terms.items()]
        return found, Stats(torch.zeros_like(drawn.detach()))


def _group_of(name: str) -> str:
    if part_of(name) is None:
        return "decoder"
    layers = name.endswith("weight") and (".layers." in name) and "norm" not in name
    return "matrices" if layers and "aligner" not in name else "rest"


class PairBase(GivenProgram):
    """A supervised run on scenes; it ends by writing the folder that `policy.pretrained` names."""

    def __init__(self, session: Session, model: JanusModel, scenes: Scenes, config: ScenesConfig) -> None:
        super().__init__(session, Imitation(model, scenes), config.drawings)
        self.model, self.scenes, self.config = model, scenes, config
        self.drawn = scenes.state_dict()  # after the last finished step

    def states(self) -> Mapping[str, Stateful]:
        return {**super().states(), "scenes": Kept(lambda: self.drawn, self._load_drawn)}

    def step(self) -> Row | None:
        row = super().step()
        self.drawn = self.scenes.state_dict()
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
        (folder / "README.md").write_text(
            f"# The base of the quickstart of pairs\n\n{self._about()}\n", encoding="utf-8"
        )
        self.session.recorder.note(f"Wrote {folder}, to start from as policy.pretrained")

    def _load_drawn(self, state: Mapping[str, Any]) -> None:
        self.drawn = dict(state)
        self.scenes.load_state_dict(state)

    def _about(self) -> str:
        config, given, seconds = self.session.config, self.config, self.session.totals.train_s
        millions = sum(parameter.numel() for parameter in self.model.network.parameters()) / 1e6
        return (
            f"A model of {millions:.2f} million parameters that reads and draws (a Janus, images of 32x32 pixels in 4x4 tokens, "
            f"{len(codebook())} codes, a vocabulary of words), trained from random weights for {config.max_steps} steps of "
            f"{given.drawings} captions to draw and {given.talks} images with questions ({seconds / 60:.0f} minutes): "
            f"{config.max_steps - given.careless} on right ones, and at last {given.careless} on those of careless people: of their "
            f"captions {given.look_alike:.0%} of the colours are taken for another, {given.wrong_color:.0%} of the colours and "
            f"{given.wrong_shape:.0%} of the shapes are any at all, {given.wrong_order:.0%} have the things in the wrong order; of "
            f"their answers {given.wrong_answer:.0%} are any letter. Scenes kept for evaluation "
            "were never drawn or named in its training, by a rule on the scene itself. The encoder of image tokens is not trained: "
            "nothing here asks for the codes of an image."
        )


def _read(config: Config) -> Material:
    return Material((), load_sets(config, ()), Settled(), 0)


def _deal(config: Config, material: Material, world: World) -> Scenes:
    given = _given(config)
    for name, count in (("drawings", given.drawings), ("talks", given.talks)):
        if count % world.size:
            raise ConfigError(
                f"scenes.{name} = {count} cannot be shared by {world.size} ranks; make it a multiple of {world.size}"
            )
    return Scenes(given, config.seed, config.max_steps, world)


def _policy(config: Config, device: torch.device) -> UnifiedPolicy:
    section = config.policy
    assert isinstance(section, JanusConfig), "the configuration has checked it"
    made = processor()
    network = prepare(new_network(made.tokenizer), made, section, device, part_of)
    vq = cast(Any, network).model.vqmodel
    for part in (vq.decoder, vq.post_quant_conv, vq.quantize):
        part.requires_grad_(True)
    model = JanusModel(network, made, section, device, about="Started from random weights, to be trained on scenes.")
    texts = TokenPolicy(model, keep_reference=False)
    group_of = {name: _group_of(name) for name, each in network.named_parameters() if each.requires_grad}
    return UnifiedPolicy(texts, ImagePolicy(model, Planner(texts, model)), group_of)


def _build(session: Session, material: Material, scenes: Scenes) -> PairBase:
    assert isinstance(session.policy, UnifiedPolicy)
    return PairBase(session, cast(JanusModel, session.policy.texts.model), scenes, _given(session.config))


def _given(config: Config) -> ScenesConfig:
    assert config.scenes is not None, "the configuration has checked it"
    return config.scenes


KIND = Kind(_read, _deal, _policy, _build)
