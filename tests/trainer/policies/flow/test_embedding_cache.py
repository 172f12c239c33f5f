"""The cache of prompt embeddings: bounded memory, shared disk, damaged files, other encoders."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.policies.flow.embedding_cache import EmbeddingCache, fingerprint


class Encoder:
    """Counts what it encodes; an embedding tells its text by its length."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.asked: list[str] = []
        self.dtype = dtype

    def __call__(self, text: str) -> Mapping[str, Tensor]:
        self.asked.append(text)
        return {"states": torch.full((4, 8), float(len(text)), dtype=self.dtype), "pooled": torch.arange(8.0)}


STATES_BYTES, POOLED_BYTES = 4 * 8 * 4, 8 * 4
ENTRY_BYTES = STATES_BYTES + POOLED_BYTES


def cache(folder: Path | None = None, name: str = "encoder", entries: int = 100) -> EmbeddingCache:
    return EmbeddingCache(name, max_bytes=entries * ENTRY_BYTES, folder=folder)


def entry_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


def test_a_text_is_encoded_once() -> None:
    encoder, cached = Encoder(), cache()
    first, again = cached.get("a cat", encoder), cached.get("a cat", encoder)
    assert encoder.asked == ["a cat"] and first is again


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    encoder, cached = Encoder(), cache(entries=2)
    for text in ("a", "b", "a", "c"):  # c takes the place of b
        cached.get(text, encoder)
    for text in ("a", "c", "b"):
        cached.get(text, encoder)
    assert encoder.asked == ["a", "b", "c", "b"]


def test_an_entry_larger_than_the_memory_is_still_given() -> None:
    cached = EmbeddingCache("encoder", max_bytes=1)
    assert torch.equal(cached.get("abc", Encoder())["pooled"], torch.arange(8.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_run_reads_the_same_bits_from_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    written = cache(tmp_path).get("a cat", Encoder(dtype))
    encoder, other = Encoder(dtype), cache(tmp_path)
    read = other.get("a cat", encoder)
    assert encoder.asked == []
    assert read["states"].dtype == dtype
    assert all(torch.equal(read[name], written[name]) for name in ("states", "pooled"))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"], "nothing temporary"


def test_what_memory_forgot_comes_from_disk(tmp_path: Path) -> None:
    encoder, cached = Encoder(), cache(tmp_path, entries=1)
    for text in ("a", "b", "a", "b"):
        cached.get(text, encoder)
    assert encoder.asked == ["a", "b"]


def test_another_encoder_shares_nothing(tmp_path: Path) -> None:
    cache(tmp_path, "one").get("a cat", Encoder())
    encoder = Encoder()
    cache(tmp_path, "two").get("a cat", encoder)
    assert encoder.asked == ["a cat"]


def cut(data: bytes) -> bytes:
    return data[:-8]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_entry_is_encoded_again_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    cache(tmp_path).get("a cat", Encoder())
    path = entry_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    encoder = Encoder()
    with caplog.at_level(logging.WARNING):
        read = cache(tmp_path).get("a cat", encoder)
    assert encoder.asked == ["a cat"] and torch.equal(read["states"], torch.full((4, 8), 5.0))
    assert str(path) in caplog.text and "encoded again" in caplog.text
    cache(tmp_path).get("a cat", encoder)
    assert encoder.asked == ["a cat"], "repaired"


def test_a_disk_that_takes_nothing_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        cached = cache(blocked)
        assert "states" in cached.get("a cat", Encoder())
    assert "stays in memory only" in caplog.text


def _write_many(folder: Path, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for n in range(40):
        cache(folder).get("x" * n, Encoder())


def test_many_ranks_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    ranks = [context.Process(target=_write_many, args=(tmp_path, barrier)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    encoder = Encoder()
    for n in range(40):
        assert torch.equal(cache(tmp_path).get("x" * n, encoder)["states"], torch.full((4, 8), float(n)))
    assert encoder.asked == [] and len([p for p in tmp_path.rglob("*") if p.is_file()]) == 40


def test_a_fingerprint_sees_files_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(3 << 20))
    same = fingerprint([path], {"length": 8})
    assert fingerprint([path], {"length": 8}) == same
    assert fingerprint([path], {"length": 9}) != same
    for place in (0, -1):
        data = bytearray(3 << 20)
        data[place] = 1
        path.write_bytes(data)
        assert fingerprint([path], {"length": 8}) != same
    path.write_bytes(bytes((3 << 20) + 1))
    assert fingerprint([path], {"length": 8}) != same
