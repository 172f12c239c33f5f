"""`train` and `sft`: a run by a recipe, after the stages before it; and what is exported at its end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from machine.called import command
from trainer.commands.recipes import checked, recipe_of, takes_recipe
from trainer.config import Config, ConfigError
from trainer.migration import load_recipe
from trainer.processes.stopping import StopSignals
from trainer.programs.stages import export_trained, train_before


def add_flags(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)


def run(args: argparse.Namespace) -> int:
    with StopSignals() as signals:  # before torch is imported, which takes seconds

        def read(recipe: Path) -> Config:
            return load_recipe(recipe, Config)

        def train_stage(recipe: Path) -> int:
            from trainer.loop import train

            before = checked(recipe)
            return train(before, signals) or export_trained(before)

        if not train_before(load_recipe(args.config, Config, args.overrides), args.config, read, train_stage):
            return 0
        config = recipe_of(args)
        if args.command == "sft" and config.program == "rl":
            raise ConfigError(
                f"{args.config} is a recipe of program: rl, which rewards train; use `{command('train')} {args.config}`"
            )
        from trainer.records.reporters.installed import check_installed

        check_installed(config.logging.report_to)
        from trainer.loop import train

        code = train(config, signals)
        code = code or export_trained(config)
    return code or _export_final(args, config)


def _export_final(args: argparse.Namespace, config: Config) -> int:
    """What the program that the file is of leaves at the end: the trained model in a folder of its own."""
    from trainer.migration.nanovlm_lab.command import final_model

    final = final_model(args.config)
    if final is None or os.environ.get("RANK", "0") != "0":
        return 0
    from trainer.programs.assemble import is_finished

    if not is_finished(config):
        return 0  # stopped by a signal; the next start goes on
    if final.folder.exists():
        print(f"{final.folder} is there; the trained model was not written again")
        return 0
    from trainer.export import export_run

    print(f"Wrote {export_run(config.run_dir, final.folder, to=final.format, weights='trained', dtype='float32')}")
    return 0
