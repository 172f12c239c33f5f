"""Places that show a run's numbers, images and texts, beside metrics.jsonl. One that fails is left out; the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from trainer.records.reporters.base import Answer, Picture, Reporter, RunIdentity

__all__ = ["REPORTERS", "Answer", "Picture", "Reporter", "Reporters", "RunIdentity"]


def _tensorboard(identity: RunIdentity) -> Reporter:
    from trainer.records.reporters.tensorboard import TensorBoardReporter

    return TensorBoardReporter(identity)


def _wandb(identity: RunIdentity) -> Reporter:
    from trainer.records.reporters.wandb import WandbReporter

    return WandbReporter(identity)


def _swanlab(identity: RunIdentity) -> Reporter:
    from trainer.records.reporters.swanlab import SwanLabReporter

    return SwanLabReporter(identity)


REPORTERS: dict[str, Callable[[RunIdentity], Reporter]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "swanlab": _swanlab,
}


class Reporters:
    """The reporters of a run, as one. A reporter that raises is said once through `note` and not asked again.

    Args:
        names: of REPORTERS; each package is imported only when it is named.
    """

    def __init__(self, names: Sequence[str], identity: RunIdentity, note: Callable[[str], None]) -> None:
        self._note = note
        self._open: dict[str, Reporter] = {}
        for name in names:
            self._try(name, self._start, name, identity)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, reporter in list(self._open.items()):
            self._try(name, reporter.scalars, step, values)

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        for name, reporter in list(self._open.items()):
            self._try(name, reporter.pictures, step, pictures)

    def texts(self, step: int, answers: Sequence[Answer]) -> None:
        for name, reporter in list(self._open.items()):
            self._try(name, reporter.texts, step, answers)

    def close(self, *, crashed: bool) -> None:
        """End all that still report. Harmless when called again."""
        for name, reporter in list(self._open.items()):
            self._try(name, partial(reporter.close, crashed=crashed))
        self._open.clear()

    def _start(self, name: str, identity: RunIdentity) -> None:
        self._open[name] = REPORTERS[name](identity)

    def _try(self, name: str, work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        except Exception as error:  # whatever a reporter does must not cost a run
            self._open.pop(name, None)
            self._note(
                f"{name} reports no more ({type(error).__name__}: {error}); the run goes on, and metrics.jsonl has every "
                "number"
            )
