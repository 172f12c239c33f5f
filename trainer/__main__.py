"""`python -m trainer {train,sft,report,doctor} ...`: every command, with errors a person can act on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

# Waiting OpenMP threads must sleep, not spin: beside busy reward services on the same cores, spinning made a step 40
# times slower (docs/decisions/0003-passive-threads.md). Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from trainer.commands import COMMANDS, VERBATIM
from trainer.processes.failure import USER_ERROR, Watch, describe
from trainer.processes.stopping import StartStoppedError


def build_parser(
    prog: str = "python -m trainer", called: Collection[str] = tuple(COMMANDS), typed: str | None = None
) -> argparse.ArgumentParser:
    """The command line; `prog` is what was typed before the command, `typed` all of it where the command has another name there.
    Only commands that are `called` are imported, and have their flags: the others are no more than lines of --help."""
    parser = argparse.ArgumentParser(prog=prog, description="RL post-training with rewards as services.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        words = commands.add_parser(name, prog=typed, help=command.text, description=command.text)
        if name in called:
            module = import_module(f"trainer.commands.{command.module}")
            module.add_flags(words)
            words.set_defaults(run=module.run)
    return parser


def _check_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """End with a sentence where the first word is no command, as in `python -m trainer configs/quickstart.yaml`."""
    if not argv or argv[0].startswith("-") or argv[0] in COMMANDS:
        return
    if argv[0].endswith((".yaml", ".yml")):
        remedy = f"; to train with it: {parser.prog} train {argv[0]}"
    else:
        from trainer.config.base import did_you_mean

        remedy = did_you_mean(argv[0], COMMANDS)
    parser.error(f"no command {argv[0]!r} (there are {', '.join(COMMANDS)}){remedy}")


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str], typed: str | None) -> argparse.Namespace:
    if argv and argv[0] in VERBATIM and not {"-h", "--help"} & set(argv) and len(argv) > 1:
        run = import_module(f"trainer.commands.{COMMANDS[argv[0]].module}").run
        return argparse.Namespace(command=argv[0], run=run, arguments=list(argv[1:]))
    args, rest = parser.parse_known_args(argv)
    # argparse takes overrides right behind the recipe alone, and they are as plain behind a flag.
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(args, "overrides")):
        fields = "a field of the recipe is written key=value, as in seed=2; " if hasattr(args, "overrides") else ""
        help_of = f"{typed or f'{parser.prog} {args.command}'} --help"
        parser.exit(2, f"error: unrecognized arguments: {' '.join(rest)}; {fields}`{help_of}` has the flags\n")
    if rest:
        args.overrides = [*args.overrides, *overrides]
    return args


def main(argv: Sequence[str] | None = None, prog: str = "python -m trainer", typed: str | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(prog, COMMANDS.keys() & set(argv), typed)
    _check_command(parser, argv)
    args = _parsed(parser, argv, typed)
    from trainer.config.base import (
        UserError,  # which loads all of the configuration, as commands do and --help need not
    )

    try:
        with Watch() as watch:
            try:
                return int(args.run(args))
            except StartStoppedError as stopped:
                return watch.fail(str(stopped), 0)  # the other ranks end with it
            except UserError as error:
                return watch.fail(f"error: {error}", USER_ERROR)
            except Exception as error:
                return watch.fail(*describe(error))
    except KeyboardInterrupt:
        print(f"interrupted{COMMANDS[args.command].interrupted}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
