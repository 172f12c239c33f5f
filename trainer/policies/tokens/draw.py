"""What a policy that writes is drawn with: the plan, the answers, and who draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TokenPlan:
    """How one call of `sample` writes.

    Attributes:
        micro_batch_size: answers written together.
        max_new_tokens: an answer is cut off after so many.
        temperature: 0 always takes the likeliest token.
        top_p, top_k: which tokens can be drawn (`trainer.samplers.tokens`); 1 and 0 are all.
        stop_ids: ids that end an answer beside the model's own.
    """

    micro_batch_size: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Seen:
    """What parts of a network that are not trained made of a prompt, so that they need not do it again.

    Attributes:
        inputs: of the reading that it was made of.
        places_I: which of its tokens stand for images.
        features_Id: what the first layer takes in their places.
        positions: of its tokens (T,), or (3, T) where time, height and width have their own.
        added: what is added to the hidden states behind each of the first layers, each (T, d).
    """

    inputs: Mapping[str, Tensor]
    places_I: Tensor
    features_Id: Tensor
    positions: Tensor
    added: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt as the network takes it.

    Attributes:
        ids_T: int64 token ids, one for each place that the network has, those of images included.
        inputs: what else the processor made of it, such as pixels, each with the axes that it has for one text alone.
        text: the prompt in the frame of its turns, with one placeholder an image, as the processor was given it.
        images: the files of its images, in order.
        seen: what was made of the inputs; it means nothing where it was made of others.
        later: whether some of them are shown by the tokens that follow it, as in a conversation with images in a later turn. Then
            what `inputs` say of each token goes on behind `ids_T`, over all tokens up to the last image.
    """

    ids_T: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    text: str = ""
    images: tuple[str, ...] = ()
    seen: Seen | None = None
    later: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """What was drawn for a reading.

    Attributes:
        tokens_S: int64, with the token that ended the answer, where one did.
        logp_S: float32, of the distribution that each was drawn from.
        finished: whether it ended by itself.
        kept_SV: bool, which tokens could be drawn; None where all could.
        version: how many updates the weights had that drew it, where another engine did; None where the policy's own did.
    """

    tokens_S: Tensor
    logp_S: Tensor
    finished: bool
    kept_SV: Tensor | None = None
    version: int | None = None


class Drawer(Protocol):
    """Writes answers. An answer depends on its reading, its seed and the plan alone, never on its neighbours."""

    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        """B = P * group_size answers, those to one reading side by side, all on the CPU."""
        ...
