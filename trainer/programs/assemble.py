"""Puts a run together: world, policy, data, reward services, recorder, and the state of an earlier start."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.advantages import RunningSpread
from trainer.checkpoint import Checkpoint, CheckpointError, find_resume
from trainer.config import Config, RewardsConfig
from trainer.config.deepspeed import check_accumulation
from trainer.config.file import dump_config
from trainer.data.datasets import Dataset, PromptSampler, load_train_prompts, without
from trainer.data.overlap import FILE as LEFT_OUT
from trainer.data.overlap import Settled, settle
from trainer.engine import Engine, build_engine
from trainer.evaluation import EvaluationSet, Evaluator, Rounds, load_sets, trained_on
from trainer.objectives import needs_reference
from trainer.objectives.captions import caption_prompts
from trainer.policies import build_policy
from trainer.policies.base import Samples
from trainer.processes.distributed import World, world
from trainer.processes.run_lock import run_lock
from trainer.processes.stopping import StopSignals
from trainer.programs.closing import closing_lines
from trainer.programs.plan import picture_sizes
from trainer.programs.prompt_notes import prompt_notes
from trainer.programs.rollout import Drawn
from trainer.programs.saving import Saver, find_start, restore
from trainer.programs.scorer_records import check_agreement, scorer_records
from trainer.records.flight_recorder import FlightRecorder
from trainer.records.hardware import Gauges
from trainer.records.recorder import Recorder, write_atomic
from trainer.records.starts import changes_since, keep_start
from trainer.report import build_report
from trainer.rewards import LocalServices, RewardClient, TapeRecorder, resolve_urls
from trainer.types import StopTrainingError
from trainer.update.ema import Ema
from trainer.update.updater import Updater


@dataclass
class Totals:
    """Sums over the whole run, kept through restarts; summary.json is made of them."""

    train_s: float = 0.0
    evaluate_s: float = 0.0
    reward_wait_s: float = 0.0
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    def add(self, row: Mapping[str, float | None]) -> None:
        """Take in a training step's row."""
        self.train_s += row["time/total"] or 0.0
        self.reward_wait_s += row["time/reward_wait"] or 0.0
        for key, count in row.items():
            if key.startswith("failed/") and count:
                _, name, code = key.split("/", 2)
                codes = self.failed.setdefault(name, {})
                codes[code] = codes.get(code, 0) + int(count)

    def add_evaluation(self, step: int, means: dict[str, float], seconds: float) -> None:
        """Take in an evaluation after `step` steps; step 0 is `before`."""
        self.evaluate_s += seconds
        if step == 0:
            self.before = dict(means)
        self.after = dict(means)


@dataclass
class Run:
    """Everything a step needs. `step` counts finished steps; `position` is the sampler's after them.

    `executor` has a thread that waits for scores. `drawn` is the next step's batch where it is sampled ahead; it is not
    saved, and a resumed run samples it again.
    `row` is the last step's row of metrics.jsonl as long as its evaluation is not done; a checkpoint keeps it.
    """

    config: Config
    world: World
    policy: Samples
    engine: Engine
    updater: Updater
    ema: Ema
    sampler: PromptSampler
    evaluator: Evaluator
    client: RewardClient
    recorder: Recorder
    flight: FlightRecorder
    gauges: Gauges
    spread: RunningSpread
    saver: Saver
    signals: StopSignals
    executor: Executor
    position: dict[str, Any]
    step: int = 0
    drawn: Drawn | None = None
    row: dict[str, float | None] | None = field(default_factory=lambda: dict[str, float | None](step=0))
    totals: Totals = field(default_factory=Totals)

    def stop_requested(self) -> bool:
        """Whether a signal to stop reached any rank."""
        return self.world.any(self.signals.asked)

    def stop_together(self, reason: str | None) -> None:
        """Raise StopTrainingError on every rank when any rank has a reason."""
        reasons = [r for r in self.world.gather(reason) if r]
        if reasons:
            raise StopTrainingError(reasons[0])

    def build_report(self) -> None:
        """Build report.html (rank 0). A page that cannot be built is said so; it never costs a run."""
        if not self.world.is_main:
            return
        try:
            build_report(self.config.run_dir)
        except Exception as error:
            self.recorder.note(f"report.html was not built ({type(error).__name__}: {error}); nothing else is affected")

    def finish(self, stopped: str | None = None) -> None:
        """Write summary.json and the report; say where they are."""
        totals = self.totals
        summary = {
            "eval": {"before": totals.before, "after": totals.after, **self.evaluator.intervals()},
            "steps": self.step,
            "wall_s": totals.train_s + totals.evaluate_s,
            "train_s": totals.train_s,
            "evaluate_s": totals.evaluate_s,
            "reward_wait_share": totals.reward_wait_s / totals.train_s if totals.train_s else 0.0,
            "failed_rewards": sum(sum(codes.values()) for codes in totals.failed.values()),
            "failed_by_reward": totals.failed,
            "seed": self.config.seed,
            "eval_prompts": sum(len(each.prompts) for each in self.evaluator.sets),
            "stopped": stopped,
            "owed": None if self.row is None else self.step,
            "about_base": self.policy.about,
            "hardware": hardware(self.world),
        }
        self.recorder.write_summary(summary)
        self.build_report()
        self.recorder.farewell(closing_lines(self.config, summary))


def hardware(group: World) -> str:
    """The machine in a line."""
    if group.device.type == "cuda":
        return f"{group.size} x {torch.cuda.get_device_name(group.device)}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} torch threads per process"


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
def assemble(config: Config, signals: StopSignals | None = None) -> Iterator[Run]:
    """Build a run, restore the checkpoint that `config.resume` names, and take everything down whatever happens.

    Args:
        signals: heard already; None: from here on.

    Raises:
        ConfigError, DataError, CheckpointError, RewardServiceError: something does not fit; the message says what.
        StartStoppedError: a signal came before the run was put together.
    """
    with ExitStack() as stack:
        signals = signals or stack.enter_context(StopSignals())
        data = _load_data(config)
        train_rows = [prompt for dataset in data.train for prompt in dataset.prompts]
        group = stack.enter_context(world(config.distributed))
        check_accumulation(config.distributed.deepspeed, config.deepspeed_owner, group.size)
        if group.is_main:
            stack.enter_context(run_lock(config.run_dir))
        checkpoint, passed_over = find_start(config, group)
        torch.manual_seed(config.seed)
        policy = build_policy(config.policy, group.device, keep_reference=needs_reference(config.algorithm))
        policy.check_prompts([*train_rows, *(prompt for each in data.sets for prompt in each.prompts)])
        for height, width in picture_sizes(config):
            policy.check_size(height, width)
        recorder = stack.enter_context(
            Recorder(
                config.run_dir,
                config_yaml=dump_config(config),
                is_main=group.is_main,
                resume_step=_last_whole_row(checkpoint),
                max_steps=config.max_steps,
                logging=config.logging,
            )
        )
        _say_of_prompts(recorder, config, data)
        sampler = PromptSampler(
            data.train,
            prompts_per_step=config.sampling.prompts_per_step,
            seed=config.seed,
            rank=group.rank,
            world=group.size,
        )
        # One thread waits for scores while the main thread looks out for signals, one scores evaluations in the background.
        executor = stack.enter_context(ThreadPoolExecutor(2, "scores"))  # ends after the client, which ends its work
        client = stack.enter_context(_connect(config, group, stack, recorder, checkpoint))
        check_agreement(client, group)
        engine = build_engine(policy.trainable, config.optim, config.distributed, group)
        saver = Saver(config, group)
        stack.callback(saver.close)
        ema = Ema(policy.trainable, config.optim.ema_decay)
        rounds = Rounds(data.sets, config, policy, client, group, trained_on(train_rows), executor)
        evaluator = Evaluator(rounds, config, ema.applied, group, recorder, executor)
        run = Run(
            config=config,
            world=group,
            policy=policy,
            engine=engine,
            updater=Updater(policy, engine, config.algorithm, config.optim, group, config.max_steps, config.seed),
            ema=ema,
            sampler=sampler,
            position=sampler.state_dict(),
            evaluator=evaluator,
            client=client,
            recorder=recorder,
            flight=FlightRecorder(config.run_dir, group, recorder.note),
            gauges=Gauges(policy.trainable, group, config.logging.peak_tflops),
            spread=RunningSpread(len(config.rewards.columns)),
            saver=saver,
            signals=signals,
            executor=executor,
        )
        if run.updater.sft is not None:
            run.updater.sft.data.leave_out(data.overlap.texts())
        _take_up(run, checkpoint, passed_over)
        recorder.write_scorers(scorer_records(client, group))
        signals.training(client.interrupt, says=group.is_main)
        with run.flight.on_crash():
            yield run


@dataclass(frozen=True)
class _Data:
    """Training sets without what is left out of them, held-out sets, what the two had in common, and of how many rows."""

    train: list[Dataset]
    sets: list[EvaluationSet]
    overlap: Settled
    num_train: int


def _load_data(config: Config) -> _Data:
    """Read the prompts of a run. Raises DataError, ConfigError."""
    train = load_train_prompts(config.data)
    rows = [prompt for dataset in train for prompt in dataset.prompts]
    sets = load_sets(config, rows)
    heldout = [prompt for each in sets for prompt in each.prompts]
    if config.algorithm.sft is not None:
        rows += caption_prompts(config.algorithm.sft)
    overlap = settle(config, rows, heldout)
    return _Data(without(train, config.data, overlap.ids()), sets, overlap, len(rows))


def _say_of_prompts(recorder: Recorder, config: Config, data: _Data) -> None:
    """Say what is lost of long prompts and which training prompts are also held out; list those that are left out."""
    if not recorder.is_main:
        return
    prompts = [prompt for dataset in data.train for prompt in dataset.prompts]
    prompts += [prompt for each in data.sets for prompt in each.prompts]
    for note in prompt_notes(config, prompts):
        recorder.note(f"{note.sentence}: {note.remedy}")
    listing = recorder.run_dir / LEFT_OUT
    if data.overlap.left_out:
        write_atomic(listing, data.overlap.listing())
    else:
        listing.unlink(missing_ok=True)
    if sentence := data.overlap.sentence(data.num_train, listing if data.overlap.left_out else None):
        recorder.note(sentence)


def _take_up(run: Run, checkpoint: Checkpoint | None, passed_over: Sequence[str]) -> None:
    """Begin anew, or go on from a checkpoint; say which, and what the configuration has changed in. It is kept once the
    checkpoint is taken over: a start that is refused leaves the folder's own as it was."""
    for sentence in passed_over:
        run.recorder.note(sentence)
    text = dump_config(run.config)
    if checkpoint is None:
        run.evaluator.begin_anew()
    else:
        restore(run, checkpoint)
        run.recorder.note(f"Going on from {checkpoint.path} (step {run.step} of {run.config.max_steps})")
        changed = changes_since(run.config.run_dir, run.step, text) if run.world.is_main else []
        if changed:
            run.recorder.note(f"The config has changed since step {run.step} was trained:")
        for change in changed:
            run.recorder.note(f"  {change}")
    if run.world.is_main:
        keep_start(run.config.run_dir, None if checkpoint is None else run.step, text)


def _last_whole_row(checkpoint: Checkpoint | None) -> int | None:
    """The last step whose row and samples stay: the checkpoint's, or the one before when its evaluation is to be made."""
    if checkpoint is None:
        return None
    return checkpoint.step - 1 if checkpoint.state["row"] is not None else checkpoint.step


def _connect(
    config: Config, group: World, stack: ExitStack, recorder: Recorder, checkpoint: Checkpoint | None
) -> RewardClient:
    """Start the local services and connect every rank, or take the answers from a tape."""
    if config.rewards.tape.mode == "replay":
        return RewardClient(config.rewards, urls={})
    notify = recorder.note if group.is_main else None  # lines that keep the progress bar whole
    launched = start_services(config.rewards, group, stack, config.run_dir / "logs", notify)
    tape = None
    if config.rewards.tape.mode == "record":
        last_row = _last_whole_row(checkpoint)
        tape = TapeRecorder(
            Path(config.rewards.tape.path or config.run_dir / "tape"),
            rank=group.rank,
            world_size=group.size,
            last_train=-1 if checkpoint is None else checkpoint.step,
            last_evaluation=-1 if last_row is None else last_row,
        )
    urls = resolve_urls(config.rewards, launched)
    return RewardClient(config.rewards, urls=urls, tape=tape, is_main=group.is_main)


def start_services(
    rewards: RewardsConfig, group: World, stack: ExitStack, logs: Path, notify: Callable[[str], None] | None
) -> dict[str, list[str]]:
    """Start the local services (one process per node does) and share their addresses; none where none are to start."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    launched: dict[str, list[str]] = {}
    if rewards.launch == "local" and local_rank == 0:
        services = stack.enter_context(LocalServices(rewards, logs, notify=notify))
        launched = {name: list(urls) for name, urls in services.urls.items()}
    shared: dict[str, list[str]] = group.gather(launched)[group.rank - local_rank]
    return shared
