"""Reads a command line as it is typed, or the one in a shell script (`scripts`). Nothing is run."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from trainer.config.base import ConfigError, did_you_mean
from trainer.migration.scripts import Script

Kind = Literal["text", "texts", "whole", "number", "flag"]

_LAUNCHERS = (
    "torchrun",
    "python",
    "python3",
    "accelerate",
    "deepspeed",
    "srun",
    "nohup",
    "env",
    "bash",
    "sudo",
    "numactl",
)
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        default: there.
        fields: ours, dotted; empty where nothing corresponds.
        remark: what differs and why; a phrase.
        kind: of its value; texts takes several, a flag true, false or none.
    """

    default: Any
    fields: tuple[str, ...] = ()
    remark: str = ""
    kind: Kind = "text"


@dataclass(frozen=True)
class CommandLine:
    """What was typed.

    Attributes:
        values: by flag, defaults included.
        given: names of the flags that were typed.
        folders: where its relative paths are looked for, the first first.
        runs_in: the folder that the program runs in, where those count from that are nowhere yet.
        notes: what is to be said of how it was typed.
    """

    program: str
    values: Mapping[str, Any]
    given: frozenset[str]
    folders: Sequence[Path] = field(default_factory=lambda: (Path.cwd(),))
    runs_in: Path = field(default_factory=Path.cwd)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def find(self, name: str) -> Path | None:
        """The file or folder of this name; None where there is none."""
        path = self.home(name) / name
        return path.resolve() if path.exists() else None

    def home(self, name: str) -> Path:
        """The folder that a path counts from: the first where something lies, else the one that the program runs in."""
        return next((folder for folder in self.folders if (folder / name).exists()), self.runs_in)

    def path(self, name: str) -> str:
        """Absolute, whether or not something lies there."""
        return os.path.abspath(self.home(name) / name)


def read_command_line(
    program: str,
    flags: Mapping[str, Flag],
    entry: str,
    arguments: Sequence[str],
    presets: Mapping[str, str] = MappingProxyType({}),
) -> CommandLine:
    """The flags of a command, whether or not it begins with torchrun; or those in a script, where its path alone is given.

    As argparse has it, the beginning of a flag's name will do where one flag alone begins so, --no_x is --x false, and of a flag that
    is given twice the last one counts, which is said.

    Args:
        program: its name, for messages.
        flags: those that it knows.
        entry: the file of Python that it starts, by which the line is found in a script.
        presets: flags that come before those that are typed, by the first word.

    Raises:
        ConfigError: a flag that is not known, with the nearest one, a value of another kind, a first word that is nothing of this, or a
            script without the command.
    """
    folders, runs_in, notes = [Path.cwd()], Path.cwd(), list[str]()
    before: list[str] = []
    first = arguments[0] if arguments else ""
    if first in presets and not Path(first).exists():
        before, arguments = shlex.split(presets[first]), arguments[1:]
    elif len(arguments) == 1 and not first.startswith("-") and (Path(first).exists() or not _near(first, presets)):
        arguments, more, notes = Script(Path(first)).command(entry)
        folders += more
        runs_in = more[-1] if len(more) > 1 else runs_in  # it changes into the last one
    else:
        _check_beginning(program, entry, arguments, presets)
    values, problems = {name: flag.default for name, flag in flags.items()}, list[str]()
    given: set[str] = set()
    for words_given, typed_here in ((before, False), (arguments, True)):
        seen: set[str] = set()
        for typed, words in _split(words_given, entry):
            name = _whole(typed, flags)
            if name in flags:
                value, problem = _value(flags[name], words)
            elif name.startswith("no_") and (name := _whole(name[3:], flags)) in flags and flags[name].kind == "flag":
                value, problem = False, "takes no value" if words else ""
            else:
                problems.append(_unknown(program, typed, flags))
                continue
            problems += [f"--{typed} {problem}"] if problem else []
            if typed_here and name in seen and values[name] != value:
                notes.append(f"--{name} is given twice, {values[name]} and {value}: the last one counts")
            values[name] = value
            seen.add(name)
        given |= seen
    if problems:
        raise ConfigError("\n  ".join([f"the command line of {program} cannot be used:", *problems]))
    return CommandLine(program, values, frozenset(given), tuple(folders), runs_in, tuple(notes))


def _check_beginning(program: str, entry: str, arguments: Sequence[str], presets: Mapping[str, str]) -> None:
    """Raises ConfigError: the words before the first flag are no launcher's, which would be passed over."""
    first = arguments[0] if arguments else "--"
    starts = any(Path(word).name == entry for word in arguments) or Path(first).name in _LAUNCHERS or "=" in first
    if first.startswith("-") or starts:
        return
    names = f"neither a stage ({', '.join(presets)})" if presets else "neither a script"
    raise ConfigError(
        f"{first!r} is {names} nor the beginning of a command line of {program}, which has torchrun or {entry} in it, or begins with a "
        f"flag{_near(first, presets)}"
    )


def _near(word: str, presets: Mapping[str, str]) -> str:
    """The end of a sentence about a word that may be meant for one of these, in whatever case; empty where it is not."""
    same = [name for name in presets if name.lower() == word.lower()]
    return f"; did you mean {same[0]}?" if same else did_you_mean(word, presets)


def _unknown(program: str, typed: str, flags: Mapping[str, Flag]) -> str:
    beginnings = [f"--{name}" for name in flags if typed and name.startswith(typed)]
    if beginnings:
        return f"--{typed} is no flag of {program}, and the beginning of {', '.join(beginnings)}: write one of them out"
    return f"--{typed} is no flag of {program}: {did_you_mean(typed, flags).removeprefix('; ') or 'see --help for those that are'}"


def flag_lines(flags: Mapping[str, Flag]) -> list[str]:
    """Every flag on a line, for --help."""
    return [
        f"  --{name}: becomes {', '.join(flag.fields) or 'nothing'}{f'; {flag.remark}' if flag.remark else ''}"
        for name, flag in flags.items()
    ]


def check_recipe(program: str, flags: Mapping[str, Flag], text: str) -> None:
    """Raises ConfigError, naming the flags, where a recipe of these values would be refused."""
    import yaml

    from trainer.config import Config
    from trainer.config.file import checked

    try:
        checked("the recipe that it becomes", Config, yaml.safe_load(text))
    except ConfigError as error:
        # " optim.betas:" or " optim.betas.0:"
        said = str(error)
        meant = [
            f"--{name}"
            for name, flag in flags.items()
            if any(f" {field}{end}" in said for field in flag.fields for end in (":", ".0:", ".1:"))
        ]
        raise ConfigError(f"{', '.join(meant) or f'the command line of {program}'}: {error}") from error


def gpus_of(line: CommandLine) -> int:
    """In all: as torchrun's flags say, else as the environment does."""
    if {"nproc_per_node", "nnodes"} & line.given:
        return int(line["nproc_per_node"] * line["nnodes"])
    counts = [os.environ.get(name, "1") for name in ("NNODES", "NGPUS")]
    return math.prod(int(each) for each in counts) if all(each.isdigit() for each in counts) else 1


def _whole(typed: str, flags: Mapping[str, Flag]) -> str:
    """The flag that a name begins, if it is one alone; else the name."""
    found = [name for name in flags if name.startswith(typed)]
    return typed if typed in flags or len(found) != 1 else found[0]


def _split(arguments: Sequence[str], entry: str) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words behind it, but the name of the program that torchrun starts."""
    name: str | None = None
    words: list[str] = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            if name is not None:
                yield name, words
            typed, equals, value = word[2:].partition("=")
            name, words = typed.replace("-", "_"), [value] if equals else []
        elif name is not None and word != "-m" and not (word.endswith(".py") and (words or Path(word).name == entry)):
            words.append(word)
    if name is not None:
        yield name, words


def _value(flag: Flag, words: Sequence[str]) -> tuple[Any, str]:
    """The value, and what is wrong with it; empty where nothing is."""
    if flag.kind == "texts":
        return list(words), "" if words else "takes at least one value"
    if flag.kind == "flag":
        if len(words) > 1 or (words and words[0].lower() not in (*_TRUE, *_FALSE)):
            return None, f"{' '.join(words)!r} is neither true nor false"
        return not words or words[0].lower() in _TRUE, ""
    if len(words) != 1:
        return None, f"takes one value, not {len(words)}{': ' if words else ''}{' '.join(words)}"
    if not words[0].strip():
        return None, "has an empty value; give one, or leave the flag out"
    return (words[0], "") if flag.kind == "text" else _number(flag.kind, words[0])


def _number(kind: Kind, word: str) -> tuple[Any, str]:
    try:
        return (int(word) if kind == "whole" else float(word)), ""
    except ValueError:
        return None, f"{word!r} is no {'whole number' if kind == 'whole' else 'number'}"
