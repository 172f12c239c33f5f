"""Puts a run together: world, policy, texts, reward services, records, its program, and the state of an earlier start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module

import torch

from trainer.checkpoint import Checkpoint, CheckpointError, find_resume
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.starting import find_start
from trainer.config import Config
from trainer.config.deepspeed import check_accumulation, check_node_share
from trainer.config.file import dump_config
from trainer.config.programs import ProgramName
from trainer.data.joined import Joined
from trainer.data.overlap import FILE as LEFT_OUT
from trainer.engine import build_engine, shares_weights
from trainer.engine.groups import check_groups
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.rounds import Rounds
from trainer.evaluation.sets import trained_on
from trainer.policies.base import KeepsCopy, NamesGroups
from trainer.policies.placing import waiting
from trainer.policies.registry import entry_of
from trainer.processes.distributed import World, world
from trainer.processes.run_lock import run_lock
from trainer.processes.stopping import StopSignals
from trainer.programs.base import Kind, Material, Program
from trainer.programs.own_code import OwnCode, check_same_code, read_code, try_code
from trainer.programs.prompt_notes import prompt_notes
from trainer.programs.reporting import ReportBuilder
from trainer.programs.rollout_servers import rollout_servers
from trainer.programs.scorer_records import ScorerRecords, check_agreement
from trainer.programs.services import begin_services, connect
from trainer.programs.session import Session
from trainer.records.flight.recorder import FlightRecorder
from trainer.records.hardware import Gauges
from trainer.records.own_code import changed_code, keep_code
from trainer.records.progress import Watched
from trainer.records.recorder import Recorder, write_atomic
from trainer.records.starts import changes_since, keep_start
from trainer.update.ema import Ema

DATA_NOTES = "data_notes.txt"  # in the run's folder


def kind_of(program: ProgramName) -> Kind:
    """How `program` is made: `KIND` of the module in this folder that is named after it."""
    kind: Kind = import_module(f"trainer.programs.{program}").KIND
    return kind


def is_finished(config: Config) -> bool:
    """Whether the checkpoint that a start would go on from is whole and has all steps, and what follows the last one was
    done, too."""
    candidates = find_resume(config.resume, config.run_dir / "checkpoints")
    if not candidates:
        return False
    try:
        checkpoint = Checkpoint.open(candidates[0])
        if checkpoint.step < config.max_steps or checkpoint.state["row"] is not None:
            return False  # there are steps to make, or the last one's evaluation
        checkpoint.verify()  # by every rank: they cannot share it yet, and all must come to the same answer
    except CheckpointError:
        return False  # the start says what is wrong, or goes on from an older one
    try:
        summary = json.loads((config.run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # killed before it was written
    return bool(summary["steps"] >= config.max_steps and not summary["stopped"])


@contextmanager
def assemble(config: Config, signals: StopSignals | None = None) -> Iterator[Program]:
    """Build a run, restore the checkpoint that `config.resume` names, and take everything down whatever happens.

    Args:
        signals: heard already; None: from here on.

    Raises:
        ConfigError, DataError, CheckpointError, RewardServiceError: something does not fit; the message says what.
        StartStoppedError: a signal came before the run was put together.
    """
    with ExitStack() as stack:
        signals = signals or stack.enter_context(StopSignals())
        kind = kind_of(config.program)
        own = read_code(config)
        material = kind.read(config)
        try_code(config, material.sets)
        ranks = stack.enter_context(world(config.distributed))
        check_accumulation(config.distributed.deepspeed, config.deepspeed_owner, ranks.size)
        check_node_share(config.distributed.deepspeed, ranks.size)
        if ranks.is_main:
            stack.enter_context(run_lock(config.run_dir))
        check_same_code(own, ranks)
        checkpoint, passed_over = find_start(config, ranks)
        source = kind.deal(config, material, ranks)
        session = _open_session(config, kind, material, ranks, checkpoint, signals, stack)
        program = kind.build(session, material, source)
        session.saver = Saver(
            config,
            ranks,
            note=session.recorder.note,
            trained=session.engine,
            tensors=[session.ema, *program.tensors],
            states={**program.states(), **session.states()},
        )
        stack.callback(session.saver.close)
        _take_up(session, checkpoint, passed_over, own)
        program.begin()
        session.scorers.take()
        signals.training(session.client.interrupt, says=ranks.is_main)
        with session.flight.on_crash():
            yield program


def _open_session(
    config: Config,
    kind: Kind,
    material: Material,
    ranks: World,
    checkpoint: Checkpoint | None,
    signals: StopSignals,
    stack: ExitStack,
) -> Session:
    """All that programs share, but for the saver."""
    services = None
    if config.rewards.tape.mode != "replay":
        services = begin_services(config.rewards, stack, config.run_dir / "logs")  # ready once the policy is built
    torch.manual_seed(config.seed)
    with waiting(shares_weights(config.distributed)):
        policy = kind.policy(config, ranks.device)
    group_of = policy.group_of if isinstance(policy, NamesGroups) else {}
    check_groups(policy.trainable, config.optim, group_of)
    prompts = Joined([material.checked, material.heldout])
    policy.check_prompts(Watched(prompts, "reading the prompts", shown=ranks.is_main))
    entry_of(config.policy).family.check_plans(config, policy)
    last_row = _last_whole_row(checkpoint)
    recorder = stack.enter_context(
        Recorder(
            config.run_dir,
            config_yaml=dump_config(config),
            is_main=ranks.is_main,
            resume_step=last_row,
            max_steps=config.max_steps,
            logging=config.logging,
        )
    )
    _say_of_prompts(recorder, config, material)
    frozen = policy.copy if isinstance(policy, KeepsCopy) else None
    engine = build_engine(policy.trainable, config.optim, config.distributed, ranks, group_of, frozen)
    ema = Ema(policy.trainable, config.optim.ema_decay)
    # One thread waits for scores while the main thread looks out for signals, one scores evaluations in the background.
    executor = stack.enter_context(ThreadPoolExecutor(2, "scores"))  # ends after the client, which ends its work
    step = None if checkpoint is None else checkpoint.step
    client = stack.enter_context(connect(config, ranks, services, recorder, step, last_row))
    check_agreement(client, ranks)
    servers = stack.enter_context(
        rollout_servers(config, policy, material.prompts, ranks, recorder.note, lambda: signals.asked)
    )
    averaged = ema.applied if servers is None or not ema.decay else servers.averaged(ema.applied)
    rounds = Rounds(material.sets, config, policy, client, ranks, trained_on(material.prompts), executor)
    return Session(
        config=config,
        world=ranks,
        policy=policy,
        engine=engine,
        ema=ema,
        evaluator=Evaluator(rounds, config, averaged, ranks, recorder, executor),
        client=client,
        scorers=ScorerRecords(client, ranks, recorder),
        recorder=recorder,
        report=stack.enter_context(ReportBuilder(config.run_dir, recorder.note, is_main=ranks.is_main)),
        flight=FlightRecorder(config.run_dir, ranks, recorder.note),
        gauges=Gauges(policy.trainable, ranks, config.logging.peak_tflops),
        signals=signals,
        executor=executor,
        closing=stack,
        servers=servers,
    )


def _say_of_prompts(recorder: Recorder, config: Config, material: Material) -> None:
    """Say what is lost of long prompts and which training prompts are also held out; list those that are left out."""
    if not recorder.is_main:
        return
    for each in material.notes:
        recorder.note(each)
    if material.notes:  # the hash of a file that changes rows, and what was left out, belong to the run's records
        write_atomic(recorder.run_dir / DATA_NOTES, "".join(f"{each}\n" for each in material.notes))
    for note in prompt_notes(config, Joined([material.prompts, material.heldout])):
        recorder.note(f"{note.sentence}: {note.remedy}")
    listing = recorder.run_dir / LEFT_OUT
    if material.overlap.left_out:
        write_atomic(listing, material.overlap.listing())
    else:
        listing.unlink(missing_ok=True)
    if sentence := material.overlap.sentence(material.num_train, listing if material.overlap.left_out else None):
        recorder.note(sentence)


def _take_up(session: Session, checkpoint: Checkpoint | None, passed_over: Sequence[str], own: OwnCode) -> None:
    """Begin anew, or go on from a checkpoint; say which, and what the configuration has changed in. It is kept once the
    checkpoint is taken over: a start that is refused leaves the folder's own as it was."""
    config, recorder = session.config, session.recorder
    for sentence in passed_over:
        recorder.note(sentence)
    text = dump_config(config)
    if checkpoint is None:
        session.evaluator.begin_anew()
    else:
        session.step = checkpoint.step
        session.saver.restore(checkpoint)
        recorder.note(f"Going on from {checkpoint.path} (step {session.step} of {config.max_steps})")
        changed = changes_since(config.run_dir, session.step, text) if session.world.is_main else []
        if changed:
            recorder.note(f"The config has changed since step {session.step} was trained:")
        for change in changed:
            recorder.note(f"  {change}")
        for sentence in changed_code(config.run_dir, own.code) if session.world.is_main else []:
            recorder.note(sentence)
    session.weights_changed({})  # which are the checkpoint's now
    if session.world.is_main:
        keep_start(config.run_dir, None if checkpoint is None else session.step, text)
        keep_code(config.run_dir, own.code, own.contents)


def _last_whole_row(checkpoint: Checkpoint | None) -> int | None:
    """The last step whose row and samples stay: the checkpoint's, or the one before when its evaluation is to be made."""
    if checkpoint is None:
        return None
    return checkpoint.step - 1 if checkpoint.state["row"] is not None else checkpoint.step
