"""Classifier-free guidance (arXiv 2207.12598): of the logits of tokens, and of velocities by a text and by source images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Renorm = Literal["none", "global", "channel", "text_channel"]
GuidanceGradient = Literal["both", "conditional"]
_EPS = 1e-8  # a velocity of norm 0 stays 0


def guided_logits(cond_BC: Tensor, uncond_BC: Tensor, scale: float) -> Tensor:
    """Float32 logits u + w (c - u): 0 at w = 0 leaves the unconditional branch u, 1 the conditional branch c."""
    cond_BC, uncond_BC = cond_BC.float(), uncond_BC.float()
    return uncond_BC + scale * (cond_BC - uncond_BC)


@dataclass(frozen=True)
class Guidance:
    """How velocities are guided by a text and by source images, as BAGEL (arXiv 2505.14683) draws.

    Attributes:
        text: w of the text; 1 is none.
        image: w of the source images; 1 is none.
        interval: noise levels (low, high] at which there is guidance; elsewhere the conditional velocity is followed.
        renorm: what a guided velocity is shortened to, so that a large w does not burn colours: nothing (`none`), the norm of the
            conditional one over the whole image (`global`) or of each token (`channel`); `text_channel` shortens each token before
            the images guide it.
        least: no velocity is shortened by more than this factor, in [0, 1].
    """

    text: float = 1.0
    image: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Renorm = "global"
    least: float = 0.0

    def at(self, sigma: float) -> Guidance:
        """This guidance at a noise level: without any outside the interval."""
        low, high = self.interval
        return self if low < sigma <= high else Guidance()


def guided_velocity(
    cond_BND: Tensor, no_text_BND: Tensor | None, no_images_BND: Tensor | None, guidance: Guidance
) -> Tensor:
    """The velocity that is followed, float32 (B, N, D): B images of N tokens of D numbers.

    v_text = v_no_text + w_text (v - v_no_text); then v_no_images + w_image (v_text - v_no_images); then shortened.

    Args:
        cond_BND: v under all that is known.
        no_text_BND: v without the texts; None where `guidance.text` is 1.
        no_images_BND: v without the source images; None where `guidance.image` is 1, or there are none.
    """
    cond = cond_BND.float()
    guided = cond
    if no_text_BND is not None:
        no_text = no_text_BND.float()
        guided = no_text + guidance.text * (cond - no_text)
    if guidance.renorm == "text_channel" and no_text_BND is not None:
        guided = _shortened(guided, cond, (2,), guidance.least)
    if no_images_BND is not None:
        no_images = no_images_BND.float()
        guided = no_images + guidance.image * (guided - no_images)
    if guided is cond:
        return cond  # to the bit, and not times a number that is nearly 1
    if guidance.renorm == "global":
        return _shortened(guided, cond, (1, 2), guidance.least)  # of each image by itself: neighbours do not matter
    return _shortened(guided, cond, (2,), guidance.least) if guidance.renorm == "channel" else guided


def _shortened(guided: Tensor, cond: Tensor, over: tuple[int, ...], least: float) -> Tensor:
    """`guided`, no longer than `cond` over these axes, and never lengthened."""
    factor: Tensor = cond.norm(dim=over, keepdim=True) / (guided.norm(dim=over, keepdim=True) + _EPS)
    return guided * factor.clamp(least, 1.0)
