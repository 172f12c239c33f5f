"""A service's program when it has more commands than `serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Command = Callable[[Sequence[str]], None]


def dispatch(program: str, usage: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> None:
    """Run the command that `arguments` begin with, or `serve` where they begin with a flag or are none.

    Exits with one sentence when there is no such command or it raises ValueError or OSError.
    """
    if list(arguments) in (["-h"], ["--help"]):
        print(usage)
        return
    command, rest = "serve", arguments
    if arguments and not arguments[0].startswith("-"):
        command, rest = arguments[0], arguments[1:]
    if command not in commands:
        raise SystemExit(f"no command {command!r}\n{usage}")
    try:
        commands[command](rest)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{program} {command}: {error}") from error
