"""How items are dealt to ranks, and how a rank leaves the others."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor

from tests.support.pretended_gpu import GPU, pretended_gpu
from trainer.config import DistributedConfig
from trainer.processes import distributed
from trainer.processes.distributed import World, even_share, world


@pytest.mark.parametrize(("count", "size"), [(0, 1), (0, 3), (1, 4), (5, 2), (7, 3), (8, 4), (3, 8)])
def test_every_item_is_real_once_and_all_ranks_are_equally_busy(count: int, size: int) -> None:
    shares = [even_share(count, rank, size) for rank in range(size)]
    assert [i for share in shares for i in share.indices[: share.real]] == list(range(count))
    assert {len(share.indices) for share in shares} == {-(-count // size)}
    assert all(0 <= i < count for share in shares for i in share.indices)


def test_a_short_rank_repeats_its_last_item() -> None:
    first, second = even_share(5, 0, 2), even_share(5, 1, 2)
    assert (first.indices, first.real) == ([0, 1, 1], 2)
    assert (second.indices, second.real) == ([2, 3, 4], 3)


@pytest.mark.parametrize("error, destroyed", [(None, 1), (KeyError("missing"), 0)])
def test_a_rank_that_fails_does_not_wait_for_the_others_to_leave_nccl(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, destroyed: int
) -> None:
    """They may wait for this rank in a collective, until its failure is told, which comes after the group is left."""
    left = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **options: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append("left"))
    with suppress(KeyError), world(DistributedConfig()):
        if error is not None:
            raise error
    assert len(left) == destroyed


def test_what_ranks_tell_one_another_does_not_pass_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, flags and barriers are on the CPU (gloo), where nothing waits for what the device still has to do."""

    def both_alike(found: list[Tensor], own: Tensor) -> None:
        assert own.device.type == "cpu"
        for each in found:
            each.copy_(own)

    def doubled(own: Tensor) -> None:
        assert own.device.type == "cpu"
        own.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_gather", both_alike)
    monkeypatch.setattr(torch.distributed, "all_reduce", doubled)
    pair = World(0, 2, torch.device("cuda", 0))
    assert pair.gather({"loss": 0.5, "why": None}) == [{"loss": 0.5, "why": None}] * 2
    assert pair.any(True) and not pair.any(False)
    pair.barrier()


def test_totals_are_read_from_the_device_once() -> None:
    with pretended_gpu() as gpu:
        there = {"sum": torch.full((), 0.1, device=GPU), "terms": torch.ones((), device=GPU)}
        with gpu.during() as found:
            totals = World(0, 1, GPU).totals(there, {"rows": 3.0})
    assert totals == {"sum": pytest.approx(0.1), "terms": 1.0, "rows": 3.0}
    assert [str(event).partition(" at ")[0] for event in found] == ["read tolist"]
