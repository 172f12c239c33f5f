"""Guidance of velocities by a text and by source images (BAGEL, arXiv 2505.14683), with numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from trainer.samplers.guidance import Guidance, Renorm, guided_velocity

# One image of two tokens of two numbers. Norms of the tokens of v: 5 and 1; of the whole: sqrt(26).
V = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
NO_TEXT = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
NO_IMAGES = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])


def guided(renorm: Renorm, text: float = 2.0, image: float = 1.0, least: float = 0.0) -> torch.Tensor:
    guidance = Guidance(text, image, renorm=renorm, least=least)
    return guided_velocity(V, NO_TEXT if text != 1 else None, NO_IMAGES if image != 1 else None, guidance)[0]


def test_text_then_images() -> None:
    """u + 2 (v - u) = [[6, 8], [1, -1]]; with images w + 3 (that - w) = [[16, 24], [3, -3]]."""
    assert guided("none").tolist() == [[6.0, 8.0], [1.0, -1.0]]
    assert guided("none", image=3.0).tolist() == [[16.0, 24.0], [3.0, -3.0]]
    assert guided("none", text=1.0, image=3.0).tolist() == [[7.0, 12.0], [3.0, 0.0]]


def test_the_whole_image_is_no_longer_than_without_guidance() -> None:
    """Norm of [[6, 8], [1, -1]] is sqrt(102), that of v sqrt(26): all is multiplied by sqrt(26 / 102)."""
    torch.testing.assert_close(guided("global"), (26 / 102) ** 0.5 * torch.tensor([[6.0, 8.0], [1.0, -1.0]]))


def test_each_token_is_no_longer_than_without_guidance() -> None:
    """Token norms 10 and sqrt(2) become 5 and 1."""
    torch.testing.assert_close(guided("channel"), torch.tensor([[3.0, 4.0], [2**-0.5, -(2**-0.5)]]))


def test_tokens_are_shortened_before_images_guide_them() -> None:
    """[[3, 4], [a, -a]] with a = 1 / sqrt(2), then w + 2 (that - w) = [[5, 8], [2a, -2a]], which may be longer than v."""
    a = 2**-0.5
    torch.testing.assert_close(guided("text_channel", image=2.0), torch.tensor([[5.0, 8.0], [2 * a, -2 * a]]))
    assert torch.equal(guided("text_channel"), guided("channel"))


def test_nothing_is_lengthened_and_shortened_no_further_than_asked() -> None:
    short = guided_velocity(V, 2 * V, None, Guidance(1.5, renorm="channel"))  # 2 v + 1.5 (v - 2 v) = v / 2
    torch.testing.assert_close(short, V / 2)
    torch.testing.assert_close(guided("channel", least=0.8), torch.tensor([[4.8, 6.4], [0.8, -0.8]]))


@pytest.mark.parametrize("renorm", ["none", "global", "channel", "text_channel"])
def test_an_image_does_not_depend_on_its_neighbours(renorm: Renorm) -> None:
    generator = torch.Generator().manual_seed(0)
    v, no_text, no_images = torch.randn(3, 4, 5, 6, generator=generator)
    guidance = Guidance(4.0, 2.0, renorm=renorm)
    together = guided_velocity(v, no_text, no_images, guidance)
    for n in range(4):
        alone = guided_velocity(v[n : n + 1], no_text[n : n + 1], no_images[n : n + 1], guidance)
        torch.testing.assert_close(together[n : n + 1], alone)


def test_there_is_guidance_inside_the_interval_alone() -> None:
    """(low, high], as BAGEL: at .4 there is none, at 1 there is."""
    guidance = Guidance(4.0, 1.5, interval=(0.4, 1.0))
    assert [guidance.at(sigma).text for sigma in (1.0, 0.41, 0.4, 0.1)] == [4.0, 4.0, 1.0, 1.0]
    assert guidance.at(0.4).image == 1.0
    assert guidance.at(0.5) is guidance


def test_without_guidance_the_conditional_velocity_is_followed_to_the_bit() -> None:
    assert torch.equal(guided_velocity(V / 3, None, None, Guidance()), V / 3)


def test_half_precision_is_guided_in_float32() -> None:
    assert guided_velocity(V.bfloat16(), NO_TEXT.bfloat16(), None, Guidance(2.0)).dtype == torch.float32
