"""`python -m services.imagereward [serve|convert] ...`; each command's --help names its flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from services.imagereward.settings import ImageRewardSettings, make_scorer
from services.kit.commands import Command, dispatch
from services.kit.run import serve
from services.kit.settings import load_settings

USAGE = """\
usage: python -m services.imagereward [serve] --weights FILE --tokenizer FOLDER [flags]   serve (the default)
       python -m services.imagereward convert SOURCE OUT.safetensors                    rewrite the published file

Each command's --help names its flags; each flag is also a variable, such as IMAGE_REWARD_WEIGHTS."""


class ConvertSettings(BaseSettings):
    """Rewrite the published file as safetensors, which holds nothing but tensors and is mapped into memory."""

    model_config = SettingsConfigDict(env_prefix="IMAGE_REWARD_", extra="ignore", frozen=True, cli_kebab_case=True)

    source: CliPositionalArg[Path] = Field(description="ImageReward.pt as published.")
    out: CliPositionalArg[Path] = Field(description="The file to write, *.safetensors; it must not exist yet.")


def serve_command(arguments: Sequence[str]) -> None:
    settings = load_settings(ImageRewardSettings, arguments, prog="python -m services.imagereward")
    serve(lambda: make_scorer(settings), settings, "imagereward")


def convert_command(arguments: Sequence[str]) -> None:
    """Raises SourceError or OSError."""
    settings = load_settings(ConvertSettings, arguments, prog="python -m services.imagereward convert")
    from services.imagereward.layout import split
    from services.kit.models.tensors import read_tensors, write_tensors

    state = read_tensors(settings.source)
    split(state, settings.source)  # that it is ImageReward's is found out now, not when it is served
    print(f"{settings.out}: {write_tensors(state, settings.out):,} parameters, from {settings.source}")


COMMANDS: dict[str, Command] = {"serve": serve_command, "convert": convert_command}


def main(arguments: Sequence[str]) -> None:
    dispatch("services.imagereward", USAGE, COMMANDS, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
