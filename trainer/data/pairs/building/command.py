"""`python -m trainer build-pairs`: captions, questions and features in, a file of pairs out."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.pairs.building.features import Features, load_features, normalised, write_features
from trainer.data.pairs.building.matching import Match, aligned, retrieved, shuffled
from trainer.data.pairs.building.sources import Kind, Picture, Source, merged, read_source
from trainer.data.pairs.building.summary import Built, missing, summary
from trainer.data.prompts.checks import DataError

_DIGITS = 6  # of a similarity in the file


def build_pairs(args: argparse.Namespace) -> str:
    """Write the file, and return what is to be said of it.

    Raises:
        DataError: an input that cannot be used, a file that is there already, or no pair.
    """
    _check(args)
    captions = read_source("captions", args.captions, args.captions_image_dir, args.bad_rows)
    questions = read_source("questions", args.questions, args.questions_image_dir, args.bad_rows)
    pictures, more = merged(captions, questions)
    features_Nd = _features(args, pictures, (captions, questions))
    medoids = aligned(pictures, features_Nd, args.aligned, args.seed)
    found = retrieved(
        pictures,
        features_Nd,
        {each.drawn for each in medoids.pairs},
        threshold=args.threshold,
        neighbours=args.neighbours,
    )
    pairs: Sequence[Match] = [*medoids.pairs, *found]
    if args.pairing == "random":
        pairs = shuffled(pairs, features_Nd, args.seed)
    built = Built(pictures, more, medoids, pairs, args.pairing, args.threshold)
    text = summary(built, (captions, questions))
    if not pairs:
        raise DataError(
            f"no pair is made: lower --threshold {args.threshold:g} or raise --aligned {args.aligned}\n{text}"
        )
    _write(args.output, (_row(args.output, built, each) for each in pairs))
    if args.to_complete is not None:
        _write(args.to_complete, (_needs(args.to_complete, pictures[number]) for number in medoids.incomplete))
        text += f"Wrote {args.to_complete}\n"
    return f"{text}Wrote {args.output}"


def _check(args: argparse.Namespace) -> None:
    """What can be said before anything is read."""
    for flag, path in (("--output", args.output), ("--to-complete", args.to_complete)):
        if path is not None and path.exists():
            raise DataError(f"{flag} {path} is there already; name another file, or remove it")
    if not 0 <= args.threshold <= 1:
        raise DataError(f"--threshold {args.threshold:g} must be from 0 to 1, a cosine of features")
    for flag, value, least in (
        ("--neighbours", args.neighbours, 1),
        ("--aligned", args.aligned, 0),
        ("--batch-size", args.batch_size, 1),
        ("--seed", args.seed, 0),
    ):
        if value < least:
            raise DataError(f"{flag} {value} must be at least {least}")
    if args.vision_model is None:
        for flag, path in (
            ("--captions-features", args.captions_features),
            ("--questions-features", args.questions_features),
        ):
            if path is None:
                raise DataError(f"{flag} is missing; give a file of features, or a --vision-model that computes them")


def _features(args: argparse.Namespace, pictures: Sequence[Picture], sources: Sequence[Source]) -> Features:
    """The features of all images, in their order, each of length 1. Raises DataError: of two widths."""
    found: dict[Kind, tuple[list[int], Features]] = {}
    for source in sources:
        places = [place for place, each in enumerate(pictures) if each.source == source.kind]
        if places:
            found[source.kind] = places, _of_source(args, source, [pictures[place].row for place in places])
    widths = {kind: table.shape[1] for kind, (_, table) in found.items()}
    if len(set(widths.values())) > 1:
        said = " and ".join(f"{width} numbers for {kind}" for kind, width in widths.items())
        raise DataError(f"the features have {said}, so they cannot be compared; compute both by one model")
    whole = np.empty((len(pictures), next(iter(widths.values()))), dtype=np.float32)
    for places, table in found.values():
        whole[places] = table
    return whole


def _of_source(args: argparse.Namespace, source: Source, rows: Sequence[int]) -> Features:
    """The features of some rows. A file that is not there yet is written by the vision model, and read by the next start."""
    flag, path = f"--{source.kind}-features", getattr(args, f"{source.kind}_features")
    if args.vision_model is None or (path is not None and path.exists()):
        return load_features(flag, path, source.total, rows)
    from trainer.data.pairs.building.vision import compute_features

    images = list(dict.fromkeys(row.image for row in source.rows))  # several rows may be about one image
    computed = compute_features(
        args.vision_model, images, device=args.device, batch_size=args.batch_size, title=source.kind
    )
    place_of = {image: place for place, image in enumerate(images)}
    table = np.zeros((source.total, computed.shape[1]), dtype=np.float32)  # zeros where a row cannot be used
    for row in source.rows:
        table[row.number] = computed[place_of[row.image]]
    if path is not None:
        write_features(path, table)
    return normalised(f"--vision-model {args.vision_model}", table[np.asarray(rows)])


def _row(output: Path, built: Built, match: Match) -> dict[str, Any]:
    drawn, asked = built.pictures[match.drawn], built.pictures[match.asked]
    assert drawn.caption is not None and asked.question is not None, "matches are made of such"
    # In the file 1 says that both sides are about one image, which no equality of features does.
    most = 1.0 if match.drawn == match.asked else 1.0 - 10.0**-_DIGITS
    return {
        "similarity": round(min(most, max(0.0, match.similarity)), _DIGITS),
        "generate_ann": {"image_path": _relative(output, drawn.image), **drawn.caption},
        "understand_ann": {"image_path": _relative(output, asked.image), **asked.question},
    }


def _needs(output: Path, picture: Picture) -> dict[str, Any]:
    said: Mapping[str, Any] = picture.caption or picture.question or {}
    return {"needs": missing(picture), "image_path": _relative(output, picture.image), **said}


def _relative(output: Path, image: str) -> str:
    """Paths count from the written file's folder, so that the file and its images can be moved together."""
    return os.path.relpath(Path(image).resolve(), output.parent.resolve())


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All of it, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # half a file is of no use to anyone
        raise
