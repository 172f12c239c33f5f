"""The commands of `python -m trainer`, a module each: this table names them, and one is imported when it is called.

A module has `add_flags(parser)` and `run(args)`, which gives the exit code. Only the standard library is imported here, so that
`--help` and a mistyped command answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass

_GOES_ON = "; the next start goes on from the newest checkpoint, if there is one"


@dataclass(frozen=True)
class Command:
    """A word after `python -m trainer`.

    Attributes:
        module: of this folder.
        text: what it does, in one line.
        interrupted: what Ctrl-C leaves behind; nothing where nothing is lost.
        verbatim: the words that follow are another program's command line, and are not looked at before `run` has them.
    """

    module: str
    text: str
    interrupted: str = ""
    verbatim: bool = False


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train", "Train by the recipe's program; goes on where an earlier start stopped.", interrupted=_GOES_ON
    ),
    "sft": Command(
        "train",
        "The same for recipes that are given what they train on: supervised, preference.",
        interrupted=_GOES_ON,
    ),
    "evaluate": Command("evaluate", "Evaluate a checkpoint, or the base, on the recipe's held-out sets."),
    "generate": Command(
        "generate",
        "Make pictures and texts of a file of prompts by a checkpoint, or the base.",
        interrupted="; what is made is kept, and the same command goes on",
    ),
    "doctor": Command("doctor", "Check config, data, reward services, device and disk; say what to do."),
    "report": Command("report", "Build report.html from a run folder, finished or running."),
    "runs": Command("runs", "One page for all runs of a folder, served here or written as files."),
    "export": Command("export", "Write a run's weights for other programs; read them back and compare."),
    "flight": Command("flight", "Print what was recorded of a run's last steps when it crashed."),
    "migrate-config": Command("migrate_config", "Print a recipe with today's names of its fields; comments stay."),
    "from-deepgen": Command("from_deepgen", "Translate a command line of DeepGen-RL into a recipe."),
    "from-nanovlm-lab": Command("from_nanovlm_lab", "Translate a YAML of NanoVLM-Lab into a recipe."),
    "from-pairuni": Command("from_pairuni", "Translate a command line of PairUni into a recipe.", verbatim=True),
    "from-t2i-r1": Command("from_t2i_r1", "Translate a command line of T2I-R1 into a recipe.", verbatim=True),
    "from-unireason": Command("from_unireason", "Translate a command line of UniReason into a recipe.", verbatim=True),
    "from-neo": Command("from_neo", "Translate a command line of NEO into a recipe.", verbatim=True),
    "build-pairs": Command("build_pairs", "Pair captioned images with questions about images, by their features."),
}
VERBATIM = tuple(name for name, command in COMMANDS.items() if command.verbatim)
