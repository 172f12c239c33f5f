"""`python -m services.clip [serve|convert] ...`; each command's --help names its flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from services.clip.settings import ClipSettings, make_scorer
from services.kit.commands import Command, dispatch
from services.kit.run import serve
from services.kit.settings import load_settings

USAGE = """\
usage: python -m services.clip [serve] --model FOLDER [flags]     serve clip_sim and relatives (the default)
       python -m services.clip convert SOURCE OUT.safetensors     rewrite the published aesthetic head

Each command's --help names its flags; each flag is also a variable, such as CLIP_PICKSCORE."""


class ConvertSettings(BaseSettings):
    """Rewrite the published aesthetic head as safetensors, which holds nothing but tensors."""

    model_config = SettingsConfigDict(env_prefix="CLIP_", extra="ignore", frozen=True, cli_kebab_case=True)

    source: CliPositionalArg[Path] = Field(description="sac+logos+ava1-l14-linearMSE.pth as published.")
    out: CliPositionalArg[Path] = Field(description="The file to write, *.safetensors; it must not exist yet.")


def serve_command(arguments: Sequence[str]) -> None:
    settings = load_settings(ClipSettings, arguments, prog="python -m services.clip")
    serve(lambda: make_scorer(settings), settings, "clip")


def convert_command(arguments: Sequence[str]) -> None:
    """Raises SourceError or OSError."""
    settings = load_settings(ConvertSettings, arguments, prog="python -m services.clip convert")
    from services.kit.models.linear_head import check_head
    from services.kit.models.tensors import read_tensors, write_tensors

    state = read_tensors(settings.source)
    check_head(state, settings.source)
    print(f"{settings.out}: {write_tensors(state, settings.out):,} parameters, from {settings.source}")


COMMANDS: dict[str, Command] = {"serve": serve_command, "convert": convert_command}


def main(arguments: Sequence[str]) -> None:
    dispatch("services.clip", USAGE, COMMANDS, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
