"""Rows of all six published formats against a second reading of how they are packed: which tokens, at which positions, what is
predicted, who sees whom, and what the published network computes of them.

The reading is of descriptions and written as the published packs are built, split by split; the trainer goes by orders and blocks.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.packed_rows import ROWS, plans_of, write_images, write_rows
from tests.support.published_network import Given, outputs
from tests.support.published_packs import READING, REFINE, THINK, read
from trainer.policies.base import Laying
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.pack import layout_of
from trainer.policies.unified.mot.policy import MotPolicy


def in_order(laid: LaidRow) -> list[tuple[Any, int, int]]:
    """The trainer's row in the order in which it is said: (word or what stands there, position, its place in the pack)."""
    latents, place = {}, len(laid.und)
    for each in laid.latents:
        latents[each.block] = [("latent", each.position, place + n) for n in range(laid.tokens_of(each))]
        place += laid.tokens_of(each)
    found: list[tuple[Any, int, int]] = []
    for place, (word, position, _, block, _) in enumerate(laid.und):
        found.append(("patch" if word < 0 else laid.words[word], position, place))
        found += latents.pop(block, [])  # behind the tag that begins the image
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("published"))


DROPPED = [each for n in range(4) for each in itertools.combinations(("text", "clean", "seen"), n)]


@pytest.mark.parametrize("kind", list(ROWS))
def test_a_published_row_is_the_tokens_positions_labels_and_mask_of_its_description(
    policy: MotPolicy, pictures: Path, tmp_path: Path, kind: str
) -> None:
    """For every choice of conditions that are left out, with one noised copy and with two."""
    said = {}
    for name, sentence in (("think_instruction", THINK), ("refine_instruction", REFINE)):
        (tmp_path / f"{name}.txt").write_text(sentence)
        said[name] = str(tmp_path / f"{name}.txt")
    path = write_rows(tmp_path / "rows.json", [ROWS[kind]])
    plan = plans_of(path, kind, image_folder=str(pictures), **said).plan(0)
    words = policy.model.words
    for dropped, copies in itertools.product(DROPPED, (1, 2)):
        shares = {f"drop_{each}": float(each in dropped) for each in ("text", "clean", "seen")}
        laid = policy.lay(plan, Laying(0, copies=copies, **shares))
        wanted, found = read(words, READING[kind](ROWS[kind]), dropped, copies), in_order(laid)
        assert [token for token, _, _ in found] == wanted.tokens, dropped
        assert [position for _, position, _ in found] == wanted.positions, dropped
        said_at = {place: n for n, (_, _, place) in enumerate(found)}
        assert [(said_at[place], word) for place, word in laid.asked] == wanted.predicted
        assert list(laid.learnt) == wanted.texts
        # Two of it side by side: neither sees the other.
        count = len(found)
        seen_NN = layout_of([laid, laid], torch.device("cpu")).dense_NN
        order = torch.tensor([place for _, _, place in found])
        order = torch.cat([order, order + count])
        assert torch.equal(seen_NN[order][:, order], torch.block_diag(wanted.mask(), wanted.mask()).bool()), dropped


def test_both_errors_of_a_row_are_those_of_the_published_network(
    policy: MotPolicy, pictures: Path, tmp_path: Path
) -> None:
    """All six formats in one pack, computed again row by row by formulas over the tensors of the file."""
    geometry, words = policy.model.network.geometry, policy.model.words
    state = {name: each.detach() for name, each in policy.model.network.state_dict().items()}
    rows, texts, squares = [], [], []
    for number, kind in enumerate(ROWS):
        path = write_rows(tmp_path / f"{kind}.json", [ROWS[kind]])
        laid = policy.lay(plans_of(path, kind, image_folder=str(pictures)).plan(0), Laying(number, copies=2, shift=3.0))
        rows.append(laid)
        found = in_order(laid)
        order = torch.tensor([place for _, _, place in found])
        clean = [_latents(policy, pixels) for pixels in laid.drawn_from]
        mixed, levels, velocities, learnt = [], [], [], []
        for each in laid.latents:
            x0 = clean[each.source]
            level, noise = (0.0, torch.zeros_like(x0)) if each.noise is None else (each.level, each.noise)
            mixed.append((1 - level) * x0 + level * noise)
            levels.append(torch.full((len(x0),), level))
            learnt.append(torch.full((len(x0),), each.noise is not None))
            velocities.append(noise - x0)
        logits_NV, v_GC = outputs(
            state,
            Given(
                tokens=[token for token, _, _ in found],
                positions=[position for _, position, _ in found],
                seen_NN=layout_of([laid], torch.device("cpu")).dense_NN[order][:, order],
                patches=torch.cat([_cut(pixels) for pixels in laid.seen]) if laid.seen else torch.zeros(0, 192),
                latents=torch.cat(mixed),
                levels=torch.cat(levels),
                side=4,
                seen_side=geometry.vision.side,
                latent_side=geometry.max_latent_size,
                heads=geometry.language.num_attention_heads,
                shared_heads=geometry.language.num_key_value_heads,
                vision_heads=geometry.vision.num_attention_heads,
            ),
        )
        said_at = {place: n for n, (_, _, place) in enumerate(found)}
        for place, word in laid.asked:
            texts.append(-torch.log_softmax(logits_NV[said_at[place]], -1)[word])
        squares.append(((v_GC - torch.cat(velocities)) ** 2).mean(1)[torch.cat(learnt)])
    out = policy.read(rows)
    assert len(out.cross_entropy_T) == len(texts) > 40 and words.start not in [
        word for row in rows for _, word in row.asked
    ]
    torch.testing.assert_close(out.cross_entropy_T, torch.stack(texts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.squared_error_L, torch.cat(squares), rtol=1e-4, atol=1e-5)


def _cut(pixels: torch.Tensor) -> torch.Tensor:
    """(H, W, 3) to patches of 8 x 8 pixels in [-1, 1]: row by row, colours last."""
    image = pixels.float() / 255 * 2 - 1
    return torch.stack([image[y : y + 8, x : x + 8].flatten() for y in range(0, 32, 8) for x in range(0, 32, 8)])


def _latents(policy: MotPolicy, pixels: torch.Tensor | None) -> torch.Tensor:
    """(16, C): one latent a token, row by row."""
    assert pixels is not None
    latents = policy.encode_images(pixels[None])[0]
    return torch.stack([latents[:, row, column] for row in range(4) for column in range(4)])
