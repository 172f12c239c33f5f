"""Prompts of large files: read by one process, kept on disk, drawn one by one, and the same as those that are held."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config import DataConfig
from trainer.data.datasets import Dataset, load_train_prompts, without
from trainer.data.fingerprints import fingerprint
from trainer.data.joined import Joined
from trainer.data.overlap import find_overlaps
from trainer.data.prompts import DataError, PromptFile, file, lines, read_prompt_file, shelf
from trainer.data.prompts.stored import StoredPrompts, fingerprint_of, one_of_each_kind
from trainer.data.sampler import PromptSampler
from trainer.seeds import sample_seed, sample_seeds
from trainer.types import Prompt

WEIGHTS = {"ocr": 1.0}
ROWS: list[dict[str, Any]] = [
    {"prompt": "a sign  that\tsays “OPEN”\nand glows", "targets": ["OPEN", "Ünder"]},
    {"prompt": "no lamps", "metadata": {"z": [1, 2.5, None, True], "a": {"y": "é", "b": 1e-7}}},
    {"prompt": "a lamp", "metadata": {"a": 1, "b": 2}, "negative_prompt": "dark"},
    {"prompt": "zwei Lampen", "id": "Ω/2"},
    {"prompt": "a lamp", "id": "b"},
]


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "LARGE", 0)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The place of every row that is checked from here on."""
    places: list[str] = []
    make = file._make_prompt

    def counted(where: str, *args: Any, **more: Any) -> Prompt:
        places.append(where)
        return make(where, *args, **more)

    monkeypatch.setattr(file, "_make_prompt", counted)
    return places


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path: Path, count: int) -> Path:
    path.write_text("".join(f"{n} lamps beside a door\n" for n in range(count)))
    return path


def stored(path: Path, cache: Path, **options: Any) -> PromptFile:
    return read_prompt_file(path, dataset="d", weights=WEIGHTS, cache=cache, **options)


def held(path: Path, **options: Any) -> PromptFile:
    return read_prompt_file(path, dataset="d", weights=WEIGHTS, **options)


def some_jsonl(folder: Path) -> Path:
    return jsonl(folder / "own.jsonl", ROWS)


def some_rows(folder: Path) -> Path:
    return jsonl(
        folder / "others.jsonl", [{"caption": "a lamp", "style": "oil"}, {"caption": "a lamp", "style": "oil"}]
    )


def some_json(folder: Path) -> Path:
    (folder / "list.json").write_text(json.dumps(["one", "two", {"prompt": "three", "n": 3}]))
    return folder / "list.json"


def some_table(folder: Path) -> Path:
    (folder / "table.csv").write_text('index,prompt,kind\n7,"a, lamp",x\n7,again,y\n,"",z\n8,a door,\n')
    return folder / "table.csv"


def some_folder(folder: Path) -> Path:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("\ufeffone\r\n\r\ntwo\r\n", encoding="utf-8")
    (folder / "texts" / "b.txt").write_text("two\nthree\nthree")
    return folder / "texts"


@pytest.mark.parametrize("make", [some_jsonl, some_rows, some_json, some_table, some_folder])
def test_stored_prompts_are_those_that_are_held(
    make: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, parsed: list[str]
) -> None:
    path = make(tmp_path)
    plain = held(path)
    said = [record.getMessage() for record in caplog.records]
    for _ in range(2):  # as it is written, and as it is found
        caplog.clear()
        parsed.clear()
        kept = stored(path, tmp_path / "cache")
        assert [record.getMessage() for record in caplog.records] == said
        assert isinstance(kept.prompts, StoredPrompts)
        assert list(kept.prompts) == list(plain.prompts) == [kept.prompts[n] for n in range(len(plain.prompts))]
        assert [list(p.metadata) for p in kept.prompts] == [list(p.metadata) for p in plain.prompts]
        assert (kept.path, list(kept.lines), kept.repeated, kept.skipped) == (
            plain.path,
            list(plain.lines),
            plain.repeated,
            plain.skipped,
        )
        assert fingerprint_of(kept.prompts) == fingerprint(plain.prompts)
    assert not parsed, "the second start checks no row"
    assert kept.prompts[-1] == plain.prompts[-1] and list(kept.prompts[1:]) == list(plain.prompts[1:])
    with pytest.raises(IndexError):
        kept.prompts[len(plain.prompts)]


def test_a_fingerprint_is_what_it_was(tmp_path: Path) -> None:
    """The hash of one JSON list, which checkpoints of earlier releases hold."""
    prompts = held(some_jsonl(tmp_path)).prompts
    rows = [
        [p.id, p.text, p.targets, p.metadata, *([{"negative_prompt": p.negative_prompt}] if p.negative_prompt else [])]
        for p in sorted(prompts, key=lambda p: p.id)
    ]

    whole = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert fingerprint(prompts) == whole


def test_of_processes_that_start_together_one_reads(tmp_path: Path, parsed: list[str]) -> None:
    path, found = numbered(tmp_path / "train.txt", 500), []
    threads = [threading.Thread(target=lambda: found.append(stored(path, tmp_path / "cache"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parsed) == 500, "a lock on a file that each has opened for itself keeps the others waiting"
    assert [len(each.prompts) for each in found] == [500] * 3 and found[0].prompts[499] == found[2].prompts[499]


def test_who_waits_for_another_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said, found = numbered(tmp_path / "train.txt", 5), threading.Event(), []
    stored(path, tmp_path / "cache")
    monkeypatch.setattr(shelf.logger, "warning", lambda *words: said.set())
    (lock,) = (tmp_path / "cache").glob("*.lock")
    with lock.open("ab") as held_by_another:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)
        waits = threading.Thread(target=lambda: found.append(stored(path, tmp_path / "cache")))
        waits.start()
        assert said.wait(60) and not found
    waits.join()
    assert len(found[0].prompts) == 5


@pytest.mark.parametrize("left_out", [set(), {"d-2", "e-0"}])
def test_draws_are_what_they_were(tmp_path: Path, left_out: set[str]) -> None:
    """Two sets, several epochs, a step that goes over the end of one: the order of the sorted prompts, as ever."""
    for name, count in (("d", 7), ("e", 5)):
        jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "id": f"{name}-{n}"} for n in range(count)])
    config = DataConfig.model_validate(
        {"train": [{"path": str(tmp_path / f"{name}.jsonl"), "rewards": WEIGHTS} for name in "de"]}
    )
    kept = without(load_train_prompts(config, cache=tmp_path / "cache"), config, left_out)
    plain = without(load_train_prompts(config), config, left_out)
    assert all(isinstance(each.prompts, StoredPrompts) for each in kept)
    samplers = [PromptSampler(each, prompts_per_step=4, seed=3, rank=0, world=1) for each in (kept, plain)]
    drawn = [[sampler.draw() for _ in range(9)] for sampler in samplers]
    assert drawn[0] == drawn[1] and samplers[0].state_dict() == samplers[1].state_dict()
    assert not left_out & {prompt.id for step in drawn[0] for prompt in step}
    again = PromptSampler(kept, prompts_per_step=4, seed=3, rank=0, world=1)
    again.load_state_dict(json.loads(json.dumps(samplers[1].state_dict())))
    assert again.draw() == samplers[1].draw()


def test_an_epoch_has_the_order_of_the_hash(tmp_path: Path) -> None:
    prompts = held(numbered(tmp_path / "train.txt", 50)).prompts
    sampler = PromptSampler([Dataset("d", 1.0, prompts)], prompts_per_step=30, seed=5, rank=0, world=1)
    first, second, third = (sampler.draw() for _ in range(3))

    def order(epoch: int, late: set[str]) -> list[Prompt]:
        return sorted(prompts, key=lambda p: (p.id in late, sample_seed(5, "epoch", "d", epoch, p.id), p.id))

    late = {p.id for p in order(0, set())[30:]}
    assert [*first, *second[:20]] == order(0, set())
    assert [*second[20:], *third] == order(1, late)[:40]


def test_a_changed_file_is_read_anew_and_who_has_opened_it_goes_on(tmp_path: Path, parsed: list[str]) -> None:
    path, cache = numbered(tmp_path / "train.txt", 20), tmp_path / "cache"
    before = stored(path, cache).prompts
    first = before[19].text
    path.write_text(path.read_text().replace("19 lamps", "91 lamps"))  # of the same length
    after = stored(path, cache).prompts
    assert after[19].text.startswith("91 lamps") and len(parsed) == 40
    assert before[19].text == first and len(list(before)) == 20 and len(list(before.ids())) == 20  # type: ignore[attr-defined]
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1, "what the file held before is removed"
    with pytest.raises(DataError, match="have changed since the run was started"):
        config = {"prompts_per_step": 2, "seed": 1, "rank": 0, "world": 1}
        old = PromptSampler([Dataset("d", 1.0, before)], **config)
        PromptSampler([Dataset("d", 1.0, after)], **config).load_state_dict(old.state_dict())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, make = numbered(tmp_path / "train.txt", 20), file._make_prompt

    def changing(where: str, *args: Any, **more: Any) -> Prompt:
        if where.endswith(":9"):
            path.write_text("another\n")
        return make(where, *args, **more)

    monkeypatch.setattr(file, "_make_prompt", changing)
    with pytest.raises(DataError, match="was changed while it was read; start again"):
        stored(path, tmp_path / "cache")
    monkeypatch.setattr(file, "_make_prompt", make)
    assert [each.text for each in stored(path, tmp_path / "cache").prompts] == ["another"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a"}, {"prompt": "b", "targets": "B"}],
        [{"prompt": "a"}, {"prompt": "a"}, {"prompt": 3}],
        [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}],
        [{"prompt": "a", "metadata": {"a": [{"b": float("nan")}]}}],
        [{"prompt": "a", "metadata": {"a": "\ud800"}}],
        [{"prompt": "a", "texts": []}],
        [{"prompt": "a", "source_images": ["missing.png"]}],
        [],
    ],
)
def test_a_row_that_is_wrong_is_told_as_ever(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path, cache = jsonl(tmp_path / "train.jsonl", rows), tmp_path / "cache"
    with pytest.raises(DataError) as plain:
        held(path)
    for _ in range(2):
        with pytest.raises(DataError) as kept:
            stored(path, cache)
        assert str(kept.value) == str(plain.value)
        assert not [each for each in cache.iterdir() if each.is_dir()], "nothing half done is left"


def test_prompts_with_images_are_held_for_the_images_may_go(tmp_path: Path, parsed: list[str]) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))
    path = jsonl(tmp_path / "train.jsonl", [{"prompt": "a"}, {"prompt": "b", "source_images": ["cat.png"]}])
    assert [p.text for p in stored(path, tmp_path / "cache").prompts] == ["a", "b"]
    parsed.clear()
    assert isinstance(stored(path, tmp_path / "cache").prompts, tuple) and len(parsed) == 2, (
        "known from the first start"
    )
    (tmp_path / "cat.png").unlink()
    with pytest.raises(DataError, match="no image at"):
        stored(path, tmp_path / "cache")


def test_a_folder_that_cannot_be_used_costs_memory_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        found = stored(numbered(tmp_path / "train.txt", 3), tmp_path / "cache")
    assert len(found.prompts) == 3 and "held in memory by every process" in caplog.text


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    path, cache = numbered(tmp_path / "train.txt", 3), tmp_path / "cache"
    stored(path, cache)
    (place,) = (each for each in cache.iterdir() if each.is_dir())
    place.rename(place.with_name(f"{place.name}.part"))
    (place.with_name(f"{place.name}.part") / "ids").unlink()
    assert len(stored(path, cache).prompts) == 3
    assert [each for each in cache.iterdir() if each.is_dir()] == [place]


def test_another_release_checks_anew(tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "train.txt", 3)
    stored(path, tmp_path / "cache")
    monkeypatch.setattr(shelf, "_code", lambda: "another")
    stored(path, tmp_path / "cache")
    assert len(parsed) == 6


def test_opened_prompts_take_little_memory(tmp_path: Path) -> None:
    path = numbered(tmp_path / "train.txt", 2000)
    stored(path, tmp_path / "cache")

    def grown(**options: Any) -> int:
        tracemalloc.start()
        try:
            kept = read_prompt_file(path, dataset="d", weights=WEIGHTS, **options)
            sampler = PromptSampler([Dataset("d", 1.0, kept.prompts)], prompts_per_step=8, seed=1, rank=0, world=1)
            del kept
            sampler.draw()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert 5 * grown(cache=tmp_path / "cache") < grown()


def test_overlaps_are_found_by_reading_what_may_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"a  Lamp {n}", "id": f"t{n}", "targets": [f"Sale {n}"]} for n in range(200)]
    path = jsonl(tmp_path / "train.jsonl", rows)
    heldout = [
        Prompt("h0", "a lamp 17"),
        Prompt("t44", "another"),
        Prompt("h2", "new", targets=("SALE 3",)),
        Prompt("h3", "newer"),
    ]
    expected = find_overlaps(held(path).prompts, heldout)
    prompts, read = stored(path, tmp_path / "cache").prompts, []
    made = StoredPrompts._made

    def counted(self: StoredPrompts, row: bytes) -> Prompt:
        read.append(row)
        return made(self, row)

    monkeypatch.setattr(StoredPrompts, "_made", counted)
    assert find_overlaps(Joined([prompts]), heldout) == expected and len(expected) == 3
    assert len(read) == 3
    assert find_overlaps(prompts, []) == [] and [p.id for p in one_of_each_kind(Joined([prompts]))] == ["t0"]
    assert len(read) == 4


def test_an_id_of_two_sets_is_told(tmp_path: Path) -> None:
    for name in "ab":
        jsonl(
            tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "id": f"{name if n else 'x'}{n}"} for n in range(9)]
        )
    config = DataConfig.model_validate(
        {"train": [{"path": str(tmp_path / f"{name}.jsonl"), "rewards": WEIGHTS} for name in "ab"]}
    )
    said = []
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError) as error:
            load_train_prompts(config, cache=cache)
        said.append(str(error.value))
    assert said[0] == said[1] and "b.jsonl:1: id: 'x0' is also at" in said[0]


def test_lines_are_the_same_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeffé one\r\n\n  \u2028two\x0b\r\rΩ\n\nlast\u3000"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    plain = [(n, line.strip()) for n, line in enumerate(text[1:].split("\n"), start=1) if line.strip()]
    for block in range(1, 12):
        monkeypatch.setattr(lines, "_BLOCK", block)
        assert list(lines.lines(path)) == plain
    path.write_bytes(b"good\n\xc3\nmore\n")
    with pytest.raises(DataError, match=r"a.txt:2: not UTF-8 text \(byte 0xc3\)"):
        lines.lines(path)


def test_many_seeds_are_the_seeds() -> None:
    names = ["a", "Ω/é", "d-0123456789abcdef"]
    given = sample_seeds([name.encode() for name in names], 7, "epoch", "Ü", 2)
    assert list(given) == [sample_seed(7, "epoch", "Ü", 2, name) for name in names]


def test_joined_sequences() -> None:
    joined = Joined([[1, 2], (), Joined([[3], [4, 5]])])
    assert list(joined) == [1, 2, 3, 4, 5] == [joined[n] for n in range(len(joined))]
    assert (joined[-1], joined[1:4], len(joined.parts), len(Joined[int]([]))) == (5, [2, 3, 4], 4, 0)
    with pytest.raises(IndexError):
        joined[5]
