"""Held-out prompts must be new to training: what the two have in common is found, and left out of training or refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.config import Config, RewardsConfig
from trainer.config.data import PromptFileConfig
from trainer.data.prompts import DataError, Split, is_own
from trainer.data.prompts.stored import suspects
from trainer.data.same_images import SameImages, normalised, normalised_targets
from trainer.types import Prompt

MayShare = Literal["nothing", "targets"]
SUPERVISED = "sft"
PREFERENCES = "preferences"
FILE = "left_out.jsonl"  # in the run's folder
_SHOWN = 3
_OCR_REWARDS = ("multi", "flow_grpo", "strict", "deepgen_new")  # of services/ocr
_RULES_WITHOUT_TARGETS = ("color_match", "jpeg_compressibility", "jpeg_incompressibility")


@dataclass(frozen=True)
class Overlap:
    """A training prompt and the held-out one that it has something in common with.

    Attributes:
        what: `same id`, `same prompt` or `same targets`.
        value: the id, the text or the targets, as they were compared.
        is_own: both are from files of our own formats, whose author can take the prompt out of one of them.
    """

    train: Prompt
    heldout: Prompt
    what: str
    value: str
    is_own: bool = True

    def __str__(self) -> str:
        return f"{self.what} {self.value!r}: held-out {self.heldout.id!r}, {self.train.id!r} of data set {self.train.dataset!r}"


@dataclass(frozen=True)
class Settled:
    """What becomes of the prompts that training and evaluation have in common.

    Attributes:
        left_out: not trained on.
        allowed: trained on although they are held out, as `data.overlap: allow` says.
    """

    left_out: tuple[Overlap, ...] = ()
    allowed: tuple[Overlap, ...] = ()

    def ids(self) -> frozenset[str]:
        """Ids of the training prompts that are left out."""
        return frozenset(each.train.id for each in self.left_out)

    def texts(self) -> frozenset[str]:
        """Texts of the training prompts that are left out."""
        return frozenset(each.train.text for each in self.left_out)

    def sentence(self, num_train: int, listing: Path | None = None) -> str | None:
        """What is said of it; None where there is nothing to say.

        Args:
            num_train: training prompts, those included.
            listing: the file that names all.
        """
        found = self.left_out or self.allowed
        if not found:
            return None
        sets = ", ".join(f"{name} {count}" for name, count in Counter(each.train.dataset for each in found).items())
        what = (
            "are left out of training, so that the evaluation does not measure memory (data.overlap)"
            if self.left_out
            else "stay, as data.overlap: allow says: the evaluation measures memory, too"
        )
        where = f"; all are in {listing}" if listing is not None and len(found) > 1 else ""
        return f"{len(found)} of {num_train} training prompts are also held out and {what}: {sets}; the first: {found[0]}{where}"

    def listing(self) -> str:
        """JSON lines, an object for each training prompt that is left out."""
        rows = (
            {
                "dataset": each.train.dataset,
                "id": each.train.id,
                "prompt": each.train.text,
                "why": each.what,
                "heldout_dataset": each.heldout.dataset,
                "heldout_id": each.heldout.id,
            }
            for each in self.left_out
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_disjoint(
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
    *,
    may_share: MayShare = "nothing",
    reads_targets: Callable[[Prompt], bool] = lambda _: True,
) -> None:
    """Held-out prompts must be new: no id, no text (up to case, width and spaces), no set of targets of training.

    Args:
        may_share: `targets` admits equal targets in other prompts, for data whose words are meant to come again.
        reads_targets: whether a reward of this training prompt looks for its targets; otherwise they are not compared.

    Raises:
        DataError: naming the first overlaps and their number.
    """
    _refuse(find_overlaps(train, heldout, may_share=may_share, reads_targets=reads_targets), len(heldout))


def find_overlaps(
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
    *,
    may_share: MayShare = "nothing",
    reads_targets: Callable[[Prompt], bool] = lambda _: True,
) -> list[Overlap]:
    """Every training prompt that a held-out one has something in common with, as `check_disjoint` compares them."""
    known: dict[tuple[str, str], Prompt] = {}
    for prompt in heldout:
        for key in _keys(prompt, with_targets=may_share != "targets"):
            known.setdefault(key, prompt)
    asked = SameImages(heldout)
    found: list[Overlap] = []
    for prompt in suspects(train, heldout):
        same = []
        for side in prompt.sides or (prompt,):  # a pair is left out when either side is held out
            keys = _keys(side, with_targets=may_share != "targets" and reads_targets(side))
            if (other := asked.find(side)) is not None:
                names = [Path(image).name for image in side.source_images]
                same.append(Overlap(prompt, other, "same prompt", " | ".join([normalised(side.text), *names])))
            same += [Overlap(prompt, known[key], *key) for key in keys if key in known]
        found += same[:1]
    return found


def settle(config: Config, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Settled:
    """Compare training and held-out prompts and do as `data.overlap` says.

    Args:
        train: with the texts of a supervised loss, whose data set is called `SUPERVISED`.

    Raises:
        DataError: they overlap, and that is refused.
    """
    readers, draws = readers_of_targets(config.rewards), config.sampling.type != "tokens"
    found = find_overlaps(
        train,
        heldout,
        may_share=config.evaluation.may_share,
        # Answers come again in other questions; only texts that are to be drawn are what a prompt is about.
        reads_targets=lambda prompt: draws and any(prompt.weights.get(name) for name in readers),
    )
    if config.data.overlap == "allow":
        return Settled(allowed=tuple(found))
    own_train, own_heldout = _own_sets(config)
    marked = [
        Overlap(o.train, o.heldout, o.what, o.value, o.train.dataset in own_train and o.heldout.dataset in own_heldout)
        for o in found
    ]
    if config.data.overlap == "refuse":
        _refuse(marked, len(heldout))
    if config.data.overlap == "auto":
        _refuse([each for each in marked if each.is_own], len(heldout))
    return Settled(left_out=tuple(marked))


def _refuse(found: Sequence[Overlap], num_heldout: int) -> None:
    if not found:
        return
    listed = "\n  ".join(str(each) for each in found[:_SHOWN])
    words = (
        " Where words are meant to come again, `evaluation.may_share: targets` admits equal targets."
        if any(each.what == "same targets" for each in found)
        else ""
    )
    raise DataError(
        f"{len({each.heldout.id for each in found})} of {num_heldout} held-out prompts are also in the training data, so the "
        "evaluation would measure memory; take them out of one of the two files, or set `data.overlap: drop` to leave "
        f"{len(found)} training prompts out.{words} The first:\n  {listed}"
    )


def _own_sets(config: Config) -> tuple[set[str], set[str]]:
    """Names of the training sets, that of a supervised loss among them, and of the held-out sets whose files are of our own
    formats. The sets of DeepGen-RL's evaluation file are not among them."""
    evaluation = config.evaluation
    train = {SUPERVISED, PREFERENCES} | {
        each.dataset_name for each in config.data.train if _is_own(each, each.path, "train")
    }
    heldout = {each.name for each in evaluation.sets if _is_own(each, each.path, "test")}
    if evaluation.path is not None and is_own(evaluation.path, "test"):
        heldout.add(Path(evaluation.path).stem)
    return train, heldout


def _is_own(how: PromptFileConfig, path: str, split: Split) -> bool:
    return how.format not in ("questions", "pairs") and is_own(
        path, split, format=how.format, prompt_column=how.prompt_column, delimiter=how.delimiter
    )


def readers_of_targets(rewards: RewardsConfig) -> frozenset[str]:
    """Names of the columns whose reward may look for a prompt's `targets`.

    These are the OCR service's rewards, under whatever name, and functions of a user's own. A service that is known by
    its URL alone goes by the names: its own, the column's and the reward's.
    """
    found = set()
    for name, column in rewards.columns.items():
        service = rewards.services[column.service]
        names = (name, column.service, column.reward or "")
        if service.module == "rules":
            reads = "functions" in service.args and (column.reward or name) not in _RULES_WITHOUT_TARGETS
        elif service.module is not None:
            reads = service.module == "ocr"
        else:
            reads = column.reward in _OCR_REWARDS or any("ocr" in each.lower() for each in names)
        if reads:
            found.add(name)
    return frozenset(found)


def _keys(prompt: Prompt, *, with_targets: bool) -> list[tuple[str, str]]:
    # One question or instruction may be given for many images: with images, `SameImages` compares.
    keys = [] if prompt.source_images else [("same prompt", normalised(prompt.text))]
    keys.append(("same id", prompt.id))
    if prompt.targets and with_targets and prompt.task != "understand":  # answers come again in other questions
        keys.append(("same targets", normalised_targets(prompt.targets)))
    return keys
