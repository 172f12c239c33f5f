"""A context is read once and gone on from: what is drawn and written then is what the whole row says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.small_mot import picture, small_mot
from trainer.config.generation import GenerationConfig
from trainer.policies.base import Laying, SamplingPlan
from trainer.policies.generation import Generates, Instructions, Made, Written
from trainer.policies.tokens.draw import Answer, TokenPlan
from trainer.policies.unified.mot.inference import engine, turns
from trainer.policies.unified.mot.inference.context import EVERYTHING, NO_IMAGES, NO_TEXTS, Context
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.pack import pack_rows
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.samplers.guidance import Guidance, Renorm, guided_velocity
from trainer.types import Prompt

SAID = Instructions(think="think", refine="look")


@pytest.fixture(scope="session", params=[False, True], ids=["places in order", "places spread"])
def placed(request: pytest.FixtureRequest) -> MotPolicy:
    """With either way of giving patches their positions."""
    return small_mot(interpolate_positions=request.param)


def settings(**changed: Any) -> GenerationConfig:
    given: dict[str, Any] = {"num_inference_steps": 3, "max_new_tokens": 5, "temperature": 1.0, **changed}
    return GenerationConfig(**given)


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> list[Context]:
    """Of unlike lengths: a text; a text with an image; two texts and an image that no file holds."""
    folder = tmp_path_factory.mktemp("contexts")
    drawn = np.asarray(Image.open(picture(folder, "drawn", "green")).convert("RGB"))
    return [
        Context("short").said("draw red disc left"),
        Context("edit").said("make left blue").shown(picture(folder, "source")),
        Context("long").said("look").said("draw like sea and blood").drawn(drawn).said("<sugg>blue</sugg>"),
    ]


def test_an_image_is_drawn_after_a_kept_context_as_in_the_whole_row(
    placed: MotPolicy, contexts: Sequence[Context]
) -> None:
    model = placed.model
    x = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    kept = engine.read(model, [each.laid(model) for each in contexts])
    assert kept.there_BL.sum(1).tolist() == [each.laid(model).length for each in contexts]
    cached = engine.Canvas(model, kept, (2, 4)).velocity(x, 0.6)
    rows = [each.laid(model, Laying(seed=0), canvas=(2, 4)) for each in contexts]
    given = pack_rows(rows, model.codec, model.network.geometry, model.device, "dense")
    given.tokens.latents[given.drawn_L] = x.flatten(0, 1)
    given.tokens.levels_I[given.drawn_I] = 0.6
    _, gen = model.network(given.tokens, given.attends)
    whole = model.network.velocity(gen[given.drawn_L]).unflatten(0, (3, 8))
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)


def test_a_text_is_written_word_by_word_as_the_whole_row_says(policy: MotPolicy, contexts: Sequence[Context]) -> None:
    """Greedy words are the likeliest of a whole pass over the context and all words before; none is a tag. 70 words, so that the place
    for them grows."""
    model = policy.model
    cache = engine.read(model, [each.laid(model) for each in contexts])
    written = engine.write(model, cache, [0, 0, 0], TokenPlan(3, 70, temperature=0.0))
    banned = [model.words.start, model.words.image_start, model.words.image_end]
    for context, answer in zip(contexts, written, strict=True):
        finished = answer.finished
        ids = answer.tokens_S.tolist()[: -1 if finished else None]
        row = context.laid(model)
        row.asked.clear()
        position, order = row.position, 1 + max(each[2] for each in row.und)
        told = [model.words.start, *ids, *([model.words.end] if finished else [])]
        first = len(row.und)
        for n, word in enumerate(told[:-1]):
            row.und.append((len(row.words), position + n, order + n, 0, False))
            row.words.append(word)
        given = pack_rows([row], model.codec, model.network.geometry, model.device, "dense")
        with torch.no_grad():
            und, _ = model.network(given.tokens, given.attends)
            logits = model.network.logits(und[first:]).index_fill(1, torch.tensor(banned), -torch.inf)
        assert logits.argmax(1).tolist() == told[1:]
        assert finished or len(ids) == 70


def test_guided_steps_are_eulers_with_the_three_branches(policy: MotPolicy, contexts: Sequence[Context]) -> None:
    """v without texts and v without images are those of rows whose texts, or images, were left out as in training; outside the
    interval the conditional velocity is followed."""
    model, context = policy.model, contexts[1]
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(5))
    guidance = Guidance(4.0, 1.5, interval=(0.4, 1.0), renorm="channel")
    branches = [[context.laid(model, laying)] for laying in (EVERYTHING, NO_TEXTS, NO_IMAGES)]
    found = engine.draw(model, branches, (4, 4), noise, [1.0, 0.4, 0.0], guidance)

    def velocity(laying: Laying, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return engine.Canvas(model, engine.read(model, [context.laid(model, laying)]), (4, 4)).velocity(x, sigma)

    with torch.no_grad():
        vs = [velocity(laying, noise, 1.0) for laying in (EVERYTHING, NO_TEXTS, NO_IMAGES)]
        x = noise + (0.4 - 1.0) * guided_velocity(*vs, guidance)
        x = x + (0.0 - 0.4) * velocity(EVERYTHING, x, 0.4)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    assert context.laid(model, NO_TEXTS).position < context.laid(model, NO_IMAGES).position
    alone = engine.draw(model, [branches[0], branches[2]], (4, 4), noise, [1.0, 0.0], Guidance(1.0, 1.5, renorm="none"))
    with torch.no_grad():
        torch.testing.assert_close(alone, noise - (vs[2] + 1.5 * (vs[0] - vs[2])), rtol=1e-4, atol=1e-5)


def test_without_guidance_it_draws_what_the_sampler_of_training_draws(policy: MotPolicy, tmp_path: Path) -> None:
    """The same seed: the same noise, the same levels, the same image."""
    prompts = [
        Prompt("p", "draw red disc left"),
        Prompt("e", "make left blue", source_images=(picture(tmp_path, "s"),)),
    ]
    asked = settings(text_guidance=1.0, image_guidance=1.0, shift=2.0)
    made = policy.generate(prompts, [5, 6], asked, SAID)
    (rollout,) = policy.sample(prompts, 1, [5, 6], SamplingPlan(3, 2, shift=2.0))
    for each, sample in zip(made, rollout.samples, strict=True):
        assert np.abs(each.images[0].astype(int) - sample.images[0]).max() <= 1, "rounding to whole numbers, at most"


@pytest.mark.parametrize("renorm", ["none", "global", "channel", "text_channel"])
def test_guided_rollouts_draw_what_is_generated(policy: MotPolicy, tmp_path: Path, renorm: Renorm) -> None:
    """The same seed, guidance by the text and by source images, in an interval that leaves one of three steps out: the same image, of an edit
    and of a drawing, which no source image guides."""
    prompts = [
        Prompt("p", "draw red disc left"),
        Prompt("e", "make left blue", source_images=(picture(tmp_path, "s"),)),
    ]
    asked = settings(text_guidance=2.0, image_guidance=1.5, guidance_interval=(0.5, 1.0), renorm=renorm, shift=2.0)
    made = policy.generate(prompts, [5, 6], asked, SAID)
    guidance = Guidance(2.0, 1.5, (0.5, 1.0), renorm)
    (guided,) = policy.sample(prompts, 1, [5, 6], SamplingPlan(3, 2, guidance=guidance, shift=2.0))
    (plain,) = policy.sample(prompts, 1, [5, 6], SamplingPlan(3, 2, shift=2.0))
    for each, sample, other in zip(made, guided.samples, plain.samples, strict=True):
        assert np.abs(each.images[0].astype(int) - sample.images[0]).max() <= 1, "rounding to whole numbers, at most"
        assert np.abs(other.images[0].astype(int) - sample.images[0]).max() > 1


def kinds(made: Made) -> list[str]:
    return [step.purpose if isinstance(step, Written) else f"{step.shape[0]}x{step.shape[1]}" for step in made.steps]


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    return [
        Prompt("a", "draw red disc left"),
        Prompt("b", "make left blue", source_images=(picture(tmp_path, "one"),)),
        Prompt("c", "make left sea", source_images=(picture(tmp_path, "two", "blue", (32, 16)),)),
        Prompt("d", "draw green ring"),
    ]


@pytest.mark.parametrize(
    "changed", [{}, {"think": True}, {"renorm": "none", "image_guidance": 1.0}, {"text_guidance": 1.0}]
)
def test_what_comes_of_a_prompt_does_not_depend_on_its_neighbours(
    policy: MotPolicy, prompts: Sequence[Prompt], changed: dict[str, Any]
) -> None:
    asked = settings(**changed)
    together = policy.generate(prompts, [1, 2, 3, 4], asked, SAID)
    assert isinstance(policy, Generates)
    first = ["thought"] if asked.think else []
    assert [kinds(each) for each in together] == [
        [*first, "32x32"],
        [*first, "32x32"],
        [*first, "16x32"],
        [*first, "32x32"],
    ]
    for n, prompt in enumerate(prompts):
        (alone,) = policy.generate([prompt], [n + 1], asked, SAID)
        assert alone.texts == together[n].texts
        difference = alone.images[0].astype(int) - together[n].images[0]
        assert np.abs(difference).max() <= 1, "rounding to whole numbers, at most"
    (other,) = policy.generate(prompts[:1], [9], asked, SAID)
    assert np.abs(other.images[0].astype(int) - together[0].images[0]).max() > 10, "another seed draws another image"


def test_ranks_that_share_weights_draw_equally_often(prompts: Sequence[Prompt]) -> None:
    """Under ZeRO-3, whatever sizes and sources the rows of a rank have; thoughts have been seen to by the same rule."""
    found = []
    for shared in (False, True):
        policy = small_mot()
        if shared:
            next(policy.trainable.parameters()).ds_id = 0  # as DeepSpeed marks them
        for own in ([prompts[0], prompts[3]], [prompts[1], prompts[2]]):
            passes: list[int] = []
            hook = policy.trainable.register_forward_hook(lambda *_, passes=passes: passes.append(1))
            made = policy.generate(own, [1, 2], settings(think=True, image_guidance=1.0), SAID)
            hook.remove()
            found.append((len(passes), [kinds(each) for each in made]))
    alike, unlike, one, other = found
    assert alike[0] < unlike[0] and one[0] == other[0], "rows of one size are drawn together, elsewhere"
    assert (one[1], other[1]) == (alike[1], unlike[1])


def test_the_size_that_is_asked_for_is_drawn(policy: MotPolicy, prompts: Sequence[Prompt]) -> None:
    made = policy.generate(prompts, [1, 2, 3, 4], settings(height=16, width=16), SAID)
    assert {kinds(each)[-1] for each in made} == {"16x16"}


def test_questions_are_answered(policy: MotPolicy, prompts: Sequence[Prompt]) -> None:
    made = policy.generate(prompts, [1, 2, 3, 4], settings(task="answer"), SAID)
    assert [kinds(each) for each in made] == [["answer"]] * 4
    row = turns.Turns(policy.model, settings(task="answer"), SAID)._begun(prompts[1], 0).context
    assert [type(item).__name__ for item in row.items] == ["ImageItem", "TextItem"]


class _Scripted:
    """Writes what it is told to, in place of a model's words; draws with the model."""

    draw = staticmethod(engine.draw)

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._texts = iter(texts)
        self.asked: list[list[str]] = []

    def read(self, model: MotModel, rows: Sequence[LaidRow]) -> Sequence[LaidRow]:
        return rows

    def write(self, model: MotModel, rows: Sequence[LaidRow], seeds: Sequence[int], plan: TokenPlan) -> list[Answer]:
        self.asked.append([model.words.decode(row.words) for row in rows])
        ids = [torch.tensor([*model.words.encode(text), model.words.end]) for text in next(self._texts)]
        assert len(ids) == len(seeds)
        return [Answer(each, torch.zeros(len(each)), finished=True) for each in ids]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Scripted]:
    def say(*texts: Sequence[str]) -> _Scripted:
        scripted = _Scripted(texts)
        monkeypatch.setattr(turns, "engine", scripted)
        return scripted

    return say


def test_refining_goes_by_the_rows_of_training(
    policy: MotPolicy, prompts: Sequence[Prompt], script: Callable[..., _Scripted]
) -> None:
    """Draft, suggestion, image, suggestion, image; one whose suggestion is empty is done. Contexts are UniReason's: instruction, prompt,
    images before, thought (framed where it is of an edit), image; then suggestion and image, again and again."""
    told = script(
        ["<think>red</think>", "<think>blue</think>"], ["<sugg>more red</sugg>", "<sugg></sugg>"], ["<sugg>left</sugg>"]
    )
    made = policy.generate(prompts[:2], [1, 2], settings(think=True, refine=2), SAID)
    assert kinds(made[0]) == ["thought", "32x32", "suggestion", "32x32", "suggestion", "32x32"]
    assert kinds(made[1]) == ["thought", "32x32", "suggestion"]
    assert [text.text for text in made[0].texts] == ["red", "more red", "left"]
    assert [text.text for text in made[1].texts] == ["blue", ""]
    assert told.asked == [
        ["think" + "draw red disc left", "think" + "make left blue"],
        ["look" + "draw red disc left" + "red", "look" + "make left blue" + "<think>blue</think>"],
        ["look" + "draw red disc left" + "red" + "<sugg>more red</sugg>"],
    ]
    images = made[0].images
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])


def test_refining_without_a_thought(
    policy: MotPolicy, prompts: Sequence[Prompt], script: Callable[..., _Scripted]
) -> None:
    told = script(["<sugg></sugg>", "<sugg></sugg>"])
    made = policy.generate(prompts[:2], [1, 2], settings(refine=3), SAID)
    assert [kinds(each) for each in made] == [["32x32", "suggestion"]] * 2
    assert told.asked == [["look" + "draw red disc left", "look" + "make left blue" + "<think></think>"]]


def test_an_image_that_was_drawn_is_read_as_the_same_image_from_a_file(policy: MotPolicy, tmp_path: Path) -> None:
    path = picture(tmp_path, "kept", size=(40, 24))
    pixels = np.asarray(Image.open(path).convert("RGB"))
    held, read = Context("a").drawn(pixels).laid(policy.model), Context("a").shown(path).laid(policy.model)
    assert torch.equal(held.drawn_from[0], read.drawn_from[0]) and torch.equal(held.seen[0], read.seen[0])
