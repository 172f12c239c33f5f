"""The sum of the gradients over all ranks, under way while the last backward pass of a step goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.processes.distributed import World

_BUCKET_BYTES = (
    25 << 20
)  # as torch's DistributedDataParallel: large enough to be worth a message, small enough to begin early


@dataclass
class _Bucket:
    """Parameters whose gradients travel in one message."""

    parameters: list[nn.Parameter]
    waited_for: set[nn.Parameter] = field(default_factory=set)
    flat: Tensor | None = None  # once sent: the gradients, then for each parameter whether this rank had one
    work: dist.Work | None = None


class GradientSum:
    """Adds up gradients over the ranks, one message a bucket of parameters, sent as soon as the bucket's gradients are whole.

    The buckets follow the backward pass, from the last parameter to the first. All ranks send them in this order, so a bucket
    also waits for those before it, and what a rank has no gradient for goes with the rest when the pass is over. With two ranks the
    sums have the same bits whatever the buckets are; with more, their last bits depend on how the backend cuts its messages.

    Args:
        parameters: the same on all ranks, in the same order.
        bucket_bytes: least size of a bucket.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, *, bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._is_last, self._sent = False, 0
        self._buckets = [] if world.size == 1 else _buckets(parameters, bucket_bytes)
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Before a new step: let go of what was sent and not taken, as where the step was given up."""
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
            bucket.flat, bucket.work = None, None
        self._sent = 0

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Around the backward pass after which no gradient is added. Afterwards all buckets are on their way on all ranks."""
        for bucket in self._buckets:
            bucket.waited_for = set(bucket.parameters)
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False
        self._send(len(self._buckets))

    def finish(self) -> None:
        """Wait for the sums. A parameter then has a gradient on every rank, or, where no rank had one, on none."""
        self._send(len(self._buckets))
        found = []
        for bucket in self._buckets:
            assert bucket.work is not None and bucket.flat is not None
            bucket.work.wait()
            found.append(torch.split(bucket.flat, [*(p.numel() for p in bucket.parameters), len(bucket.parameters)]))
            bucket.flat, bucket.work = None, None
        self._sent = 0
        if not found:
            return
        counts = torch.cat([parts[-1].float() for parts in found]).tolist()  # a device is waited for once
        parameters = [parameter for bucket in self._buckets for parameter in bucket.parameters]
        gradients = [gradient for parts in found for gradient in parts[:-1]]
        for parameter, gradient, count in zip(parameters, gradients, counts, strict=True):
            parameter.grad = gradient.view_as(parameter) if count else None

    def _arrived(self, bucket: _Bucket, parameter: nn.Parameter) -> None:
        if not self._is_last:
            return
        assert bucket.flat is None, "a gradient that is being added up over the ranks was added to"
        bucket.waited_for.discard(parameter)
        ready = self._sent
        while ready < len(self._buckets) and not self._buckets[ready].waited_for:
            ready += 1
        self._send(ready)

    def _send(self, until: int) -> None:
        """The buckets before `until` that are not sent yet."""
        for bucket in self._buckets[self._sent : until]:
            has_one = [float(p.grad is not None) for p in bucket.parameters]
            like = bucket.parameters[0]
            grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket.parameters]
            bucket.flat = torch.cat([*grads, torch.tensor(has_one, dtype=like.dtype, device=like.device)])
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        self._sent = max(self._sent, until)


def _buckets(parameters: Sequence[nn.Parameter], least: int) -> list[_Bucket]:
    found: list[_Bucket] = []
    size = least
    for parameter in reversed(parameters):
        if size >= least or found[-1].parameters[0].dtype != parameter.dtype:
            found.append(_Bucket([]))
            size = 0
        found[-1].parameters.append(parameter)
        size += parameter.numel() * parameter.element_size()
    return found
