"""What vLLM's own parser says of commands: reads a JSON list of `["serve", MODEL, FLAG, ...]`, writes a list of errors.

An accepted command has the error "".
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from vllm.entrypoints.cli.serve import cmd_init
from vllm.utils.argparse_utils import FlexibleArgumentParser


def error_of(parser: FlexibleArgumentParser, command: list[str]) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(command)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return ""


parser = FlexibleArgumentParser()
subparsers = parser.add_subparsers(required=True)
for each in cmd_init():
    each.subparser_init(subparsers)
errors = [error_of(parser, command) for command in json.load(sys.stdin)]
print(json.dumps(errors))
