"""A pretended GPU for tests on a CPU: real numbers, and a device that tensors are or are not on.

What is made on the device or moved to it is computed by the CPU, and its storage is tagged. A function mode answers as CUDA would
(`.device`, `.to`, `.cuda`, `pin_memory`, `device="cuda"`); a dispatch mode sees every kernel, those of the backward pass included, and tags
what comes out. What a GPU would refuse or wait for is an event, with the line of our code that asked:

- `mixing`: a kernel with tensors of both devices, which CUDA refuses (0-d tensors of the CPU it takes), or `.numpy()` of the device's.
- `read`: the CPU needs a number of the device, so it waits for all that was queued: `.item()`, `.cpu()`, `bool()`, `.tolist()`, shapes that
  depend on values (`nonzero`, an index that is a mask, `repeat_interleave` without `output_size`), a mark in the stream waited for.
- `upload`: a copy to the device for which the CPU waits, too: one that is not `non_blocking`, or comes from memory that is not pinned; also a
  list of Python numbers as an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretended_cuda import patch_cuda
from tests.support.pretended_events import Event, Kind, where

GPU = torch.device("cuda", 0)

_aten = torch.ops.aten
# Kernels whose result is a number, or has a shape that depends on values.
_READS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.unique_consecutive.default,
    _aten.unique_dim_consecutive.default,
}
_INDEXES = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
_PURGE_EVERY = 4096  # tags, after which those of freed storages are dropped


class PretendedGpu:
    """The device, as long as `pretended_gpu` is open.

    Attributes:
        events: in order.
        kernels: how many were seen on the device.
        makes: whether what a kernel makes of nothing is on the device: torch makes it for a function that got tensors of the device.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kernels = 0
        self._tags: dict[
            int, StorageWeakRef
        ] = {}  # by address; a weak reference keeps the address from being given again
        self._pinned: dict[int, StorageWeakRef] = {}
        self._purge_at = _PURGE_EVERY
        self._quiet = 0
        self.makes = False

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return _address(tensor) in self._tags

    def is_pinned(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._pinned

    def take(self, tensors: Any) -> Any:
        """Put the storages of these tensors onto the device; gives them back."""
        return self._tag(tensors, self._tags)

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory."""
        with self.quiet():
            return cast(Tensor, self._tag(tensor.clone(), self._pinned))

    def _tag(self, tensors: Any, tags: dict[int, StorageWeakRef]) -> Any:
        with torch._C.DisableTorchFunction():
            for tensor in _tensors(tensors):
                if (address := _address(tensor)) is not None and address not in tags:
                    tags[address] = StorageWeakRef(_plain(tensor).untyped_storage())  # type: ignore[no-untyped-call]
        if len(self._tags) + len(self._pinned) > self._purge_at:
            for each in (self._tags, self._pinned):
                for address in [address for address, ref in each.items() if _is_gone(ref)]:
                    del each[address]
            self._purge_at = len(self._tags) + len(self._pinned) + _PURGE_EVERY
        return tensors

    def note(self, kind: Kind, what: str) -> None:
        if not self._quiet:
            self.events.append(Event(kind, what, where()))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done inside is the pretender's own."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @contextmanager
    def making(self, there: bool) -> Iterator[None]:
        before, self.makes = self.makes, there
        try:
            yield
        finally:
            self.makes = before

    @property
    def is_quiet(self) -> bool:
        return self._quiet > 0

    @contextmanager
    def during(self) -> Iterator[list[Event]]:
        """The list has the events of the block once it has ended."""
        found: list[Event] = []
        before = len(self.events)
        yield found
        found += self.events[before:]


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Inside the block this thread has a device `GPU`."""
    gpu = PretendedGpu()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch_cuda(patch, GPU, gpu.holds, lambda what: gpu.note("read", what))
        stack.enter_context(_Answers(gpu))
        stack.enter_context(_Kernels(gpu))
        yield gpu


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every kernel; what comes out of one that saw the device is on the device."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self._gpu, dict(kwargs or {})
        with torch._C.DisableTorchFunction():
            asked = _is_gpu(kwargs.get("device"))
            if asked:
                kwargs["device"] = torch.device("cpu")
            if gpu.is_quiet:
                return func(*args, **kwargs)
            seen = [*_tensors(args), *_tensors(kwargs)]
            here = [gpu.holds(tensor) for tensor in seen]
            if any(here):
                gpu.kernels += 1
                self._judge(func, args, kwargs, seen, here)
            out = func(*args, **kwargs)
            if func is _aten.copy_.default:
                return out  # stays where it is
            is_new = gpu.makes and not seen
            return gpu.take(out) if any(here) or asked or is_new else out

    def _judge(self, func: Any, args: Any, kwargs: Any, seen: Sequence[Tensor], here: Sequence[bool]) -> None:
        gpu, name = self._gpu, str(func).removeprefix("aten.")
        if func is _aten.copy_.default:
            is_said = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            self._judge_copy(*here[:2], waits=not is_said or (here[0] and not gpu.is_pinned(seen[1])))
            return
        if func in _READS:
            gpu.note("read", name)
        elif func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            gpu.note("read", f"{name} without output_size")
        strangers = [tensor for tensor, on in zip(seen, here, strict=True) if not on and tensor.dim() > 0]
        if func in _INDEXES:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                gpu.note("read", f"{name} with a mask")
            if gpu.holds(args[0]):  # CUDA takes the CPU's indices, and copies them
                if any(not gpu.holds(index) for index in indices):
                    gpu.note("upload", f"{name} with indices of the CPU")
                strangers = [t for t in strangers if not any(t is index for index in indices)]
        if strangers:
            gpu.note("mixing", f"{name} with {len(strangers)} of the CPU")

    def _judge_copy(self, to_gpu: bool, from_gpu: bool, *, waits: bool) -> None:
        if to_gpu != from_gpu and waits:
            self._gpu.note("upload" if to_gpu else "read", "copy_")


class _Answers(TorchFunctionMode):
    """Answers for tensors as CUDA would, and makes on the device what is asked for there."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu
        own: dict[Any, Callable[..., Any]] = {
            _getter("device"): self._device,
            _getter("is_cuda"): self._is_cuda,
            _getter("is_cpu"): lambda func, x, *_: func(x) and not gpu.holds(x),
            torch.Tensor.get_device: lambda func, x: 0 if gpu.holds(x) else func(x),
            torch.Tensor.to: self._to,
            torch.Tensor.cpu: lambda func, x, **kw: self._move(x, None, "cpu", waits=True),
            torch.Tensor.cuda: lambda func, x, device=None, non_blocking=False, **kw: self._move(
                x, GPU, "cuda", waits=not non_blocking
            ),
            torch.Tensor.pin_memory: self._pin,
            torch.Tensor.is_pinned: lambda func, x, *_: gpu.is_pinned(x),
            torch.Tensor.tolist: self._tolist,
            torch.Tensor.numpy: self._numpy,
            torch.Tensor.__array__: self._numpy,
            torch.Tensor.__getitem__: self._index,
            torch.Tensor.__setitem__: self._index,
            torch.Tensor.__deepcopy__: lambda func, x, memo: gpu.take(func(x, memo)) if gpu.holds(x) else func(x, memo),
            torch.Tensor.backward: self._backward,
        }
        self._own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self._gpu.making(any(map(self._gpu.holds, _tensors([args, kwargs])))):
            if (own := self._own.get(func)) is not None:
                return own(func, *args, **kwargs)
            return self._made(func, args, kwargs)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """On the device where that was asked for."""
        wanted = kwargs.get("device")
        if func is torch.Tensor.new_tensor and wanted is None and self._gpu.holds(args[0]):
            wanted = GPU
        if wanted is None or not _is_gpu(wanted):
            return self._elsewhere(func, args, kwargs)
        if func in _FROM_DATA:
            self._gpu.note("upload", func.__name__)
        if kwargs.get("generator") is not None:
            self._gpu.note("mixing", f"{func.__name__} with a generator of the CPU")
        kwargs["device"] = torch.device("cpu")
        if kwargs.pop("pin_memory", False):
            self._gpu.note("mixing", f"{func.__name__} pinned on the device")
        with self._gpu.quiet():
            made = func(*args, **kwargs)
        return self._gpu.take(made)

    def _elsewhere(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Not on the device, or where the tensors are; `zeros_like(x, device="cpu")` is on the CPU."""
        if kwargs.get("device") is None or func in _FROM_DATA or not any(map(self._gpu.holds, _tensors(args))):
            kwargs.pop("pin_memory", None)
            return func(*args, **kwargs)
        with self._gpu.quiet():
            return func(*args, **kwargs)

    def _device(self, func: Any, x: Tensor, *_: Any) -> torch.device:
        real: torch.device = func(x)
        return GPU if self._gpu.holds(x) else real

    def _is_cuda(self, func: Any, x: Tensor, *_: Any) -> bool:
        return self._gpu.holds(x)

    def _to(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x.to` by a device, a tensor or a dtype; what is not the device stays as it was said."""
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        said = [*args, *kwargs.values()]
        devices = [a for a in said if isinstance(a, torch.device | str)]
        places = [torch.device(device).type == "cuda" for device in devices]
        places += [self._gpu.holds(a) for a in said if isinstance(a, Tensor)]
        dtypes = [a for a in said if isinstance(a, torch.dtype)] + [a.dtype for a in said if isinstance(a, Tensor)]
        if not places or any(torch.device(device).type == "meta" for device in devices):
            return func(x, *args, **kwargs)  # type: ignore[no-any-return]
        flags = [a for a in args if isinstance(a, bool)]
        waits = not (flags[0] if flags else kwargs.get("non_blocking", False))
        copy = flags[1] if len(flags) > 1 else kwargs.get("copy", False)
        dtype = dtypes[0] if dtypes else x.dtype
        if places[0] == self._gpu.holds(x):
            return func(x, dtype=dtype, copy=copy)  # type: ignore[no-any-return]
        return self._move(x, GPU if places[0] else None, "to", waits=waits, dtype=dtype)

    def _move(
        self, x: Tensor, to: torch.device | None, what: str, *, waits: bool, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A copy on the other device; the tensor itself where it is there already."""
        if (to is not None) == self._gpu.holds(x):
            return x if dtype is None else x.to(dtype)
        if waits or (to is not None and not self._gpu.is_pinned(x)):
            self._gpu.note("read" if to is None else "upload", what)
        with self._gpu.quiet():
            copy = x.to(dtype=dtype or x.dtype, copy=True)
        return copy if to is None else self._gpu.take(copy)

    def _pin(self, func: Any, x: Tensor, *_: Any) -> Tensor:
        if self._gpu.holds(x):
            self._gpu.note("mixing", "pin_memory of the device's")
        return x if self._gpu.is_pinned(x) else self._gpu.pin(x)

    def _tolist(self, func: Any, x: Tensor) -> Any:
        if self._gpu.holds(x):
            self._gpu.note("read", "tolist")
        with self._gpu.quiet():
            return func(x)

    def _numpy(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._gpu.holds(x):
            self._gpu.note("mixing", "numpy")
        return func(x, *args, **kwargs)

    def _index(self, func: Any, x: Tensor, index: Any, *value: Any) -> Any:
        """A list as an index becomes a tensor on the device, which the CPU waits for; a number that is set does not travel."""
        if self._gpu.holds(x):
            parts = index if isinstance(index, tuple) else (index,)
            if any(isinstance(part, list | np.ndarray) for part in parts):
                self._gpu.note("upload", f"{func.__name__} with a list")
                with self._gpu.quiet():
                    made = [torch.as_tensor(p) if isinstance(p, list | np.ndarray) else p for p in parts]
                self._gpu.take([tensor for tensor, part in zip(made, parts, strict=True) if tensor is not part])
                index = tuple(made)
            if value and not isinstance(value[0], Tensor):
                value = (self._gpu.take(torch.tensor(value[0], dtype=x.dtype)),)
        return func(x, index, *value)

    def _backward(self, func: Any, x: Tensor, gradient: Any = None, *args: Any, **kwargs: Any) -> None:
        with self, self._gpu.making(self._gpu.holds(x)):  # layers that are recomputed ask for devices
            torch.autograd.backward(x, gradient, *args, **kwargs)


def _is_gone(ref: StorageWeakRef) -> bool:
    return bool(ref.expired())  # type: ignore[no-untyped-call]


def _plain(tensor: Tensor) -> Tensor:
    """The tensor under the wraps of `torch.vmap` and its like."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _address(tensor: Tensor) -> int | None:
    """Of its storage; None where it has none in the CPU's memory."""
    with torch._C.DisableTorchFunction():
        plain = _plain(tensor)
        return plain.untyped_storage()._cdata if plain.device.type == "cpu" else None


def _getter(name: str) -> Any:
    """What a function mode is told when this property of a tensor is asked for."""
    return getattr(torch.Tensor, name).__get__


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    if isinstance(values, dict):
        return [tensor for value in values.values() for tensor in _tensors(value)]
    return []
