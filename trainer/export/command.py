"""The command: build, write, read back, compare, sum up."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch

from trainer.config import Config, ConfigError
from trainer.export.comparison import compare_samples, compare_weights, settle
from trainer.export.source import Weights, find_checkpoint, run_config, trained_model
from trainer.policies.registry import Exporter, exporter_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CHECKSUMS = "SHA256SUMS"


def export_run(
    source: Path, output: Path, *, to: str, weights: Weights = "average", dtype: str = "bfloat16", verify: bool = False
) -> Path:
    """Write a run's weights in another program's format, read them back and compare. Returns the folder.

    Args:
        source: a run's folder, a checkpoint, or `checkpoints/best`.
        output: a folder that does not exist yet; it appears when all is written and compared.
        to: a format of the policy: the `formats` of its section.
        verify: draw samples before and after, too.

    Raises:
        ConfigError: the policy has no such format, or the output exists or cannot be written.
        CheckpointError: there is no usable checkpoint.
        ExportError: what was read back is not what was trained; nothing is left behind.
    """
    if output.exists():
        raise ConfigError(f"{output} exists: give --output a folder that does not, so that nothing is overwritten")
    checkpoint = find_checkpoint(source)
    config = run_config(checkpoint)
    exporter = _exporter(config, to)
    writing = _new_folder(output)  # before the work: what cannot be written is known now
    try:
        print(f"Reading {checkpoint.path} ({weights} weights of step {checkpoint.step})")
        model = trained_model(config, checkpoint, weights)
        settle(model, DTYPES[dtype], merge=not exporter.adapters)
        print(f"Writing {to} in {dtype}")
        try:
            exporter.write(model, writing, DTYPES[dtype])
        except OSError as error:
            raise ConfigError(
                f"--output {output} cannot be written: {error.strerror or error}; make room, or give a folder on another disk"
            ) from error
        reloaded = exporter.reload(config.policy, writing, torch.device("cpu"))
        print(f"Read back: {compare_weights(model, reloaded, adapters=exporter.adapters, dtype=DTYPES[dtype])}")
        if verify:
            print(f"Samples: {compare_samples(config, model, reloaded)}")
        del reloaded  # it may have the files mapped that are renamed now
        _sum_up(writing)
        writing.rename(output)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return output


def _new_folder(output: Path) -> Path:
    """An empty folder beside `output`, which is renamed to it when all is written."""
    writing = output.with_name(f".writing_{output.name}")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"--output {output} cannot be written: {error.strerror}; correct the path, or the owner of the folder above it"
        ) from error
    return writing


def _exporter(config: Config, to: str) -> Exporter:
    exporter = exporter_of(config.policy, to)
    if exporter.adapters and getattr(config.policy, "lora", None) is None:
        raise ConfigError(
            f"this run trained all weights (policy.lora is null), so there are no adapters to export; use --to "
            f"{next(name for name in config.policy.formats if name != to)}"
        )
    return exporter


def _sum_up(folder: Path) -> None:
    """Write SHA256SUMS as sha256sum reads it: `cd FOLDER && sha256sum -c SHA256SUMS`."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
