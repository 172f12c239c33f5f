"""A pretended GPU for tests on a CPU: real numbers, and a device that tensors are or are not on.

What is made on the device or moved to it is computed by the CPU, and its storage is tagged. A function mode answers as CUDA would
(`.device`, `.to`, `.cuda`, `pin_memory`, `device="cuda"`); a dispatch mode sees every kernel, those of the backward pass included, and tags
what comes out. What a GPU would refuse or wait for is an event, with the line of our code that asked:

- `mixing`: a kernel with tensors of both devices, which CUDA refuses (0-d tensors of the CPU it takes), or `.numpy()` of the device's.
- `read`: the CPU needs a number of the device, so it waits for all that was queued: `.item()`, `.cpu()`, `bool()`, `.tolist()`, shapes that
  depend on values (`nonzero`, an index that is a mask, `repeat_interleave` without `output_size`), a mark in the stream waited for.
- `upload`: a copy to the device that is not `non_blocking`, for which the CPU waits, too; also a list of Python numbers as an index.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)
Kind = Literal["mixing", "read", "upload"]

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


@dataclass(frozen=True)
class Event:
    """What a GPU would refuse or wait for.

    Attributes:
        what: the kernel or the method.
        where: file and line of our code, `trainer/update/tally.py:52`.
    """

    kind: Kind
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what} at {self.where}"


class PretendedGpu:
    """The device, as long as `pretended_gpu` is open.

    Attributes:
        events: in order.
        kernels: how many were seen on the device.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kernels = 0
        self._tags: dict[
            int, StorageWeakRef
        ] = {}  # by address; a weak reference keeps the address from being given again
        self._purge_at = _PURGE_EVERY
        self._quiet = 0

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        with torch._C.DisableTorchFunction():
            return tensor.device.type == "cpu" and tensor.untyped_storage()._cdata in self._tags

    def take(self, tensors: Any) -> Any:
        """Put the storages of these tensors onto the device; gives them back."""
        with torch._C.DisableTorchFunction():
            for tensor in _tensors(tensors):
                if tensor.device.type == "cpu" and not self.holds(tensor):
                    storage = tensor.untyped_storage()
                    self._tags[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if len(self._tags) > self._purge_at:
            self._tags = {address: ref for address, ref in self._tags.items() if not _is_gone(ref)}
            self._purge_at = len(self._tags) + _PURGE_EVERY
        return tensors

    def note(self, kind: Kind, what: str) -> None:
        if not self._quiet:
            self.events.append(Event(kind, what, _where()))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done inside is the pretender's own."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

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


def count(events: Sequence[Event], kind: Kind) -> int:
    return sum(event.kind == kind for event in events)


def lines(events: Sequence[Event], kind: Kind | None = None) -> Mapping[str, int]:
    """How many events each line has, the most first."""
    told = Counter(str(event) for event in events if kind in (None, event.kind))
    return dict(told.most_common())


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Inside the block this thread has a device `GPU`."""
    gpu = PretendedGpu()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        _patch_cuda(gpu, patch)
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
            return gpu.take(out) if any(here) or asked else out

    def _judge(self, func: Any, args: Any, kwargs: Any, seen: Sequence[Tensor], here: Sequence[bool]) -> None:
        gpu, name = self._gpu, str(func).removeprefix("aten.")
        if func is _aten.copy_.default:
            self._judge_copy(*here[:2], waits=not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)))
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
            torch.Tensor.is_pinned: lambda func, x, *_: False,
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
        if (own := self._own.get(func)) is not None:
            return own(func, *args, **kwargs)
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
        if waits:
            self._gpu.note("read" if to is None else "upload", what)
        with self._gpu.quiet():
            copy = x.to(dtype=dtype or x.dtype, copy=True)
        return copy if to is None else self._gpu.take(copy)

    def _pin(self, func: Any, x: Tensor, *_: Any) -> Tensor:
        if self._gpu.holds(x):
            self._gpu.note("mixing", "pin_memory of the device's")
        return x.clone()

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
        with self:  # layers that are recomputed ask for devices
            torch.autograd.backward(x, gradient, *args, **kwargs)


def _patch_cuda(gpu: PretendedGpu, patch: pytest.MonkeyPatch) -> None:
    """What asks CUDA itself, past the modes."""
    grouped = torch._C._group_tensors_by_device_and_dtype

    def by_device(tensorlists: Any, with_indices: bool = False) -> Any:
        """Where the clip of a gradient and the optimizers look devices up."""
        found = {}
        for (device, dtype), group in grouped(tensorlists, with_indices).items():
            held = any(gpu.holds(tensor) for tensor in _tensors(group[0]))
            found[(GPU if held else device, dtype)] = group
        return found

    class Mark:
        def __init__(self, **_: Any) -> None: ...

        def record(self) -> None: ...

        def synchronize(self) -> None:
            gpu.note("read", "Event.synchronize")

        def elapsed_time(self, other: Mark) -> float:
            return 0.0

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_device)
    patch.setattr(torch.cuda, "Event", Mark)
    patch.setattr(torch, "autocast", Autocast)
    patch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8))
    patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)


def _is_gone(ref: StorageWeakRef) -> bool:
    return bool(ref.expired())  # type: ignore[no-untyped-call]


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


def _where() -> str:
    """The innermost line of our code that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and path != __file__ and "site-packages" not in path:
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
