"""A vision-language model of transformers with its processor: prompts in, readings, batches and texts out.

Axes: B rows, P prompts, T tokens of a prompt, S tokens of an answer, W = T + S of the longest row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import sent
from trainer.config import ConfigError
from trainer.config.network import LanguageSettings
from trainer.policies.tokens.conversations import IMAGE_MARK
from trainer.policies.tokens.draw import Reading
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor
from trainer.policies.tokens.preparing import computing
from trainer.policies.tokens.readings import KEPT_BYTES, KeptReadings
from trainer.types import Prompt, Turn

_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # as Pillow raises of damaged files
# Ends of the names of tokens that stand for an image, a part or the frame of one, in the tokenizers of the known families.
_PLACEHOLDER = re.compile(
    r"<\|?(?:image|video|audio|img|vision|global[-_]image|global-img|fake_token_around_image|image_soft_token|"
    r"row_\d+_col_\d+)[\w|-]*>|<\|?(?:start|end|begin)_of_(?:image|audio|video)\|?>|\[IMG(?:_BREAK|_END)?\]",
    re.IGNORECASE,
)


class TokenModel:
    """The networks of a policy that writes.

    Attributes:
        network: the model, or the model with adapters around it.
        banned_N: ids that can never be drawn: those that stand for an image, those that pad, and those that have no text.
        ends: ids that end an answer.
        image_ids: ids that stand for an image or a video where the network reads them.
        about: a paragraph for the report.
    """

    def __init__(
        self, network: nn.Module, processor: Any, config: LanguageSettings, device: torch.device, *, about: str
    ) -> None:
        self.network, self.processor, self.config, self.device, self.about = network, processor, config, device, about
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.ends, self.image_ids = _ends(network, self.tokenizer), _image_ids(network)
        self.banned_N = torch.tensor(_banned(network, self.tokenizer, self.ends), dtype=torch.int64)
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        self._kept = KeptReadings(KEPT_BYTES)

    def computing(self) -> AbstractContextManager[None]:
        """The context that the network is called in: its type, and blocks computed twice where the configuration says so."""
        return computing(self.network, self.config, self.device)

    @property
    def generate(self) -> Callable[..., Tensor]:
        """transformers' own `generate` of the network."""
        network: Any = self.network
        found: Callable[..., Tensor] = network.generate
        return found

    def read(self, prompt: Prompt) -> Reading:
        """The prompt as the network takes it, ready for an answer. What was read is kept, as far as there is room: processors
        cost a small model as much as a tenth of its step.

        Raises:
            ConfigError: its images cannot be read, are too many, do not fit its marks, or it is too long; it is named.
        """
        key = (prompt.text, tuple(prompt.source_images))
        if (kept := self._kept.get(key)) is not None:
            return kept
        where = f"prompt {prompt.id!r} of data set {prompt.dataset!r}" + (f" ({prompt.place})" if prompt.place else "")
        turns = [Turn("user", prompt.text)]
        if self.config.system_prompt is not None:
            turns.insert(0, Turn("system", self.config.system_prompt))
        return self._kept.keep(key, self.read_turns(where, turns, prompt.source_images))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone, without those that the tokenizer puts around a whole one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, tokens_S: Tensor) -> str:
        """The text of an answer, without the tokens that only frame it."""
        return str(self.tokenizer.decode(tokens_S.tolist(), skip_special_tokens=True)).strip()

    def collate(self, readings: Sequence[Reading], answers: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """A batch of the network's own inputs, on its device; see `gathered`."""
        return {name: sent(tensor, self.device) for name, tensor in self.gathered(readings, answers).items()}

    def gathered(self, readings: Sequence[Reading], answers: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """A batch of the network's own inputs, on the CPU.

        Prompts alone are padded on the left, where writing goes on at the right end of every row; prompts with answers on the
        right, so that no row's positions depend on its neighbours.
        """
        if answers is None:
            width = max(len(each.ids_T) for each in readings)
            rows = [
                torch.cat([each.ids_T.new_full((width - len(each.ids_T),), self.pad_id), each.ids_T])
                for each in readings
            ]
            ids, kept = torch.stack(rows), [torch.arange(width) >= width - len(each.ids_T) for each in readings]
        else:
            rows = [torch.cat([each.ids_T, answer]) for each, answer in zip(readings, answers, strict=True)]
            ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
            kept = [torch.arange(ids.shape[1]) < len(row) for row in rows]
        batch = {"input_ids": ids, "attention_mask": torch.stack(kept).long(), **joined_inputs(readings)}
        if "mm_token_type_ids" in batch:  # up to the last image; an answer is text, and so is what pads
            batch["mm_token_type_ids"] = _beside(readings, ids.shape[1], left=answers is None)
        return batch

    def read_turns(self, where: str, turns: Sequence[Turn], paths: Sequence[str]) -> Reading:
        """Turns with their images, ready for an answer. `where` names them. Raises ConfigError as `read` does."""
        if len(paths) > self.config.max_images:
            raise ConfigError(
                f"{where} has {len(paths)} images, and policy.max_images = {self.config.max_images}; raise it, or leave the "
                "row out"
            )
        text = self.rendered(where, turns, len(paths), is_asked=True)
        ids_T, made = self.processed(where, text, paths)
        if len(ids_T) > self.config.max_prompt_tokens:
            of_images = int(torch.isin(ids_T, torch.tensor(_image_ids(self.network))).sum())
            raise ConfigError(
                f"{where} has {len(ids_T)} tokens, {of_images} of them of its images, and policy.max_prompt_tokens = "
                f"{self.config.max_prompt_tokens}: nothing is cut, because an image cannot be; raise it, or leave the row out"
            )
        return Reading(ids_T, made, text, tuple(paths))

    def processed(self, where: str, text: str, paths: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """A text with its images as the processor makes it: ids (T,), and what else it makes. Raises ConfigError naming `where`."""
        images = [open_image(where, path) for path in paths]
        given = {"images": [images]} if images else {}
        try:
            made = dict(self.processor(text=[text], return_tensors="pt", **given))
        except ValueError as error:
            raise ConfigError(f"{where} cannot be read by the model's processor: {error}") from error
        made.pop("attention_mask")
        return made.pop("input_ids")[0], made

    def rendered(self, where: str, turns: Sequence[Turn], num_images: int, *, is_asked: bool) -> str:
        """Turns as the chat template writes them, an image as its mark.

        Args:
            is_asked: with the beginning of an answer.

        Raises:
            ConfigError: there is no chat template, or it refuses such turns; the images do not fit their marks; or a text has a
                token that stands for an image.
        """
        self._refuse_placeholders(where, turns)
        messages = _messages(where, turns, num_images)
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=is_asked, tokenize=False))
        except ValueError as error:
            raise ConfigError(
                f"policy.pretrained = {self.config.pretrained} has no chat template, without which no turn can be told from "
                f"another: add chat_template.jinja to the folder ({error})"
            ) from error
        except (
            TemplateError,
            TypeError,
        ) as error:  # templates are programs: some have no system turn, some take texts alone
            roles = ", ".join(turn.role for turn in turns)
            has_system = any(turn.role == "system" for turn in turns)
            raise ConfigError(
                f"{where}: the chat template of policy.pretrained = {self.config.pretrained} does not take these turns ({roles}): "
                f"{error}; {'leave out policy.system_prompt, or the system turn, or ' if has_system else ''}correct the folder's "
                "chat_template.jinja"
            ) from error

    @property
    def longest(self) -> int | None:
        """Tokens of prompt and answer together that a nanoVLM model has positions for; None of any other model."""
        return self.processor.longest if isinstance(self.processor, NanoVlmProcessor) else None

    def check_length(self, reading: Reading, count: int) -> None:
        """Raises ConfigError where a prompt and `count` tokens behind it leave the positions that a nanoVLM model has."""
        longest = self.longest
        if longest is not None and len(reading.ids_T) + count > longest:
            raise ConfigError(
                f"a prompt of {len(reading.ids_T)} tokens with {count} behind it ({reading.text[:40]!r}) is longer than "
                f"lm_max_position_embeddings = {longest}, beyond which nanoVLM stretches its positions: set "
                f"policy.max_prompt_tokens to {max(longest - count, 1)}, or shorten what follows"
            )

    def _refuse_placeholders(self, where: str, turns: Sequence[Turn]) -> None:
        """A processor would take what stands for an image as one that is not there. nanoVLM's leaves it out, as nanoVLM does."""
        names = {self.tokenizer.convert_ids_to_tokens(each) for each in _image_ids(self.network)} - {IMAGE_MARK, None}
        for name in () if isinstance(self.processor, NanoVlmProcessor) else sorted(names):
            if any(name in turn.text for turn in turns):
                raise ConfigError(
                    f"{where} has {name} in its text, which stands for an image in this model; write {IMAGE_MARK} where an image "
                    "is to be shown, or take it out"
                )


def joined_inputs(readings: Sequence[Reading]) -> dict[str, Tensor]:
    """What processors make beside ids, for several rows together.

    Most families put the images of all rows one after the other on the first axis. Idefics3 and its kin have an axis of rows
    and one of a row's images: there rows with fewer images are padded with zeros, which these models take for none. LLaVA's kin
    have an axis of images and one of an image's tiles, which `image_sizes` counts: there images of fewer tiles are padded.
    """
    of_tiles = any("image_sizes" in each.inputs for each in readings)
    names = dict.fromkeys(name for each in readings for name in each.inputs)
    joined = {}
    for name in names:
        if name == "mm_token_type_ids":
            joined[name] = next(each.inputs[name] for each in readings if name in each.inputs)
            continue
        given = [each.inputs[name] for each in readings if name in each.inputs]
        if of_tiles or not _has_rows(name, given[0]):
            joined[name] = _one_after_the_other(given)
            continue
        most = [max(each.shape[axis] for each in given) for axis in range(1, given[0].dim())]
        rows = given[0].new_zeros((len(readings), *most))
        for row, each in enumerate(readings):
            if name in each.inputs:
                tensor = each.inputs[name][0]
                place = tuple(slice(0, size) for size in tensor.shape)
                rows[row][place] = tensor
        joined[name] = rows
    return joined


def _one_after_the_other(given: Sequence[Tensor]) -> Tensor:
    """Joined on the first axis; what is shorter on the others is padded with zeros behind."""
    most = [max(each.shape[axis] for each in given) for axis in range(1, given[0].dim())]
    joined = given[0].new_zeros((sum(len(each) for each in given), *most))
    for each, place in zip(given, joined.split([len(each) for each in given]), strict=True):
        place[tuple(slice(0, size) for size in each.shape)] = each
    return joined


def _has_rows(name: str, tensor: Tensor) -> bool:
    """Whether the first axis is that of rows: (1, images, channels, height, width), or its mask without channels."""
    return (name == "pixel_values" and tensor.dim() == 5) or (name == "pixel_attention_mask" and tensor.dim() == 4)


def _beside(readings: Sequence[Reading], width: int, *, left: bool) -> Tensor:
    """(B, width): which tokens are an image's, as the processor says, and 0 (text) for all others."""
    rows = torch.zeros(len(readings), width, dtype=torch.int64)
    for row, each in enumerate(readings):
        if "mm_token_type_ids" in each.inputs:
            length = each.inputs["mm_token_type_ids"].shape[1]  # that of ids_T, but where images come later
            place = slice(width - length, width) if left else slice(0, length)
            rows[row, place] = each.inputs["mm_token_type_ids"][0]
    return rows


def _messages(where: str, turns: Sequence[Turn], count: int) -> list[dict[str, Any]]:
    """Turns as chat templates take them, with each image where its mark is; without marks before the first user turn."""
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if marks and marks != count:
        raise ConfigError(
            f"{where} has {marks} {IMAGE_MARK} marks and {count} images; give as many of one as of the other, or no mark"
        )
    waiting, messages = 0 if marks else count, []
    for turn in turns:
        content: list[dict[str, str]] = []
        if turn.role == "user" and waiting:
            content += [{"type": "image"}] * waiting
            waiting = 0
        for number, piece in enumerate(turn.text.split(IMAGE_MARK)):
            if number:
                content.append({"type": "image"})
            if piece:
                content.append({"type": "text", "text": piece})
        messages.append({"role": turn.role, "content": content})
    if waiting:
        raise ConfigError(f"{where} has {count} images, and no user turn that could show them")
    return messages


def open_image(where: str, path: str) -> Image.Image:
    """The image as the processor takes it: turned as the file says, in RGB. Raises ConfigError naming `where`."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except _BROKEN as error:
        raise ConfigError(f"{where}: its image {path} cannot be read ({error})") from error


def _ends(network: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the model's own first, then the tokenizer's."""
    own = network.generation_config.eos_token_id if network.generation_config is not None else None
    found = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    ends = list(dict.fromkeys(each for each in found if each is not None))
    if not ends:
        raise ConfigError("policy.pretrained: neither the model nor its tokenizer names a token that ends an answer")
    return ends


def _image_ids(network: Any) -> list[int]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = [getattr(network.config, name, None) for name in names]
    return [each for each in found if isinstance(each, int)]


def _banned(network: Any, tokenizer: Any, ends: Sequence[int]) -> list[int]:
    """Ids that must never be drawn. A placeholder in an answer would ask for an image that is not there, and stop the run."""
    placeholders = [i for i, name in _special(tokenizer).items() if _PLACEHOLDER.fullmatch(name)]
    padding = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    # An embedding often has more rows than the tokenizer has texts; what has no text cannot be an answer.
    rows = network.get_output_embeddings().weight.shape[0]
    nameless = list(range(len(tokenizer), rows))
    banned = {*placeholders, *_image_ids(network), *padding, *nameless} - set(ends)
    return sorted(each for each in banned if each < rows)


def _special(tokenizer: Any) -> Mapping[int, str]:
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
