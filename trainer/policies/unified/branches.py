"""The branches of images as one network computes them: drawn token by token, and read at once.

Two ways give the same. Layers that are Llama's are computed by hand (`trainer.policies.tokens.llama`), each distinct prompt once;
all others by the network's own forward pass, each prompt with each image. Axes: R rows, a branch of an image each; T tokens of a
prompt, N tokens of an image, M tokens that are predicted in all rows, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import sent
from trainer.policies.tokens.llama.decode import Choose, Drawn, decode
from trainer.policies.tokens.llama.inputs import embedded_prefix
from trainer.policies.tokens.llama.layers import fused_layers
from trainer.policies.tokens.llama.layout import supports, text_model
from trainer.policies.tokens.llama.replay import shared_hidden
from trainer.policies.unified.draw import ImageModel


@torch.no_grad()
def draw(model: ImageModel, prompts_R: Sequence[Tensor], choose: Choose) -> list[Drawn]:
    """Image tokens behind each prompt (ids, with the tag that begins an image), one at a time by `choose`.

    `choose` gets the hidden states of all rows, as the branches of an image are drawn by together.
    """
    if supports(model.network) is not None:
        return _draw_plainly(model, prompts_R, choose)
    text, (prompts, prompt_R) = text_model(model.network), _distinct(prompts_R)
    prefix = embedded_prefix(text, _embedded(model, model.network, prompts))
    embed = partial(model.embed_image, model.network)
    return decode(text, fused_layers(text), prefix, torch.tensor(prompt_R), choose, embed, (), model.num_image_tokens)


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch of an image that was drawn.

    Attributes:
        prompt_T: ids that rows may share, at least one.
        own_L: ids behind them that are the row's own, such as a plan; the tag that begins an image is the last of both.
        tokens_N: of the image.
    """

    prompt_T: Tensor
    own_L: Tensor
    tokens_N: Tensor

    @property
    def predicted(self) -> int:
        """How many tokens are predicted: all behind the prompt."""
        return len(self.own_L) + len(self.tokens_N)


def hidden_states(model: ImageModel, network: nn.Module, rows: Sequence[Branch]) -> Tensor:
    """(M, d), differentiable: behind the last norm, what each token behind a row's prompt is predicted from, row by row.

    Args:
        network: the model's own, or a copy of it with other weights.
    """
    x_Md = _behind_prompts(model, network, rows)
    lengths = [row.predicted - 1 for row in rows]  # the last token of an image is predicted, and predicts nothing
    if model.recomputes_layers or supports(network) is not None:
        return _read_plainly(model, network, rows, x_Md.split(lengths))
    text, (prompts, prompt_R) = text_model(network), _distinct([row.prompt_T for row in rows])
    prefix = embedded_prefix(text, _embedded(model, network, prompts))
    return shared_hidden(text, prefix, prompt_R, x_Md, lengths)


def _distinct(prompts_R: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The prompts without repetitions, and which of them each row has. Unconditional branches of one length are all the same."""
    keys = [tuple(ids_T.tolist()) for ids_T in prompts_R]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return [torch.tensor(key) for key in places], [places[key] for key in keys]


def _embedded(model: ImageModel, network: nn.Module, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings (T, d) of each."""
    flat = model.embed_text(network, sent(torch.cat(list(prompts)), model.device))
    return list(flat.split([len(each) for each in prompts]))


def _behind_prompts(model: ImageModel, network: nn.Module, rows: Sequence[Branch]) -> Tensor:
    """Embeddings of all that stands behind the prompts and predicts something, row by row."""
    tokens_RN = sent(torch.stack([row.tokens_N for row in rows]), model.device)
    images_RNd = model.embed_image(network, tokens_RN[:, :-1])
    if not any(len(row.own_L) for row in rows):
        return images_RNd.flatten(0, 1)
    own = _embedded(model, network, [row.own_L for row in rows])
    return torch.cat([each for row in zip(own, images_RNd, strict=True) for each in row])


def _read_plainly(model: ImageModel, network: nn.Module, rows: Sequence[Branch], behind: Sequence[Tensor]) -> Tensor:
    prompts = _embedded(model, network, [row.prompt_T for row in rows])
    x_RWd = pad_sequence([torch.cat(each) for each in zip(prompts, behind, strict=True)], batch_first=True)
    # Padded on the right, where no token that counts looks.
    hidden_RWd = model.language_model(network)(inputs_embeds=x_RWd, use_cache=False).last_hidden_state
    firsts = [len(row.prompt_T) - 1 for row in rows]
    return torch.cat([hidden_RWd[r, first : first + rows[r].predicted] for r, first in enumerate(firsts)])


def _draw_plainly(model: ImageModel, prompts_R: Sequence[Tensor], choose: Choose) -> list[Drawn]:
    from transformers import DynamicCache

    network, device = model.network, model.device
    width = max(len(each) for each in prompts_R)
    ids_RT = sent(torch.stack([torch.cat([each.new_zeros(width - len(each)), each]) for each in prompts_R]), device)
    mask_RW = sent(torch.stack([torch.arange(width) >= width - len(each) for each in prompts_R]).long(), device)
    language: Any = model.language_model(network)
    cache, found, rows_R = DynamicCache(), list[Drawn](), torch.arange(len(prompts_R))
    x = model.embed_text(network, ids_RT)
    for number in range(model.num_image_tokens):
        # Of the new columns alone: positions count from a row's first token, and what pads has that of the first.
        position = (mask_RW.cumsum(1) - 1)[:, -x.shape[1] :].clamp(min=0)
        given = {"attention_mask": mask_RW, "position_ids": position, "past_key_values": cache, "use_cache": True}
        hidden_Rd = language(inputs_embeds=x, **given).last_hidden_state[:, -1]
        token_R, logp_R, kept = choose(hidden_Rd, number, rows_R)
        found.append(Drawn(token_R, logp_R, kept, rows_R))
        x = model.embed_image(network, token_R)[:, None]
        mask_RW = torch.cat([mask_RW, mask_RW.new_ones(len(mask_RW), 1)], 1)
    return found
