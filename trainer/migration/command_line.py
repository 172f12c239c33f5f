"""Reads a command line as it is typed, or the one in a shell script. Nothing is run."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.config.base import ConfigError, nearest

Kind = Literal["text", "texts", "whole", "number", "flag"]

_SET = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)$", re.DOTALL)
_USED = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
_ENDS = re.compile(r"^(\||\|\||&&|;|&|\d?>{1,2}(&\d|.+)?|2>&1)$")  # what ends a command in a shell
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
    """

    program: str
    values: Mapping[str, Any]
    given: frozenset[str]
    folders: Sequence[Path] = field(default_factory=lambda: (Path.cwd(),))
    runs_in: Path = field(default_factory=Path.cwd)

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


def read_command_line(program: str, flags: Mapping[str, Flag], entry: str, arguments: Sequence[str]) -> CommandLine:
    """The flags of a command, whether or not it begins with torchrun; or those in a script, where its path alone is given.

    As argparse has it, the beginning of a flag's name will do where one flag alone begins so, and --no_x is --x false.

    Args:
        program: its name, for messages.
        flags: those that it knows.
        entry: the file of Python that it starts, by which the line is found in a script.

    Raises:
        ConfigError: a flag that is not known, with the nearest one, a value of another kind, or a script without the command.
    """
    folders, runs_in = [Path.cwd()], Path.cwd()
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        arguments, more = _of_script(Path(arguments[0]), entry)
        folders += more
        runs_in = more[-1] if len(more) > 1 else runs_in  # it changes into the last one
    values, problems = {name: flag.default for name, flag in flags.items()}, []
    given: set[str] = set()
    for typed, words in _split(arguments, entry):
        name = _whole(typed, flags)
        if name in flags:
            values[name], problem = _value(flags[name], words)
        elif name.startswith("no_") and (name := _whole(name[3:], flags)) in flags and flags[name].kind == "flag":
            values[name], problem = False, "takes no value" if words else ""
        else:
            problems.append(f"--{typed} is no flag of {program}: {nearest(typed, flags)}")
            continue
        problems += [f"--{typed} {problem}"] if problem else []
        given.add(name)
    if problems:
        raise ConfigError("\n  ".join([f"the command line of {program} cannot be used:", *problems]))
    return CommandLine(program, values, frozenset(given), tuple(folders), runs_in)


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
        meant = [
            f"--{name}" for name, flag in flags.items() if any(f" {field}:" in str(error) for field in flag.fields)
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
    name, words = "", list[str]()
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            if name:
                yield name, words
            name, equals, value = word[2:].partition("=")
            name, words = name.replace("-", "_"), [value] if equals else []
        elif name and word != "-m" and not (word.endswith(".py") and (words or Path(word).name == entry)):
            words.append(word)
    if name:
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
    return (words[0], "") if flag.kind == "text" else _number(flag.kind, words[0])


def _number(kind: Kind, word: str) -> tuple[Any, str]:
    try:
        return (int(word) if kind == "whole" else float(word)), ""
    except ValueError:
        return None, f"{word!r} is no {'whole number' if kind == 'whole' else 'number'}"


def _of_script(path: Path, entry: str) -> tuple[list[str], list[Path]]:
    """The words of the command that starts `entry`, its variables filled in; and the folders that the script is in or goes to."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give the script, or the command line itself") from error
    known: dict[str, str] = {}
    folders = [path.resolve().parent]
    for line in _lines(text):
        words = shlex.split(line.removeprefix("export "), comments=True)
        named = entry in line or any(entry in known.get(used[1] or used[3], "") for used in _USED.finditer(line))
        if named and len(words) > 1:  # a single word sets a variable
            return list(_words(path, line, known)), folders
        if match := _SET.match(line):
            try:
                known[match[1]] = " ".join(shlex.split(_filled(path, match[2], known), comments=True))
            except ConfigError:
                known.pop(match[1], None)  # it needs a variable that is not set; the command may do without it
        elif line.startswith("cd "):
            folders.append((folders[0] / _filled(path, line[3:], known).strip("\"' ")).resolve())
    raise ConfigError(f"{path} has no line that starts {entry}; give the command line itself")


def _lines(text: str) -> Iterator[str]:
    """The lines of a script, without comments; one that goes on behind a backslash or inside quotes is one line."""
    whole = ""
    # A comment between the lines of a command would end it, as in a shell.
    for line in re.sub(r"\\\n", " ", text).split("\n"):
        if not whole and line.strip().startswith("#"):
            continue
        whole = f"{whole} {line}".strip() if whole else line.strip()
        try:
            shlex.split(whole, comments=True)
        except ValueError:  # a quote has no end yet
            continue
        if whole:
            yield whole
        whole = ""


def _words(path: Path, line: str, known: Mapping[str, str]) -> Iterator[str]:
    """The command's words from the first flag on, to where the command ends."""
    words = shlex.split(line)
    first = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
    for word in words[first:]:
        if _ENDS.match(word):
            return
        filled = _filled(path, word, known)
        yield from [filled] if filled == word or " " in word else shlex.split(filled)


def _filled(path: Path, line: str, known: Mapping[str, str]) -> str:
    """A line with the variables that the script has set, or the environment has."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        found = known.get(name, os.environ.get(name, match[2]))
        if found is None:
            raise ConfigError(f"{path} uses ${name}, which it does not set; set it in the environment")
        return found

    return _USED.sub(value, re.sub(r"\$\([^)]*\)", ".", line))
