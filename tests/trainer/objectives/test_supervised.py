"""The supervised loss beside the objective: its equation, its data, and pictures that cannot be read."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.tiny_updates import ADV, ONES, drawn_again, gradient, make_policy, make_updater, roll_out, weights
from trainer.config import ConfigError, SftLossConfig
from trainer.data.captions import BrokenPicturesError, CaptionData
from trainer.objectives import Scored, Supervised
from trainer.objectives.flow.supervised import CaptionBatch
from trainer.quickstart.words import draw_word, render
from trainer.types import Prompt, StopTrainingError

TEXT = 'the word "CAT" in blue'


def make_data(folder: Path, *, count: int = 6, lines: bool = False, broken: tuple[int, ...] = ()) -> Path:
    """Rendered words with their captions; broken files hold no picture."""
    rng, entries = random.Random(0), []
    for number in range(count):
        word = draw_word(rng, heldout=False)
        path = folder / f"{number}.png"
        if number in broken:
            path.write_bytes(b"\x89PNG\r\n\x1a\n not quite")
        else:
            Image.fromarray(np.asarray(render(word, rng))).save(path)
        entries.append({"image_path": path.name, "txt": word.prompt})
    data = folder / ("data.jsonl" if lines else "data.json")
    data.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries), encoding="utf-8")
    return data


def sft(path: Path, **fields: Any) -> SftLossConfig:
    return SftLossConfig.model_validate({"path": str(path), "batch_size": 4, "coef": 0.5, **fields})


def make_supervised(path: Path, share: tuple[int, int] = (0, 1), **fields: Any) -> Supervised:
    config = sft(path, **fields)
    return Supervised(make_policy(), config, CaptionData(config, 3), 3, share=share)


def loss(supervised: Supervised, batch: CaptionBatch) -> float:
    """The sum over all parts, divided by the images of all ranks."""
    parts = [supervised.terms(batch, part)[0] for part in range(supervised.num_parts(batch))]
    return sum(term.sum.item() for (term,) in parts) / supervised.config.batch_size


def test_the_loss_is_flow_matching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow matching (arXiv 2210.02747, rectified path): the mean over pictures and latents of (v - (noise - x0))^2."""
    supervised = make_supervised(make_data(tmp_path), prompt_dropout=0.0)
    (batch,), policy = supervised.batches(None, 0), supervised.policy
    predict, calls = policy.predict, []

    def watched(prompts_B: Sequence[Prompt], x: Tensor, sigma_B: Tensor) -> Tensor:
        v = predict(prompts_B, x, sigma_B)
        calls.append((prompts_B, x, sigma_B, v.detach()))
        return v

    monkeypatch.setattr(policy, "predict", watched)
    found = loss(supervised, batch)
    ((prompts_B, x, sigma_B, v),) = calls
    assert [prompt.text for prompt in prompts_B] == list(batch.drawn.texts)
    x0 = policy.encode_images(batch.drawn.pixels_BHWC)
    sigma = sigma_B[:, None, None, None]
    noise = (x - (1 - sigma) * x0) / sigma
    assert found == pytest.approx(((v - (noise - x0)) ** 2).mean().item(), rel=1e-4)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_pictures_are_those_the_latents_stand_for(tmp_path: Path) -> None:
    """`encode_images` undoes `decode`, up to 8-bit rounding, on what the codec can hold."""
    policy = make_policy()
    pixels = policy.model.decode(0.3 * torch.randn(2, 48, 3, 6, generator=torch.Generator().manual_seed(0)))
    again = policy.model.decode(policy.encode_images(pixels))
    assert (again.int() - pixels.int()).abs().max() <= 1


def test_the_gradient_is_the_weighted_sum(tmp_path: Path) -> None:
    """(1 - coef) * RL + coef * SFT: at coef .25 three parts of the one gradient and one part of the other."""
    data = make_data(tmp_path)
    gradients = {}
    for coef in (0.25, 1.0, None):
        policy = make_policy()
        fields = {} if coef is None else {"sft": sft(data, coef=coef)}
        row = make_updater(policy, **fields).step(Scored(roll_out(policy), ADV, ONES), 0)
        gradients[coef] = gradient(policy).clone()
    assert row.keys().isdisjoint({"loss/sft", "sft/skipped"})
    assert gradients[1.0].norm() > 0
    torch.testing.assert_close(gradients[0.25], 0.75 * gradients[None] + 0.25 * gradients[1.0], rtol=1e-3, atol=1e-5)


def test_the_loss_falls_on_its_own_pictures(tmp_path: Path) -> None:
    policy = make_policy()
    updater = make_updater(policy, lr=3e-3, sft=sft(make_data(tmp_path, count=1), coef=1.0, batch_size=8))
    batch = roll_out(policy)
    rows = [updater.step(Scored(drawn_again(batch), ADV, ONES), step) for step in range(16)]
    first, last = (np.mean([row["loss/sft"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_and_ranks_do_not_change_the_loss(tmp_path: Path, micro: int) -> None:
    data = make_data(tmp_path)
    whole = make_supervised(data)
    split = [make_supervised(data, (rank, 2), micro_batch_size=micro) for rank in range(2)]
    (batch,) = whole.batches(None, 2)
    halves = [each.batches(None, 2)[0] for each in split]
    assert [list(half.places) for half in halves] == [[0, 1], [2, 3]]
    total = sum(loss(each, half) for each, half in zip(split, halves, strict=True))
    assert total == pytest.approx(loss(whole, batch), rel=1e-4)


def test_every_counts_training_steps(tmp_path: Path) -> None:
    policy = make_policy()
    updater = make_updater(policy, sft=sft(make_data(tmp_path), every=3))
    batch = roll_out(policy)
    assert ["loss/sft" in updater.step(Scored(drawn_again(batch), ADV, ONES), step) for step in range(5)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_updates_draw_other_pictures(tmp_path: Path) -> None:
    data = CaptionData(sft(make_data(tmp_path, count=50)), seed=1)
    drawn = [data.draw(update, range(8)).texts for update in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_prompt_dropout_leaves_texts_empty(tmp_path: Path) -> None:
    supervised = make_supervised(make_data(tmp_path), prompt_dropout=0.5)
    kept = [supervised._kept(TEXT, seed) for seed in range(400)]
    assert set(kept) == {TEXT, ""}
    assert 150 < kept.count("") < 250


@pytest.mark.parametrize("lines", [False, True])
def test_broken_pictures_are_passed_over_and_counted(tmp_path: Path, lines: bool) -> None:
    data = make_data(tmp_path, lines=lines, broken=(0, 2))
    supervised = make_supervised(data, batch_size=32)
    drawn = supervised.batches(None, 1)[0].drawn
    assert drawn.skipped > 0
    good = {text for number, text in enumerate(supervised.captions.texts) if number not in (0, 2)}
    assert set(drawn.texts) == good and drawn.pixels_BHWC.shape == (32, 24, 48, 3)


def test_a_data_set_of_broken_pictures_stops_with_the_last_path(tmp_path: Path) -> None:
    data = make_data(tmp_path, count=3, broken=(0, 1, 2))
    with pytest.raises(BrokenPicturesError, match=r"10 pictures in a row cannot be read, the last .*\d\.png \(Unident"):
        CaptionData(sft(data), seed=1).draw(0, range(2))
    with pytest.raises(ConfigError, match="the first picture cannot be used"):
        make_supervised(data)


def test_pictures_that_go_missing_stop_training_before_the_step(tmp_path: Path) -> None:
    policy = make_policy()
    updater = make_updater(policy, sft=sft(make_data(tmp_path)))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    before = weights(policy)
    with pytest.raises(StopTrainingError, match="cannot be read"):
        updater.step(Scored(roll_out(policy), ADV, ONES), 0)
    assert torch.equal(weights(policy), before)


def test_pictures_of_all_updates_are_drawn_before_the_first(tmp_path: Path) -> None:
    """So that pictures that go missing never leave weights of which some updates were made and others were not."""
    policy = make_policy()
    updater = make_updater(policy, updates_per_rollout=2, sft=sft(make_data(tmp_path)))
    take, before = updater.engine.step, weights(policy)

    def take_and_unlink(lr: float, *, scale: float) -> float:
        norm = take(lr, scale=scale)
        for path in tmp_path.glob("*.png"):
            path.unlink()
        return norm

    updater.engine.step = take_and_unlink  # type: ignore[method-assign]
    assert updater.step(Scored(roll_out(policy), ADV, ONES), 0)["loss/sft"] > 0
    trained = weights(policy)
    assert not torch.equal(trained, before)
    with pytest.raises(StopTrainingError, match="cannot be read") as caught:
        updater.step(Scored(roll_out(policy), ADV, ONES), 1)
    assert not caught.value.midway and torch.equal(weights(policy), trained)


def test_without_a_sample_to_train_on_the_supervised_loss_takes_no_step(tmp_path: Path) -> None:
    """Alone it would be no small share: Adam divides a gradient by its own size."""
    policy = make_policy()
    before = weights(policy)
    row = make_updater(policy, sft=sft(make_data(tmp_path))).step(Scored(roll_out(policy), ADV, 0 * ONES), 0)
    assert torch.equal(weights(policy), before)
    assert row["grad_norm"] == 0 and row["loss/sft"] > 0


def test_pictures_of_other_sizes_are_scaled_and_cut(tmp_path: Path) -> None:
    """A 96 x 48 picture covers 24 x 48 at half its size; red left and right of a green middle band are cut above and below."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:24] = pixels[72:] = (255, 0, 0)
    pixels[24:72] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :80]).save(tmp_path / "b.png")
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"image_path": f"{n}.png", "txt": TEXT} for n in "ab"]))
    drawn = CaptionData(sft(data, size=[24, 48]), seed=1).draw(0, range(6))
    assert drawn.pixels_BHWC.shape == (6, 24, 48, 3)
    assert (drawn.pixels_BHWC[:, 2:-2, :, 1] > 200).all() and (drawn.pixels_BHWC[:, 2:-2, :, 0] < 50).all()
    with pytest.raises(ConfigError, match=r"different sizes \(96x80, 96x96\); give a size"):
        CaptionData(sft(data), seed=1).draw(0, range(6))
    with pytest.raises(ConfigError, match="the tiny policy knows images of 24x48"):
        make_supervised(data, size=[32, 48])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "neither a JSON array nor JSON lines"),
        ("{", "neither a JSON array nor JSON lines"),
        ("[]", "holds no entry"),
        ('[{"image_path": "a.png"}]', "entry 1: needs the texts image_path and txt"),
        ('{"image_path": "a.png", "txt": "a"}\n{"image_path": 7, "txt": "a"}', "entry 2: needs the texts"),
    ],
)
def test_a_file_that_is_no_data_set(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "data.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        CaptionData(sft(path), seed=1)


def test_a_batch_that_ranks_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 4 pictures cannot be shared by 3 ranks.*multiple of 3"):
        make_supervised(make_data(tmp_path), (0, 3))
