"""The model with its heads on one device. Axes: N items, L tokens, E features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from services.kit.models.sources import SourceError
from services.kit.models.tensors import read_tensors
from services.regression.inputs import InputMaker, Inputs
from services.regression.recipe import Recipe

State = dict[str, torch.Tensor]
_EMBEDDINGS = "language_model.embed_tokens.weight"


class RegressionModel:
    """Numbers for inputs. Not thread-safe.

    backbone: folder with config, tokenizer and image settings of the model that was trained further.
    weights: the trained model with its heads, in one file, under the keys of any release of transformers.
    Raises SourceError.
    """

    def __init__(
        self, backbone: Path, weights: Path, recipe: Recipe, device: torch.device, dtype: Literal["bf16", "fp32"]
    ) -> None:
        from transformers import MODEL_MAPPING, AutoConfig

        try:
            config = AutoConfig.from_pretrained(backbone, local_files_only=True)
        except (OSError, ValueError) as error:
            raise SourceError(f"--backbone {backbone}: config.json cannot be read ({error})") from error
        state, heads = _sort(read_tensors(weights), recipe, weights)
        # The published weights have rows for the tokens that were added to the vocabulary.
        config.text_config.vocab_size = len(state[_EMBEDDINGS])
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        # Not typed for weights that are given instead of a path.
        model_class: Any = MODEL_MAPPING[type(config)]
        model, found = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=kind, output_loading_info=True
        )
        wrong = sorted(map(str, [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]))
        if wrong:
            raise SourceError(f"{weights}: {len(wrong)} tensors do not fit --backbone {backbone}, such as {wrong[0]}")
        self._model: Any = model.to(device).train(False).requires_grad_(False)
        self._heads = [[(w.float().to(device), b.float().to(device)) for w, b in head] for head in heads]
        self._recipe, self._device = recipe, device
        self.inputs = InputMaker(backbone, config, recipe.reward_token)
        if self.inputs.added_id is not None and self.inputs.added_id >= len(state[_EMBEDDINGS]):
            raise SourceError(
                f"{weights}: has {len(state[_EMBEDDINGS])} embeddings, and {recipe.reward_token} is token "
                f"{self.inputs.added_id}: the tokenizer of --backbone {backbone} is another one"
            )

    @torch.inference_mode()
    def numbers(self, batch: Sequence[Inputs], head: int) -> list[float]:
        """One number for each of N inputs, by one of the recipe's heads."""
        length = max(len(each.ids) for each in batch)

        def padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
            return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=value) for row in rows])

        ids = padded([each.ids for each in batch], self.inputs.pad_id).to(self._device)
        mask = padded([torch.ones_like(each.ids) for each in batch], 0).to(self._device)
        sequential = torch.arange(length, device=self._device).expand(3, len(batch), length)
        hidden = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=sequential if self._recipe.positions == "sequential" else None,
            pixel_values=torch.cat([each.pixels for each in batch]).to(self._device, self._model.dtype),
            image_grid_thw=torch.cat([each.grids for each in batch]).to(self._device),
            mm_token_type_ids=padded([each.kinds for each in batch], 0).to(self._device),
            use_cache=False,
        ).last_hidden_state
        rows_NE = hidden[torch.arange(len(batch)), self._places(batch)].float()
        layers = self._heads[head]
        for number, (weight, bias) in enumerate(layers):
            rows_NE = torch.nn.functional.linear(rows_NE, weight, bias)
            if number + 1 < len(layers):
                rows_NE = rows_NE.relu()
        return [float(value) for value in rows_NE[:, self._recipe.output]]

    def _places(self, batch: Sequence[Inputs]) -> list[int]:
        """Where the features are read: the reward token, which the text must hold once, or the last token."""
        if self.inputs.added_id is None:
            return [len(each.ids) - 1 for each in batch]
        places = [(each.ids == self.inputs.added_id).nonzero()[:, 0].tolist() for each in batch]
        if wrong := next((found for found in places if len(found) != 1), None):
            raise ValueError(f"{self._recipe.reward_token} is {len(wrong)} times in the text; it must be there once")
        if any(not found for found in places):
            raise ValueError(f"the template has no {self._recipe.reward_token}, where the score is read")
        return [found[0] for found in places]


def _sort(state: State, recipe: Recipe, path: Path) -> tuple[State, list[list[tuple[torch.Tensor, torch.Tensor]]]]:
    """The backbone's tensors under today's keys, and each head's linear layers in order."""
    heads = []
    for name in recipe.heads:
        numbers = sorted(
            int(match[1]) for key in state if (match := re.fullmatch(rf"{re.escape(name)}\.(\d+)\.weight", key))
        )
        if not numbers:
            raise SourceError(f"{path}: there is no head {name} among its {len(state)} tensors")
        layers = []
        for number in numbers:
            weight = state[f"{name}.{number}.weight"]
            layers.append((weight, state.get(f"{name}.{number}.bias", torch.zeros(len(weight)))))
        if recipe.output >= len(layers[-1][0]):
            raise SourceError(f"{path}: head {name} gives {len(layers[-1][0])} numbers; output {recipe.output} is none")
        heads.append(layers)
    first = tuple(f"{name.split('.')[0]}." for name in recipe.heads)
    kept = {_today(key): value for key, value in state.items() if not key.startswith((*first, "lm_head."))}
    if _EMBEDDINGS not in kept:
        raise SourceError(f"{path}: has no embeddings of a vision-language model ({len(kept)} tensors beside the head)")
    return kept, heads


def _today(key: str) -> str:
    """The key of the model without its language head, from the layouts before and since transformers 4.52."""
    key = key.removeprefix("model.")
    if key.startswith(("language_model.", "visual.")):
        return key
    return f"language_model.{key}"
