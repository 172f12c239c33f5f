"""The command in a shell script that starts a program: read, its variables filled in, and never run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.base import ConfigError

_SETS = r"(?:(?:export|declare(?:\s+-\w+)*|readonly|local)\s+)?([A-Za-z_]\w*)(\+?)="
_SET = re.compile(_SETS + r"(.*)$", re.DOTALL)
_ARRAY = re.compile(_SETS + r"\(")
_USED = re.compile(r"\$(?:\{(\w+)(?::?[-=]([^}]*)|\[[@*]\])?\}|(\w+))")
_UNREAD = re.compile(r"\$\{[^}]*\}?|\$[@*#?!]|\$\(+")  # a shell's other ways to write a value
_FOLDER = re.compile(r"\b(dirname|pwd|realpath|readlink|BASH_SOURCE)\b")
_ENDS = re.compile(r"^(\||\|\||&&|;|&|\d?>{1,2}(&\d|.+)?|&>{1,2}.*|2>&1)$")  # what ends a command in a shell
_SAYS = (
    "echo",
    "printf",
    "cat",
    "ls",
    "cp",
    "mv",
    "rm",
    "test",
    "[",
    "[[",
    "grep",
)  # they name a file and do not start it
_CUT = "\x01"  # stands before a comment behind a line that goes on
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")  # text up to this word is no command


@dataclass
class Script:
    """A script, as far as it is read.

    Attributes:
        known: values of its variables so far.
        runs: what would have to be run for a value; NUL, its number and NUL stand in its place.
    """

    path: Path
    known: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def command(self, entry: str) -> tuple[list[str], list[Path], list[str]]:
        """The words of the command that starts `entry`, from the first flag on; the folders that the script is in or goes to; and what is
        to be said of the rest.

        Raises:
            ConfigError: it cannot be read, has no such command, or one that uses what only running it would tell.
        """
        folders, said = [self.path.resolve().parent], list[str]()
        found: list[str] | None = None
        for line in self._lines():
            words = shlex.split(line, comments=True)
            if len(words) > 1 and words[0] not in _SAYS and any(self._is_entry(word, entry) for word in words):
                if found is not None:
                    said.append(f"{self.path} starts {entry} more than once; the first command alone is read")
                    break
                found = list(self._words(line))
            elif found is not None:
                continue  # what follows the command does not change it
            elif match := _SET.match(line):
                self._set(match[1], match[3], more=bool(match[2]))
            elif line.startswith("cd "):
                folders.append((folders[0] / self._filled(line[3:]).strip("\"' ")).resolve())
        if found is None:
            raise ConfigError(f"{self.path} has no line that starts {entry}; give the command line itself")
        return found, folders, said

    def _lines(self) -> Iterator[str]:
        """Its lines, without comments; one that goes on behind a backslash, or inside quotes or an array, is one line."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self.path} cannot be read ({error}); give the script, or the command line itself"
            ) from error
        for number, line in enumerate(text.split("\n"), start=1):
            if re.search(r"\\[ \t]+$", line) and not line.lstrip().startswith("#"):
                raise ConfigError(
                    f"{self.path}:{number}: a space stands behind the backslash, so that a shell ends the command there; take it out"
                )
        whole, until = "", ""
        text = re.sub(r"\\\n[ \t]*#", f" {_CUT} #", text)
        for each in re.sub(r"\\\n", " ", text).split("\n"):
            if until or (not whole and each.strip().startswith("#")):
                until = "" if each.strip() == until else until
                continue
            has_comment = _ARRAY.match(whole) and not {"'", '"'} & set(each)  # which would hide the array's other lines
            line = re.sub(r"(^|\s)#.*", "", each) if has_comment else each
            whole = f"{whole} {line}".strip() if whole else line.strip()
            try:
                shlex.split(whole, comments=True)
            except ValueError:  # a quote has no end yet
                continue
            if _ARRAY.match(whole) and not re.search(r"\)\s*(#.*)?$", whole):
                continue
            if whole:
                yield whole
                until = match[2] if (match := _HERE.search(whole)) and "<<<" not in whole else ""
            whole = ""
        if whole:
            raise ConfigError(f"{self.path}: a quote or an array has no end in {whole[:60]!r}; close it")

    def _is_entry(self, word: str, entry: str) -> bool:
        try:
            return any(Path(each).name == entry for each in [word, *self._filled(word).split()])
        except ConfigError:
            return False  # of a variable that is not set

    def _set(self, name: str, value: str, *, more: bool) -> None:
        """Remember a variable; an array as its words, quoted where they need it."""
        try:
            filled = self._filled(value).strip()
            is_array = filled.startswith("(")
            words = shlex.split(filled.strip("()") if is_array else filled, comments=True)
        except (ConfigError, ValueError):
            self.known.pop(name, None)  # it needs a variable that is not set; the command may do without it
            return
        before = self.known.get(name, "") + " " * is_array if more else ""
        self.known[name] = before + (shlex.join(words) if is_array else " ".join(words))

    def _words(self, line: str) -> Iterator[str]:
        """The command's words from the first flag on, to where the command ends."""
        words = shlex.split(self._without_runs(line), comments=True)
        first = next(
            (n for n, word in enumerate(words) if word.startswith("--") or "[@]" in word or "[*]" in word), None
        )
        for word in words if first is None else words[first:]:
            if word == _CUT:
                raise ConfigError(
                    f"{self.path}: a comment stands between the lines of the command, which ends there, as in a shell; move the comment"
                )
            if _ENDS.match(word):
                return
            filled = self._filled(word.removesuffix(";"))
            self._check_read(filled)
            yield from [filled] if filled == word or " " in word else shlex.split(filled)
            if word.endswith(";"):
                return

    def _check_read(self, word: str) -> None:
        if match := re.search("\0(\\d+)\0", word):
            what = self.runs[int(match[1])]
        elif match := _UNREAD.search(word):
            what = match[0]
        else:
            return
        raise ConfigError(f"{self.path} uses {what}, whose value only a shell can tell; write it out there")

    def _filled(self, line: str) -> str:
        """A line with the variables that the script has set, or the environment has."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            found = self.known.get(name, os.environ.get(name, match[2]))
            if found is None:
                raise ConfigError(f"{self.path} uses ${name}, which it does not set; set it in the environment")
            return found.strip("\"'") if found is match[2] else found

        return _USED.sub(value, self._without_runs(line))

    def _without_runs(self, line: str) -> str:
        """A line without what would have to be run, `...` or $(...): the folder of the script where it is that, else a mark."""
        out, at = "", 0
        while match := re.compile(r"`|\$\(").search(line, at):
            end = _end_of_run(line, match)
            run = line[match.start() : end]
            out += line[at : match.start()]
            if _FOLDER.search(run):
                out += "."
            else:
                out += f"\0{len(self.runs)}\0"
                self.runs.append(run)
            at = end
        return out + line[at:]


def _end_of_run(line: str, begun: re.Match[str]) -> int:
    """The place behind the backquote or bracket that closes it; the line's end where none does."""
    if begun[0] == "`":
        return line.find("`", begun.end()) + 1 or len(line)
    depth = 1
    for place in range(begun.end(), len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place + 1
    return len(line)
