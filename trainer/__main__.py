"""`python -m trainer {train,sft,report,doctor} ...`: every command, with errors a person can act on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Waiting OpenMP threads must sleep, not spin: beside busy reward services on the same cores, spinning made a step 40
# times slower (docs/decisions/0003-passive-threads.md). Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rewards.shipped import recipe
from trainer.config import Config, ConfigError
from trainer.config.base import UserError, did_you_mean
from trainer.config.paths import check_policy_files
from trainer.data.pairs.building.flags import add_pair_flags
from trainer.migration import load_recipe
from trainer.migration.deepgen.command import add_flags
from trainer.migration.janus_grpo.command import flags_help, from_command_line
from trainer.migration.neo.command import from_neo, neo_help
from trainer.migration.unireason.command import from_unireason, unireason_help
from trainer.policies.registry import all_formats
from trainer.processes.failure import USER_ERROR, Watch, describe
from trainer.processes.stopping import StartStoppedError, StopSignals
from trainer.programs.generating.flags import add_generation_flags, settings_of
from trainer.programs.stages import export_trained, train_before
from trainer.runs import command as runs

COMMANDS = (
    "train",
    "sft",
    "evaluate",
    "generate",
    "doctor",
    "report",
    "runs",
    "export",
    "flight",
    "migrate-config",
    "from-deepgen",
    "from-nanovlm-lab",
    "from-pairuni",
    "from-t2i-r1",
    "from-unireason",
    "from-neo",
    "build-pairs",
)

# Commands check what they are given before they import torch, which takes seconds: a mistake is said at once.


def _train(args: argparse.Namespace) -> int:
    with StopSignals() as signals:  # before torch is imported, which takes seconds

        def read(recipe: Path) -> Config:
            return load_recipe(recipe, Config)

        def run(recipe: Path) -> int:
            from trainer.loop import train

            before = checked(recipe)
            return train(before, signals) or export_trained(before)

        if not train_before(load_recipe(args.config, Config, args.overrides), args.config, read, run):
            return 0
        config = _recipe(args)
        if args.command == "sft" and config.program == "rl":
            raise ConfigError(
                f"{args.config} is a recipe of program: rl, which rewards train; use `python -m trainer train {args.config}`"
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


def _recipe(args: argparse.Namespace) -> Config:
    """The recipe, with prompt files and weights that are there."""
    return checked(args.config, args.overrides)


def checked(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe, with prompt files and weights that are there. Raises ConfigError, DataError."""
    config = load_recipe(recipe, Config, overrides)
    named = [each.path for each in config.data.train] + [path for _, path in config.evaluation.prompt_files()]
    for path in named:
        if not Path(path).exists():
            from trainer.data.prompts import read_prompt_file
            from trainer.data.rows.folders import is_hub_id, refuse_missing

            if config.sampling.type in ("tokens", "tasks"):  # rows of questions or pairs
                if not is_hub_id(Path(path)):
                    refuse_missing(Path(path))
                continue  # fetched when it is read

            read_prompt_file(path, dataset=Path(path).stem)  # says what is wrong with the path
    check_policy_files(config.policy, config.program)
    return config


def _check_there(path: Path | None, what: str) -> None:
    if path is not None and not path.exists():
        hint = " (checkpoints/best needs checkpoint.keep_best)" if path.name == "best" else ""
        raise ConfigError(f"{what}: nothing at {path.absolute()}; correct the path{hint}")


def _evaluate(args: argparse.Namespace) -> int:
    config = _recipe(args)
    _check_there(None if args.checkpoint in (None, "base") else Path(args.checkpoint), "--checkpoint")
    _check_there(args.against, "--against")
    from trainer.programs.evaluate import evaluate_checkpoint

    given = {"output": args.output, "against": args.against}
    return _wrote(partial(evaluate_checkpoint, config, args.checkpoint, args.weights, **given))


def _wrote(make: Callable[[], Path]) -> int:
    """Say where the folder is that `make` gives; or that a reward's `on_failure: stop`, or its failure rate, has stopped it."""
    from trainer.types import StopTrainingError

    try:
        print(f"Wrote {make()}")
    except StopTrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _generate(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    _check_there(None if args.checkpoint in (None, "base") else Path(args.checkpoint), "--checkpoint")
    _check_there(args.prompts, "--prompts")
    config = _recipe(args)
    from trainer.programs.generating.command import generate

    given = {"source": args.checkpoint, "weights": args.weights, "score": args.score}
    return _wrote(partial(generate, config, args.prompts, args.output, settings, **given))


def _report(args: argparse.Namespace) -> int:
    _check_there(args.run_dir, "report")
    from trainer.report import build_report

    print(f"Wrote {build_report(args.run_dir)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    _check_there(args.source, "export")
    from trainer.export import export_run

    folder = export_run(
        args.source, args.output, to=args.to, weights=args.weights, dtype=args.dtype, verify=args.verify
    )
    print(f"Wrote {folder}")
    return 0


def _flight(args: argparse.Namespace) -> int:
    from trainer.records.flight.summary import print_flight

    print_flight(args.run_dir)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from trainer.doctor import run_doctor

    return run_doctor(args.config, args.overrides, as_json=args.json)


def _migrate_config(args: argparse.Namespace) -> int:
    from trainer.migration.rewrite import migrated_text, rewrite

    text = migrated_text(args.config)
    if text is None:
        print(f"{args.config} has no old names; nothing to change", file=sys.stderr)
    elif args.write:
        rewrite(args.config, text)
        print(f"Wrote {args.config}")
    else:
        print(text, end="")
    return 0


def _from_deepgen(args: argparse.Namespace) -> int:
    from trainer.migration.deepgen.command import from_deepgen

    print(from_deepgen(args), end="")
    return 0


def _from_nanovlm_lab(args: argparse.Namespace) -> int:
    from trainer.migration.nanovlm_lab.command import from_nanovlm_lab

    print(from_nanovlm_lab(args.config, args.gpus), end="")
    return 0


def _build_pairs(args: argparse.Namespace) -> int:
    from trainer.data.pairs.building.command import build_pairs

    print(build_pairs(args))
    return 0


@dataclass(frozen=True)
class Verbatim:
    """A command whose words are another program's, and are not looked at here.

    Attributes:
        program: its name.
        translate: the words as a recipe.
        help: every flag, for --help.
    """

    program: str
    translate: Callable[[Sequence[str]], str]
    help: Callable[[], str]

    def __call__(self, args: argparse.Namespace) -> int:
        print(self.translate(args.arguments), end="")
        return 0


VERBATIM = {
    "from-pairuni": Verbatim("PairUni", partial(from_command_line, "pairuni"), partial(flags_help, "pairuni")),
    "from-t2i-r1": Verbatim("T2I-R1", partial(from_command_line, "t2i-r1"), partial(flags_help, "t2i-r1")),
    "from-unireason": Verbatim("UniReason", from_unireason, unireason_help),
    "from-neo": Verbatim("NEO", from_neo, neo_help),
}


def _format(name: str) -> str:
    """A format of some policy; which of them the run's policy has is known once its config.yaml is read."""
    if name not in all_formats():
        raise argparse.ArgumentTypeError(
            f"no format {name!r} (there are {', '.join(all_formats())}){did_you_mean(name, all_formats())}"
        )
    return name


def build_parser(prog: str = "python -m trainer") -> argparse.ArgumentParser:
    """The command line; `prog` is what was typed before the command."""
    parser = argparse.ArgumentParser(prog=prog, description="RL post-training with rewards as services.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        assert name in COMMANDS
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def takes_config(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "config", type=recipe, help="A recipe: its file, or the name of one of configs/, as in quickstart."
        )
        command.add_argument("overrides", nargs="*", metavar="key=value", help="Fields to override, as in seed=2.")

    takes_config(add("train", _train, "Train by the recipe's program; goes on where an earlier start stopped."))
    takes_config(add("sft", _train, "The same for recipes that are given what they train on: supervised, preference."))
    evaluate = add("evaluate", _evaluate, "Evaluate a checkpoint, or the base, on the recipe's held-out sets.")
    takes_config(evaluate)
    evaluate.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="A checkpoint's or a run's folder, checkpoints/best, or `base`; default: the newest of the recipe's run.",
    )
    evaluate.add_argument(
        "--weights", choices=("average", "trained"), default="average", help="Averaged (default) or last weights."
    )
    evaluate.add_argument("--output", type=Path, help="Default: evaluations/<checkpoint>-<weights> in the run folder.")
    evaluate.add_argument("--against", type=Path, metavar="DIR", help="Another evaluation's folder: gains are paired.")
    made = add("generate", _generate, "Make pictures and texts of a file of prompts by a checkpoint, or the base.")
    takes_config(made)
    add_generation_flags(made)
    doctor = add("doctor", _doctor, "Check config, data, reward services, device and disk; say what to do.")
    takes_config(doctor)
    doctor.add_argument("--json", action="store_true", help="Findings as JSON.")
    report = add("report", _report, "Build report.html from a run folder, finished or running.")
    report.add_argument("run_dir", type=Path, help="A folder under outputs/.")
    runs.add_flags(add("runs", runs.show_runs, "One page for all runs of a folder, served here or written as files."))
    export = add("export", _export, "Write a run's weights for other programs; read them back and compare.")
    export.add_argument(
        "source", type=Path, help="A folder under outputs/, a checkpoint in it, or its checkpoints/best."
    )
    export.add_argument(
        "--to",
        required=True,
        type=_format,
        metavar="FORMAT",
        help=f"One of {', '.join(all_formats())}, as the policy can.",
    )
    export.add_argument("--output", required=True, type=Path, help="A new folder.")
    export.add_argument(
        "--weights", choices=("average", "trained"), default="average", help="Averaged (default) or last weights."
    )
    export.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="Its numbers.")
    export.add_argument("--verify", action="store_true", help="Draw samples before and after, too: for small models.")
    flight = add("flight", _flight, "Print what was recorded of a run's last steps when it crashed.")
    flight.add_argument("run_dir", type=Path, help="A folder under outputs/.")
    migrate = add("migrate-config", _migrate_config, "Print a recipe with today's names of its fields; comments stay.")
    migrate.add_argument("config", type=Path, help="A recipe with names of before.")
    migrate.add_argument("--write", action="store_true", help="Rewrite the file in place of printing.")
    add_flags(add("from-deepgen", _from_deepgen, "Translate a command line of DeepGen-RL into a recipe."))
    lab = add("from-nanovlm-lab", _from_nanovlm_lab, "Translate a YAML of NanoVLM-Lab into a recipe.")
    lab.add_argument("config", type=Path, help="Its YAML; `train` takes it as it is, too.")
    lab.add_argument("--gpus", type=int, help="Processes in all (default: as WORLD_SIZE, or NNODES and NGPUS say).")
    for name, command in VERBATIM.items():
        verbatim = add(name, command, f"Translate a command line of {command.program} into a recipe.")
        verbatim.formatter_class = argparse.RawDescriptionHelpFormatter
        verbatim.epilog = command.help()
        verbatim.add_argument(
            "arguments", nargs="+", metavar="WORD", help="The command line as it was typed, or the path of its script."
        )
    pairs = add("build-pairs", _build_pairs, "Pair captioned images with questions about images, by their features.")
    add_pair_flags(pairs)
    return parser


def _check_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """End with a sentence where the first word is no command, as in `python -m trainer configs/quickstart.yaml`."""
    if not argv or argv[0].startswith("-") or argv[0] in COMMANDS:
        return
    if argv[0].endswith((".yaml", ".yml")):
        remedy = f"; to train with it: {parser.prog} train {argv[0]}"
    else:
        remedy = did_you_mean(argv[0], COMMANDS)
    parser.error(f"no command {argv[0]!r} (there are {', '.join(COMMANDS)}){remedy}")


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    if argv and argv[0] in VERBATIM and not {"-h", "--help"} & set(argv) and len(argv) > 1:
        return argparse.Namespace(command=argv[0], run=VERBATIM[argv[0]], arguments=list(argv[1:]))
    args, rest = parser.parse_known_args(argv)
    # argparse takes overrides right behind the recipe alone, and they are as plain behind a flag.
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *overrides]
    return args


def main(argv: Sequence[str] | None = None, prog: str = "python -m trainer") -> int:
    parser = build_parser(prog)
    _check_command(parser, sys.argv[1:] if argv is None else argv)
    args = _parsed(parser, sys.argv[1:] if argv is None else argv)
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
        rest = {
            "train": "; the next start goes on from the newest checkpoint, if there is one",
            "sft": "; the next start goes on from the newest checkpoint, if there is one",
            "generate": "; what is made is kept, and the same command goes on",
        }
        print(f"interrupted{rest.get(args.command, '')}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
