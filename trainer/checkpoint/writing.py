"""Writes checkpoints in the background, all ranks together, while training goes on.

A save is begun by all ranks on their main threads. From there each rank's thread writes its own shard, and rank 0's
thread, once every shard is there, writes the manifest and renames the folder. The threads meet through files
(`shard_01_of_04.done`, written whole) and never by a collective: a collective in a background thread would interleave
with those of training in an order that differs between ranks, and hang them. Waiting for the next step boundary instead
would leave a finished checkpoint unusable for as long as a step takes. Collectives are made by `begin` and `poll` only,
which the main threads call in the same order; `poll` carries a rank's failure to all.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.layout import (
    CheckpointError,
    discard_unfinished,
    flush,
    folder_name,
    publish,
    write_whole,
    writing_name,
)
from trainer.checkpoint.manifest import FileRecord, Manifest
from trainer.checkpoint.reading import RANDOM, shard_name
from trainer.checkpoint.retention import Retention
from trainer.processes.distributed import World

_POLL_S = 0.02
_GRACE_S = 10.0  # for the other ranks' shards, once this process is ending and they may be gone


@dataclass
class _Save:
    """A save on its way. `error` is set by the thread; `give_up_at`, a time of the monotonic clock, by the main thread."""

    step: int
    folder: Path
    state: str
    tensors: dict[str, Tensor]
    pending: int | None
    error: str | None = None
    give_up_at: float = math.inf


class CheckpointWriter:
    """Writes one checkpoint at a time. All ranks make the same calls in the same order, except `close`.

    Args:
        folder: the run's `checkpoints/`, which all ranks must share.
        retention: which checkpoints stay once one is written.
    """

    def __init__(self, folder: Path, world: World, retention: Retention) -> None:
        self.folder, self.world, self.retention = folder, world, retention
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether no save is known to be on its way."""
        return self._save is None

    def begin(
        self,
        step: int,
        parameters: Mapping[str, Mapping[str, Tensor]],
        random_state: Mapping[str, Tensor],
        state: str,
        pending: int | None = None,
    ) -> None:
        """Start writing the state after `step` steps; a save that is still on its way is waited for first.

        Args:
            parameters: this rank's share: per parameter its tensors by kind, on the CPU and nobody else's from now on.
            random_state: this rank's, by device.
            state: the text of `state.json`; rank 0's counts.
            pending: see `Retention.apply`.

        Raises:
            CheckpointError: the save before failed, or the folder cannot be written by every rank.
        """
        self.wait()
        tensors = {f"{kind}/{name}": t for name, kinds in parameters.items() for kind, t in kinds.items()}
        tensors |= {f"{device}/{RANDOM}": t for device, t in random_state.items()}
        self._save = _Save(step, self._make_folder(step), state, tensors, pending)
        self._thread = threading.Thread(target=self._run, args=(self._save,), name="checkpoint")
        self._thread.start()

    def poll(self) -> None:
        """Take note of a save that has ended on all ranks. Costs nothing while none is on its way.

        Raises:
            CheckpointError: on all ranks, when it failed on any.
        """
        if self._save is None or self._thread is None:
            return
        ended = not self._thread.is_alive()  # before the error is looked at, which the thread sets first
        reports = self.world.gather({"ended": ended, "error": self._save.error})
        errors = [f"rank {rank}: {each['error']}" for rank, each in enumerate(reports) if each["error"] is not None]
        if errors:
            step = self._save.step
            self._give_up(at=0.0)
            raise self._failed(step, "; ".join(errors))
        if all(report["ended"] for report in reports):
            self._thread.join()
            self._save = self._thread = None

    def wait(self) -> None:
        """Wait until nothing is on its way. Raises as `poll` does."""
        while self._save is not None:
            self.poll()
            time.sleep(_POLL_S if self._save is not None else 0)

    def close(self) -> None:
        """Let what is on its way end, or give it up where other ranks seem to be gone. For any moment, any rank."""
        if self._save is not None:
            self._give_up(at=time.monotonic() + _GRACE_S)

    def _give_up(self, *, at: float) -> None:
        """End the thread: this rank's own shard is written, those of others are waited for until `at`."""
        assert self._save is not None and self._thread is not None
        self._save.give_up_at = at
        self._thread.join()
        self._save = self._thread = None
        if self.world.is_main:
            discard_unfinished(self.folder)

    def _make_folder(self, step: int) -> Path:
        """A new folder, made by rank 0 and seen by all."""
        name, error = writing_name(step, uuid.uuid4().hex[:8]), None
        if self.world.is_main:
            try:
                (self.folder / name).mkdir(parents=True)
            except OSError as problem:
                error = str(problem)
        name, error = self.world.gather([name, error])[0]
        path = self.folder / str(name)
        seen = self.world.gather(path.is_dir())
        if error is None and not all(seen):
            ranks = [rank for rank, sees in enumerate(seen) if not sees]
            error = f"ranks {ranks} do not see {path}: output_dir must be one folder that all nodes share"
        if error is not None:
            raise self._failed(step, error)
        return path

    def _failed(self, step: int, why: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {step} could not be written under {self.folder} ({why}): free space or "
            "correct output_dir, then start again; the run goes on from the checkpoint before"
        )

    def _run(self, save: _Save) -> None:
        try:
            self._write_shard(save)
            if self.world.is_main:
                self._finish(save)
        except Exception as error:  # whatever it is, the main thread reports it at the next step boundary
            save.error = str(error) or type(error).__name__

    def _write_shard(self, save: _Save) -> None:
        rank, path = self.world.rank, save.folder / shard_name(self.world.rank, self.world.size)
        save_file(save.tensors, str(path))
        names = sorted({key.partition("/")[2] for key in save.tensors} - {RANDOM})
        save.tensors.clear()
        flush(path)
        record = {"file": asdict(FileRecord.of(path)), "parameters": names}
        write_whole(self._done_file(save, rank), json.dumps(record))

    def _finish(self, save: _Save) -> None:
        """Once all shards are there: state, manifest, rename (rank 0)."""
        write_whole(save.folder / "state.json", save.state)
        files = {"state.json": FileRecord.of(save.folder / "state.json")}
        shard_of: dict[str, int] = {}
        for rank in range(self.world.size):
            done = self._done_file(save, rank)
            while not done.exists():
                if time.monotonic() > save.give_up_at:
                    raise RuntimeError(f"the shard of rank {rank} did not come")
                time.sleep(_POLL_S)
            record = json.loads(done.read_text(encoding="utf-8"))
            files[shard_name(rank, self.world.size)] = FileRecord(**record["file"])
            shard_of |= dict.fromkeys(record["parameters"], rank)
            done.unlink()
        Manifest(save.step, files, shard_of).write(save.folder)
        flush(save.folder)
        publish(save.folder, self.folder / folder_name(save.step))
        self.retention.apply(save.pending)

    def _done_file(self, save: _Save, rank: int) -> Path:
        return save.folder / f"{shard_name(rank, self.world.size)}.done"
