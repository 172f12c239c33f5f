"""Commands whose words are another program's: argparse shows its flags under --help, and does not look at what is typed."""

from __future__ import annotations

import argparse


def add_words(parser: argparse.ArgumentParser, flags: str) -> None:
    """Whatever is typed, as `arguments`. `flags`: the other program's, for --help."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = flags
    parser.add_argument(
        "arguments", nargs="+", metavar="WORD", help="The command line as it was typed, or the path of its script."
    )
