"""`rewards serve NAME ...`: what `python -m services.NAME ...` does; of FILE.py[:NAME] what `python -m services.own --file ...` does."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from rewards.command import missing, unknown
from services.kit.catalogue import CATALOGUE


def main(words: Sequence[str], prog: str) -> int:
    """Start a service of ours; it ends the process as it does under `python -m`. Returns 2 where there is none of the name."""
    services = {entry.name: entry for entry in CATALOGUE}
    if not words or words[0] in ("-h", "--help"):
        print(
            f"usage: {prog} NAME [flags]\n       {prog} FILE.py[:NAME] [flags]   rewards of your own\n\nservices and their ports:"
        )
        for entry in CATALOGUE:
            print(f"  {entry.name:<14}{entry.port}")
        print(f"\n{prog} NAME --help names the flags of one.")
        return 0 if words else 2
    from machine.own import is_code

    name, *rest = words if not is_code(words[0]) else ("own", "--file", *words)
    if name not in services:
        print(f"error: {unknown('service', name, services)}", file=sys.stderr)
        return 2
    sys.argv = [f"{prog} {name}", *rest]
    try:
        runpy.run_module(services[name].module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        return missing(error, f"{prog} {name}", "services")
    return 0
