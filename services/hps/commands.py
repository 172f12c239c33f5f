"""The commands beside `serve`: `convert` and `vocabulary`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from tqdm import tqdm

from services.hps.checkpoint import Version, inspect
from services.hps.vocabulary import FILE_NAME, fetch, read_merges
from services.kit.settings import load_settings

_COMMAND = SettingsConfigDict(
    env_prefix="HPS_",
    extra="ignore",
    frozen=True,
    cli_kebab_case=True,
    cli_hide_none_type=True,
    cli_avoid_json=True,
    cli_show_env_vars=True,
)


class ConvertSettings(BaseSettings):
    """Write a published checkpoint as a folder that holds all the service needs: weights, config and vocabulary."""

    model_config = _COMMAND

    source: CliPositionalArg[Path] = Field(description="HPS_v2_compressed.pt or HPS_v2.1_compressed.pt as published.")
    out: CliPositionalArg[Path] = Field(description="The folder to write; it must not exist yet.")
    version: Version | None = Field(default=None, description="v2 or v2.1, where the file's name does not say it.")
    vocabulary: Path | None = Field(
        default=None, description=f"{FILE_NAME}, or a folder with it or merges.txt; unset: beside the checkpoint."
    )


class VocabularySettings(BaseSettings):
    """Download CLIP's vocabulary with pip, out of the wheel of open_clip, which is not installed."""

    model_config = _COMMAND

    out: CliPositionalArg[Path] = Field(description=f"File to write, or an existing folder that gets {FILE_NAME}.")


def convert_command(arguments: Sequence[str]) -> None:
    """Raises VocabularyError, CheckpointError or OSError."""
    settings = load_settings(ConvertSettings, arguments, prog="python -m services.hps convert")
    merges = read_merges(settings.vocabulary or settings.source.with_name(FILE_NAME))
    size = settings.source.stat().st_size if settings.source.is_file() else 0
    with tqdm(total=size, unit="B", unit_scale=True, desc="sha256", disable=None) as bar:
        checkpoint = inspect(settings.source, settings.version, bar.update)
    from services.hps.convert import write_folder

    print(f"writing {settings.out} ...", file=sys.stderr)
    parameters = write_folder(checkpoint, merges, settings.out)
    print(f"{settings.out}: HPS{checkpoint.version}, {parameters:,} parameters, from sha256 {checkpoint.sha256}")


def vocabulary_command(arguments: Sequence[str]) -> None:
    """Raises VocabularyError or OSError."""
    settings = load_settings(VocabularySettings, arguments, prog="python -m services.hps vocabulary")
    path = fetch(settings.out)
    print(f"{path}: {len(read_merges(path)):,} merges")
