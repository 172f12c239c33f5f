"""Log-probabilities of given answers under the starting weights, computed before the first step and kept in the run folder.

A run that looks them up holds no second copy of the model. Each answer is known by a hash of its content, so that a restart,
another number of ranks or another order finds it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.config import Config, ConfigError
from trainer.objectives.tokens.preference import PairBatch, TokenDpo
from trainer.processes.distributed import World, even_share
from trainer.types import AnswerPair

FOLDER = "reference"  # in the run folder
_DRIFT = 0.02  # nats a token, on average, that another machine may compute differently
_EVERY = 50  # steps between two files, so that a kill loses no more


class ReferenceTable:
    """What `TokenDpo.reference` is where the reference is precomputed.

    Args:
        folder: where the files are: `<hash of what they depend on>/<hash of the file>.safetensors`.
        identity: what the numbers depend on beside the answers: the model and how it is read.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._logp: dict[str, Tensor] = {}  # an empty one: its pair cannot be read

    def __len__(self) -> int:
        return len(self._logp)

    def __contains__(self, key: str) -> bool:
        return key in self._logp

    def of(self, key: str) -> Tensor:
        """(S,) float32; empty where the pair cannot be read."""
        return self._logp[key]

    def __call__(self, batch: PairBatch) -> Tensor:
        """logp_BS (2N, S) of a micro-batch, padded by 0.

        Raises:
            ValueError: an answer has another number of tokens than when it was computed.
        """
        rows = []
        for key, text in zip(_keys(batch), batch.texts_B, strict=True):
            logp_S = self._logp[key]
            if len(logp_S) != len(text.tokens):
                raise ValueError(
                    f"{self.folder} holds {len(logp_S)} log-probabilities of an answer that has {len(text.tokens)} tokens now: "
                    "tokenizer or chat template have changed; delete that folder, or choose another run_name"
                )
            rows.append(logp_S)
        return pad_sequence(rows, batch_first=True)

    def has(self, pair: AnswerPair) -> bool:
        """Whether both answers of the pair are known."""
        return all(key in self._logp for key in _keys_of(pair))

    def take(self, found: dict[str, str]) -> None:
        """Take in numbers by the answer's key, as `encoded` gives them; what is known stays as it is."""
        for key, data in found.items():
            self._logp.setdefault(key, decoded(data))

    def read(self) -> dict[str, str]:
        """What the files hold; a damaged file is as good as none."""
        found: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if hashlib.sha256(path.read_bytes()).hexdigest()[:16] != path.stem:
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    keys, parts = json.loads(file.metadata()["keys"]), file.get_tensor("lengths").tolist()
                    pieces = file.get_tensor("logp").split(parts)
            except (SafetensorError, KeyError, ValueError):
                continue
            found |= {key: encoded(piece) for key, piece in zip(keys, pieces, strict=True)}
        return found

    def write(self, keys: Sequence[str], world: World) -> None:
        """Rank 0 writes the numbers of these answers into a file of their own, named by its content."""
        if not keys or not world.is_main:
            return
        rows = [self._logp[key] for key in keys]
        tensors = {"logp": torch.cat(rows), "lengths": torch.tensor([len(row) for row in rows])}
        data = save(tensors, metadata={"keys": json.dumps(list(keys))})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.writing")
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


def precomputed(
    config: Config, world: World, objective: TokenDpo, held_out: Sequence[AnswerPair], note: Callable[[str], None]
) -> ReferenceTable:
    """The table for all steps of the run and for the pairs that are held out; what is not in the run folder is computed. The
    policy has its starting weights.

    The pairs are gone through as the steps will: a pair met in the first step has the neighbours that it is trained with, so
    that its first log-ratio is exactly 0.

    Raises:
        ConfigError: what the folder holds is of other starting weights.
        StopTrainingError: pairs cannot be read.
    """
    depends_on = [config.policy.model_dump(mode="json"), objective.limits.max_tokens]
    table = ReferenceTable(config.run_dir / FOLDER, json.dumps(depends_on, sort_keys=True))
    table.take(world.gather(table.read() if world.is_main else {})[0])
    given, before = objective.given, len(table)
    if before:
        _check_same_weights(table, world, objective)
    fresh: list[str] = []

    def add(rows: Sequence[AnswerPair], batches: Callable[[], list[PairBatch]]) -> None:
        """Compute the pairs of this rank, where any rank has one that is not known."""
        if not world.any(not all(map(table.has, rows))):
            return
        found = _logps(world, objective, batches())
        found = {key: "" for row in rows for key in _keys_of(row) if key not in found} | found
        for told in world.gather(found):
            fresh.extend(key for key in told if key not in table)
            table.take(told)

    for step in range(min(config.max_steps, -(-len(given.rows) // given.batch_size))):
        rows = [given.rows.row(step * given.batch_size + place) for place in given.places]
        add(rows, lambda step=step: objective.batches(None, step))  # type: ignore[misc]
        if (step + 1) % _EVERY == 0:
            table.write(fresh, world)
            fresh.clear()
    share = even_share(len(held_out), world.rank, world.size)
    own = [held_out[index] for index in share.indices]
    add(own, lambda: objective.batches_of(own))
    table.write(fresh, world)
    if len(table) > before:
        note(f"The reference's log-probabilities of {len(table) - before} answers are in {table.folder}")
    return table


@torch.no_grad()
def _logps(world: World, objective: TokenDpo, batches: Sequence[PairBatch]) -> dict[str, str]:
    """Of the answers of this rank's micro-batches, by key. All ranks make equally many forward passes, as sharded weights
    need."""
    passes = list(batches) or objective.batches(None, 0)[:1]
    passes += [passes[-1]] * (max(world.gather(len(passes))) - len(passes))
    found: dict[str, str] = {}
    for batch in passes:
        logp_BS = objective.logp(batch).float().cpu()
        for key, text, logp_S in zip(_keys(batch), batch.texts_B, logp_BS, strict=True):
            found[key] = encoded(logp_S[: len(text.tokens)])
    return found


def _check_same_weights(table: ReferenceTable, world: World, objective: TokenDpo) -> None:
    """Compute the first step's anew. Raises ConfigError, on all ranks, where the kept ones are of other weights."""
    drift = 0.0
    for key, data in _logps(world, objective, objective.batches(None, 0)).items():
        if key in table and (kept_S := table.of(key)).numel():
            drift = max(
                drift, (decoded(data) - kept_S).abs().mean().item() if len(decoded(data)) == len(kept_S) else _DRIFT
            )
    if world.any(not drift < _DRIFT):
        raise ConfigError(
            f"{table.folder} holds the reference's log-probabilities, but policy.pretrained gives others now (by {drift:.2g} a "
            f"token, more than {_DRIFT:g}): put the weights back that this run began with, or choose another run_name"
        )


def encoded(logp_S: Tensor) -> str:
    """Float32 numbers as text that JSON holds, bit for bit."""
    return base64.b64encode(logp_S.float().numpy().tobytes()).decode()


def decoded(data: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), np.float32).copy())


def _keys(batch: PairBatch) -> list[str]:
    """Of the chosen answers, then of the rejected ones."""
    keys = [_keys_of(pair.row) for pair in batch.pairs]
    return [chosen for chosen, _ in keys] + [rejected for _, rejected in keys]


def _keys_of(row: AnswerPair) -> tuple[str, str]:
    """Hashes of prompt, images and answer."""
    images = [_image_hash(path) for path in row.prompt.source_images]
    chosen, rejected = (
        hashlib.sha256(json.dumps([row.prompt.text, images, answer]).encode()).hexdigest()
        for answer in (row.chosen, row.rejected)
    )
    return chosen, rejected


@lru_cache(maxsize=100_000)
def _image_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # reading the pair says what is wrong with it
        return "unreadable"
