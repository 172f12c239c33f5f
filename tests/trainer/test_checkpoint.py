"""Checkpoints: whole or absent, newest first, damaged ones named, bit-exact."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import alone, some_parameters, write_checkpoint
from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    Retention,
    find_resume,
    list_checkpoints,
    saved_step,
    tidy,
)
from trainer.checkpoint.layout import remove
from trainer.checkpoint.reading import shard_name
from trainer.config import CheckpointConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = ["manifest.json", "shard_00_of_01.safetensors", "state.json"]


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def writer(folder: Path, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(folder, alone(), Retention(folder, CheckpointConfig(keep=keep)))


def begin(writer: CheckpointWriter, step: int) -> None:
    writer.begin(step, some_parameters(step), {"cpu": torch.get_rng_state()}, json.dumps({"step": step}))


def usable(path: Path) -> None:
    Checkpoint.open(path).verify()


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    state = {"sampler": {"step": 7}, "spread": {"std_R": [0.1 + 0.2, 1 / 3]}}
    loaded = Checkpoint.open(write_checkpoint(tmp_path, 7, state=state))
    loaded.verify()
    assert loaded.step == 7
    assert loaded.state == {"step": 7, **state}
    assert set(loaded.names) == {"block.w", "b"}
    for name, kinds in some_parameters(7).items():
        found = loaded.read(name)
        assert found.keys() == kinds.keys()
        assert all(torch.equal(found[kind], tensor) for kind, tensor in kinds.items())
    assert torch.equal(loaded.random_state(0)["cpu"], torch.get_rng_state())
    with pytest.raises(KeyError):
        loaded.read("stranger")


def test_a_closed_checkpoint_holds_no_file_open(tmp_path: Path) -> None:
    """A file that is open keeps its room on disk when retention removes it, and on NFS its folder, too."""
    path = write_checkpoint(tmp_path, 7)
    loaded = Checkpoint.open(path)
    kept = loaded.read("b")["weight"].clone()
    assert str(path) in Path("/proc/self/maps").read_text()
    loaded.close()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert torch.equal(loaded.read("b")["weight"], kept), "it opens again"


def test_a_removed_checkpoint_that_another_process_reads_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a folder with a file that is open somewhere on the node cannot be removed yet."""
    path = write_checkpoint(tmp_path, 7)

    def busy(path: object, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", busy)
        remove(path)
    assert names(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_and_checksums_are_listed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7)
    assert sorted(file.name for file in path.iterdir()) == FILES
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["parameters"] == {"b": 0, "block.w": 0}
    for name, record in manifest["files"].items():
        assert record["bytes"] == (path / name).stat().st_size
        done = subprocess.run(["sha256sum", str(path / name)], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == record["sha256"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_000002", "step_000010"]
    assert find_resume("auto", tmp_path) == [tmp_path / "step_000010", tmp_path / "step_000002"]


def test_shards_sort_by_rank_however_many_there_are() -> None:
    for size in (1, 4, 100, 128, 1000):
        found = [shard_name(rank, size) for rank in range(size)]
        assert sorted(found) == found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_any_damage_to_any_file_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    path = write_checkpoint(tmp_path, 1)
    data = bytearray((path / name).read_bytes())
    if damage == "missing":
        (path / name).unlink()
    elif damage == "cut":
        (path / name).write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"step_000001 is not a usable checkpoint \({name}.*resume=never"):
        usable(path)


def test_every_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    """Text that still parses, such as another digit in a size or another letter in a name, is damage, too."""
    path = write_checkpoint(tmp_path, 1)
    data = (path / "manifest.json").read_bytes()
    spaces = frozenset(b" \n")
    for at in range(len(data)):
        if data[at] in spaces:
            continue  # one white space for another is the same JSON
        flipped = bytearray(data)
        flipped[at] ^= 1
        (path / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"step_000001 is not a usable checkpoint"):
            usable(path)


def test_a_share_of_the_files_is_checked_by_each_rank(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    (path / "shard_00_of_01.safetensors").write_bytes(b"torn")
    found = []
    for rank in range(2):
        try:
            Checkpoint.open(path).verify(share=(rank, 2))
        except CheckpointError as error:
            found.append(str(error))
    assert len(found) == 1 and "shard_00_of_01.safetensors has 4 bytes" in found[0]


def test_what_resume_means(tmp_path: Path) -> None:
    assert find_resume("auto", tmp_path) == []
    assert find_resume("never", tmp_path) == []
    path = write_checkpoint(tmp_path, 3)
    assert find_resume(str(path), tmp_path / "elsewhere") == [path]
    with pytest.raises(CheckpointError, match=r"already holds 1 checkpoints.*another run_name"):
        find_resume("never", tmp_path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint folder \(auto, never, or a path"):
        find_resume(str(tmp_path / "nowhere"), tmp_path)


def test_a_renamed_checkpoint_still_says_its_step(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, state={"x": 1})
    renamed = path.rename(tmp_path / "good_one")
    assert saved_step(renamed) == 3
    assert Checkpoint.open(renamed).step == 3


def test_writing_goes_on_while_the_caller_does_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`begin` returns before anything is on disk; the next `begin` waits for the first."""
    from trainer.checkpoint import writing

    may_write, save_file = threading.Event(), writing.save_file

    def slow(*args: object, **kwargs: object) -> None:
        assert may_write.wait(timeout=30)
        save_file(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "save_file", slow)
    saves = writer(tmp_path)
    begin(saves, 1)
    saves.poll()
    assert names(tmp_path) == []
    may_write.set()
    begin(saves, 2)
    assert names(tmp_path)[:1] == ["step_000001"]
    saves.wait()
    assert names(tmp_path) == ["step_000001", "step_000002"]


def test_a_full_disk_is_told_at_the_next_poll_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.checkpoint import writing

    write_checkpoint(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    saves = writer(tmp_path)
    begin(saves, 2)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left.*free space"):
        saves.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    monkeypatch.undo()
    begin(saves, 2)  # space was freed
    saves.wait()
    usable(tmp_path / "step_000002")


def test_a_disk_that_fills_up_while_writing_is_a_failed_write(tmp_path: Path) -> None:
    """A real limit of the system on the size of files: the shard is cut in the middle of its bytes."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from pathlib import Path
from tests.support.checkpoints import write_checkpoint
from trainer.checkpoint import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an error, as on a full disk
folder = Path({str(tmp_path)!r})
write_checkpoint(folder, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(folder, 2, {{"w": {{"weight": torch.zeros(1_000_000)}}}})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "the checkpoint of step 2 could not be written" in done.stdout and "free space" in done.stdout, done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    usable(tmp_path / "step_000001")


def test_closing_lets_a_save_end_and_is_harmless_otherwise(tmp_path: Path) -> None:
    saves = writer(tmp_path)
    saves.close()
    begin(saves, 1)
    saves.close()
    saves.close()
    usable(tmp_path / "step_000001")


KILLED_AT = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.checkpoints import some_parameters, write_checkpoint
from trainer.checkpoint import {module}
real = {module}.{function}
calls = 0

def killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

{module}.{function} = killed
write_checkpoint(Path({folder!r}), {step}, keep=1)
"""


@pytest.mark.parametrize(
    ("step", "module", "function", "call"),
    [
        (2, "writing", "save_file", 1),  # nothing is written yet
        pytest.param(2, "writing", "flush", 1, marks=pytest.mark.slow),  # the shard is written, not flushed
        pytest.param(2, "writing", "write_whole", 1, marks=pytest.mark.slow),  # no done-file
        pytest.param(2, "writing", "write_whole", 2, marks=pytest.mark.slow),  # no state
        (2, "manifest", "write_whole", 1),  # no manifest
        pytest.param(2, "writing", "publish", 1, marks=pytest.mark.slow),  # all but the rename
        (2, "layout", "flush", 4),  # renamed, not flushed
        pytest.param(2, "retention", "list_checkpoints", 1, marks=pytest.mark.slow),  # older ones not yet deleted
        pytest.param(2, "retention", "remove", 1, marks=pytest.mark.slow),
        (2, "layout", "shutil.rmtree", 3),  # in the middle of deleting an older one
        (1, "writing", "publish", 1),  # step 1 is saved again
        pytest.param(1, "layout", "flush", 4, marks=pytest.mark.slow),
        (1, "retention", "list_checkpoints", 1),
    ],
)
def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(
    tmp_path: Path, step: int, module: str, function: str, call: int
) -> None:
    write_checkpoint(tmp_path, 1, keep=1)
    code = KILLED_AT.format(
        root=str(ROOT), module=module, function=function, call=call, folder=str(tmp_path), step=step
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tidy(tmp_path)
    found = list_checkpoints(tmp_path)
    assert found and sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in found]
    for path in found:
        usable(path)
    write_checkpoint(tmp_path, 3, keep=1)  # the next start writes on
    assert names(tmp_path) == ["step_000003"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    path.rename(tmp_path / ".replaced_step_000001")
    tidy(tmp_path)
    usable(path)
    path_copy = tmp_path / ".replaced_step_000001"
    os.mkdir(path_copy)  # killed before the old one was deleted
    tidy(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["step_000001"]
