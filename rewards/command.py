"""The command `rewards`: a table of verbs, each of whose programs is imported when it is called and not before.

`rewards train RECIPE` is `python -m trainer train RECIPE`, `rewards serve ocr` is `python -m services.ocr`: the same code. Only
the standard library is imported here, so that `--help`, `--version` and a mistyped verb answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

from rewards import __version__

DISTRIBUTION = "rewards-as-services"
OURS = ("machine", "wire", "services", "loadtest", "trainer", "rewards")


@dataclass(frozen=True)
class Verb:
    """What a word after `rewards` starts.

    Attributes:
        program: `module:function`; the function takes the words that follow and what stands before them in its messages,
            and gives the exit code.
        text: what it does, in one line.
        command: the program's own first word, where it has several commands.
        extra: of the extras of this distribution, the one that installs what the program imports; none: nothing more.
    """

    program: str
    text: str
    command: str | None = None
    extra: str | None = None

    def run(self, name: str, words: Sequence[str]) -> int:
        """Import the program and call it. Returns its exit code; 2 where a package that it needs is not installed."""
        module, _, function = self.program.partition(":")
        prog = "rewards" if self.command else f"rewards {name}"
        try:
            main: Callable[[Sequence[str], str], int] = getattr(import_module(module), function)
            return main([self.command, *words] if self.command else words, prog)
        except ModuleNotFoundError as error:  # the program's, or of what it imports when it knows what is asked
            return missing(error, f"rewards {name}", self.extra)


def _trainer(command: str, text: str) -> Verb:
    return Verb("trainer.__main__:main", text, command, "train")


VERBS: dict[str, Verb] = {
    "train": _trainer("train", "train by a recipe, as in: rewards train quickstart"),
    "sft": _trainer("sft", "the same, for recipes that are given what they train on"),
    "launch": Verb("trainer.processes.launch:main", "train on several GPUs or nodes", extra="train"),
    "doctor": _trainer("doctor", "look for what would go wrong, before the run"),
    "evaluate": _trainer("evaluate", "evaluate a checkpoint on the held-out sets"),
    "generate": _trainer("generate", "make pictures and texts of a file of prompts"),
    "export": _trainer("export", "write a run's weights for other programs"),
    "report": _trainer("report", "build report.html from a run folder"),
    "runs": _trainer("runs", "one page for all runs of a folder"),
    "flight": _trainer("flight", "print the last steps before a crash"),
    "fetch": Verb("rewards.fetch:main", "get the models and prompts that a recipe names", extra="train"),
    "build-pairs": _trainer("build-pairs", "pair captioned images with questions about images"),
    "score": Verb("wire.client.command:score", "score images with a reward service"),
    "serve": Verb("rewards.serve:main", "start a reward service, as in: rewards serve ocr", extra="services"),
    "loadtest": Verb("loadtest.command:main", "send a service load and measure it", extra="loadtest"),
    "services": Verb("rewards.plane.command:main", "watch reward services", extra="services"),
    "recipes": Verb("rewards.recipes:main", "list the recipes that come along, or print one"),
    "migrate": Verb(
        "rewards.migrate:main", "translate what is another trainer's, or of an older version", extra="train"
    ),
    "completion": Verb("rewards.completion:main", "print completion for bash, zsh or fish"),
}


def missing(error: ModuleNotFoundError, program: str, extra: str | None) -> int:
    """Say which package is missing and how to install it. Returns exit code 2; raises the error where the module is ours."""
    top = (error.name or "").partition(".")[0]
    if not top or top in OURS:
        raise error
    wanted = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
    print(f"error: {program} needs the package {top}, which is not installed: pip install '{wanted}'", file=sys.stderr)
    return 2


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence about a name that is not known: with the nearest known one, else with all of them."""
    import difflib  # costs a part of what --help takes

    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"no {kind} {name!r}; " + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}")


def usage() -> str:
    """What `rewards --help` prints."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{verb.text}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: rewards VERB ...",
            "",
            "RL post-training for image and multimodal generators, with the rewards as services.",
            "",
            *lines,
            "",
            "rewards VERB --help says more of a verb; rewards --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: a verb's own, or 2 where there is no such verb."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    try:
        code = _called(*words)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has left, as `head` does; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _called(name: str, *words: str) -> int:
    """What the first word asks for. Returns the exit code."""
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"rewards {__version__}")
        return 0
    if name not in VERBS:
        print(f"error: {unknown('verb', name, VERBS)}", file=sys.stderr)
        return 2
    return VERBS[name].run(name, words)
