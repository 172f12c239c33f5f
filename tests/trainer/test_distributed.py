"""How items are dealt to ranks, and how a rank leaves the others."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from trainer.config import DistributedConfig
from trainer.processes import distributed
from trainer.processes.distributed import even_share, world


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
