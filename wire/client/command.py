"""`rewards score URL IMAGE...`: what a reward service says about images, as a table or as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wire.client.client import RewardClient
from wire.client.errors import RewardClientError
from wire.client.rows import Row, Scores

ALL_SCORED, SOME_FAILED, WRONG_ARGUMENTS, NO_ANSWER = 0, 1, 2, 3
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FIELDS = ("prompt", "image", "targets", "completion", "group_id", "metadata")
_EPILOG = """\
prompts: a text file has a prompt a line, for each image in turn. A .jsonl file has an object a line: prompt, and where
wanted image (a file in the folder that is named, or beside the .jsonl), targets, completion, group_id, metadata.

exit status: 0 every item has a score, 1 some have none, 2 wrong arguments, 3 the service could not be asked."""


@dataclass(frozen=True)
class Asked:
    """One item of the command line."""

    image: Path | None
    prompt: str = ""
    targets: Sequence[str] | None = None
    completion: str | None = None
    group_id: str | None = None
    metadata: Mapping[str, Any] | None = None


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score images, or texts, with a reward service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="the service's base URL, such as http://127.0.0.1:18082")
    parser.add_argument("images", nargs="*", type=Path, default=[], help="PNG, JPEG or WebP files, or folders of them")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", help="the prompt of every image")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl")
    parser.add_argument("--reward", help="which of the service's rewards; its default otherwise")
    parser.add_argument("--target", action="append", dest="targets", help="a text to look for; repeatable")
    parser.add_argument("--group", action="store_true", help="all images are one group, for rewards that compare")
    parser.add_argument("--token-file", type=Path, help="a file whose first line is the token, or name:token")
    parser.add_argument("--ca-file", type=Path, help="authorities (PEM) to believe over https beside the public ones")
    parser.add_argument("--deadline-s", type=float, default=300.0, help="seconds for all of it (default: 300)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line in place of the table")
    return parser


def score(argv: Sequence[str] | None = None, prog: str = "rewards score") -> int:
    """Run the command; returns its exit status. Exits with 2 and a sentence when the arguments are wrong."""
    parser = build_parser(prog)
    options = parser.parse_args(argv)
    try:
        asked = read_asked(options)
        token = None if options.token_file is None else read_token(options.token_file)
        client = RewardClient(options.url, token=token, ca_file=options.ca_file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with client:
        try:
            scores = client.score(
                [() if each.image is None else each.image for each in asked],
                [each.prompt for each in asked],
                reward=options.reward,
                completions=[each.completion for each in asked],
                targets=[each.targets for each in asked],
                groups=["all" if options.group else each.group_id for each in asked],
                metadata=[each.metadata or {} for each in asked],
                deadline_s=options.deadline_s,
            )
        except RewardClientError as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return NO_ANSWER
        except ValueError as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            print(f"{prog}: stopped", file=sys.stderr)
            return 130
    lines = (
        [_json(each, row) for each, row in zip(asked, scores, strict=True)] if options.json else table(asked, scores)
    )
    print("\n".join(lines))
    print(_summary(scores), file=sys.stderr)
    return SOME_FAILED if scores.failed else ALL_SCORED


def read_asked(options: argparse.Namespace) -> list[Asked]:
    """The items that the arguments name. Raises ValueError and OSError."""
    rows = None if options.prompts is None else _read_prompts(options.prompts)
    if rows is not None and any("image" in row for row in rows):
        asked = _named_images(rows, options)
    else:
        images: list[Path | None] = [*_images(options.images)]
        if rows is None:
            rows = [{"prompt": options.prompt or ""}] * len(images)
        if not images and all(row.get("completion") is not None for row in rows):
            images = [None] * len(rows)
        if len(rows) != len(images):
            raise ValueError(
                f"{options.prompts} has {len(rows)} prompts and there are {len(images)} images: one for each is needed"
            )
        asked = [_asked(row, image) for row, image in zip(rows, images, strict=True)]
    if not asked:
        raise ValueError(
            "there is nothing to score: name images or a folder, or give --prompts a .jsonl with completions"
        )
    if options.targets:
        asked = [
            Asked(each.image, each.prompt, options.targets, each.completion, each.group_id, each.metadata)
            for each in asked
        ]
    return asked


def _named_images(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[Asked]:
    """The rows' own images, in the folder that is named or beside the file of prompts."""
    if len(options.images) > 1 or (options.images and not options.images[0].is_dir()):
        raise ValueError(f"{options.prompts} names its images: give the one folder that they are in, or none")
    folder = options.images[0] if options.images else options.prompts.parent
    missing = next((number for number, row in enumerate(rows, 1) if "image" not in row), None)
    if missing is not None:
        raise ValueError(f"{options.prompts}, line {missing}: no image, and other lines name theirs: all do, or none")
    return [_asked(row, folder / str(row["image"])) for row in rows]


def _asked(row: Mapping[str, Any], image: Path | None) -> Asked:
    named = {key: value for key, value in row.items() if key != "image"}
    return Asked(image, **named)


def _images(given: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in _SUFFIXES)
            if not inside:
                raise ValueError(f"{path} holds no image ({', '.join(_SUFFIXES)})")
            found += inside
        else:
            found.append(path)
    return found


def _read_prompts(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines()
    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or (strange := set(row) - set(_FIELDS)):
            what = "not an object" if not isinstance(row, dict) else f"no field {min(strange)!r}"
            raise ValueError(f"{path}, line {number}: {what}; there are: {', '.join(_FIELDS)}")
        rows.append(row)
    return rows


def read_token(path: Path) -> str:
    """The first token of a file such as the services read: `token` or `name:token`, its limits left out. Raises ValueError."""
    for line in path.read_text("utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            _, colon, rest = line.partition(":")
            words = (rest if colon else line).split()
            if words:
                return words[0]
    raise ValueError(f"{path} holds no token: its first line is the token, or name:token")


def table(asked: Sequence[Asked], scores: Scores) -> list[str]:
    """A line for each item: what it is called, its score, and its parts or why it has none."""
    names = [_name(each, number) for number, each in enumerate(asked)]
    width = max([len("item"), *map(len, names)])
    lines = [f"{'item':{width}}  {'score':>10}"]
    for name, row in zip(names, scores, strict=True):
        lines.append(f"{name:{width}}  {_number(row.score):>10}  {_remark(row)}".rstrip())
    return lines


def _name(asked: Asked, number: int) -> str:
    return f"item {number}" if asked.image is None else asked.image.name


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _remark(row: Row) -> str:
    if row.score is None:
        return _line(f"{row.code}: {row.message}")
    return _line("  ".join(f"{name} {_number(value)}" for name, value in row.components.items()))


def _line(text: str) -> str:
    """A service's words on one line, without what a terminal would take for a command."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def _json(asked: Asked, row: Row) -> str:
    tree: dict[str, Any] = {
        "image": None if asked.image is None else str(asked.image),
        "prompt": asked.prompt,
        "score": row.score,
    }
    if row.score is None:
        tree |= {"code": row.code, "message": row.message}
    return json.dumps(tree | {"components": dict(row.components), "details": dict(row.details)}, ensure_ascii=False)


def _summary(scores: Scores) -> str:
    count = len(scores) - len(scores.failed)
    by = "" if scores.scorer is None else f" by {scores.scorer.name}, revision {scores.scorer.revision}"
    return _line(f"{count} of {len(scores)} scored{by}")
