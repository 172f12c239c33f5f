"""What a forward and a backward pass on a pack take beside what is held all along: activations, casts of weights, logits.

Counted from what the layers of the policies `mot` and `neo` keep for the backward pass, per token and layer; tests hold it to what is
measured at small size. Attention itself is counted as one that keeps no probabilities and no mask, as flex attention does, and as rows
that are attended by themselves nearly do.

Axes: d hidden, q numbers of all heads of queries, k of all heads of keys (as many are values), F inner size of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

_FP32, _BF16 = 4, 2
LEARNT = 0.25  # of a pack's tokens, those that are taken for predicted words; what it really is depends on the rows
SEEN = 0.4  # of a pack's tokens, those that are taken for patches of seen images, as in an edit: its source, seen and as latents
# In float32: of a predicted word's logits their logarithms, the gradients of these, and those of the logits.
_LOGIT_COPIES = 3

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class By:
    """Bytes that the backward pass needs of each token and layer, by d, q, k and F."""

    d: int
    q: int
    k: int
    inner: int

    def __add__(self, other: By) -> By:
        return By(self.d + other.d, self.q + other.q, self.k + other.k, self.inner + other.inner)


Kind = Literal["mot", "neo", "vision"]
# Of two norms what comes in and what goes out; raw, turned and attended heads, and what is projected back; gate, its SiLU, the other
# factor and the product. In bfloat16 norms keep their input in float32. NEO has two sets of queries and keys, whose norms' quotients
# are kept beside, values widened to its keys' size, and casts what comes out of a norm at each projection anew. The vision encoder has
# no gate, and casts likewise.
_BY: Mapping[Kind, Mapping[Dtype, By]] = {
    "mot": {"float32": By(16, 16, 12, 16), "bfloat16": By(12, 10, 8, 8)},
    "neo": {"float32": By(24, 36, 32, 16), "bfloat16": By(30, 22, 20, 8)},
    "vision": {"float32": By(16, 12, 8, 8), "bfloat16": By(16, 6, 4, 4)},
}
# On a CPU a norm with a weight is computed in pieces, of which the quotient in float32 is kept, too.
_IN_PIECES: Mapping[Kind, By] = {"mot": By(8, 4, 4, 0), "neo": By(0, 0, 0, 0), "vision": By(0, 0, 0, 0)}
# Of a token once, by d: the last norm's, and gradients between layers. Fitted, as little hangs on it where there are many layers.
_ONCE: Mapping[Kind, int] = {"mot": 8, "neo": 24, "vision": 0}
# What a layer hands on: what is kept of it where it is computed again.
_CARRIED: Mapping[Kind, Mapping[Dtype, int]] = {
    "mot": {"float32": _FP32, "bfloat16": _BF16},
    "neo": {"float32": _FP32, "bfloat16": _FP32},
    "vision": {"float32": _FP32, "bfloat16": _FP32},
}


@dataclass(frozen=True)
class Trunk:
    """Layers that tokens go through.

    Attributes:
        weights: numbers of a layer's matrices that are held in float32, all experts' together; in bfloat16 each is cast where it is used,
            and the cast is kept for the backward pass.
    """

    kind: Kind
    layers: int
    d: int
    q: int
    k: int
    inner: int
    weights: float

    def by_token(self, dtype: Dtype, *, on_cpu: bool) -> float:
        """Bytes of a token in a layer."""
        by = _BY[self.kind][dtype] + _IN_PIECES[self.kind] if on_cpu else _BY[self.kind][dtype]
        return by.d * self.d + by.q * self.q + by.k * self.k + by.inner * self.inner

    def kept(self, dtype: Dtype, tokens: int, *, recompute: bool, on_cpu: bool) -> float:
        """Bytes of all layers when the backward pass begins."""
        if recompute:
            return float(self.layers * tokens * self.d * _CARRIED[self.kind][dtype])
        return self.layers * (tokens * self.by_token(dtype, on_cpu=on_cpu) + self._casts(dtype))

    def at_once(self, dtype: Dtype, tokens: int, *, recompute: bool, on_cpu: bool) -> float:
        """Bytes that come on top while one layer goes back: gradients of two inner products; all of the layer, where it is computed
        again."""
        each = _FP32 if dtype == "float32" else _BF16
        gradients = tokens * (2.0 * each * self.inner + _ONCE[self.kind] * self.d)
        if not recompute:
            return gradients
        return gradients + tokens * self.by_token(dtype, on_cpu=on_cpu) + self._casts(dtype)

    def _casts(self, dtype: Dtype) -> float:
        return _BF16 * self.weights if dtype == "bfloat16" else 0.0


@dataclass(frozen=True)
class PackTokens:
    """What a pack holds: tokens in all, predicted words among them, and patches that go through a vision encoder."""

    tokens: int
    learnt: int
    seen: int = 0


def training_bytes(
    trunk: Trunk,
    words: int,
    dtype: Dtype,
    pack: PackTokens,
    *,
    recompute: bool,
    vision: Trunk | None = None,
    on_cpu: bool | None = None,
) -> float:
    """Bytes at the peak of a step on a pack.

    Args:
        words: size of the vocabulary.
        recompute: layers are computed again in the backward pass, and only what goes into each is kept.
        vision: the encoder of seen images, where it is trained.
        on_cpu: None: where no GPU is here.
    """
    on_cpu = not torch.cuda.is_available() if on_cpu is None else on_cpu
    logits = float(pack.learnt * words * _FP32 * _LOGIT_COPIES)
    kept = trunk.kept(dtype, pack.tokens, recompute=recompute, on_cpu=on_cpu)
    # The logits are gone before the last layer goes back.
    peak = kept + max(logits, trunk.at_once(dtype, pack.tokens, recompute=recompute, on_cpu=on_cpu))
    if vision is None:
        return peak
    of_images = vision.kept(dtype, pack.seen, recompute=recompute, on_cpu=on_cpu)
    # It goes back when the decoder has let go of what it kept.
    return of_images + max(peak, vision.at_once(dtype, pack.seen, recompute=recompute, on_cpu=on_cpu))
