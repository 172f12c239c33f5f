"""Weights & Biases under `logs/wandb`: offline unless WANDB_API_KEY is set; `wandb sync` uploads it later.

Online a resumed run goes on under its id; steps that are made again have two points. Offline each start is a part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from trainer.records.reporters.base import Answer, Picture, RunIdentity, table_of

DEFAULT_PROJECT = "rewards-as-services"
_OFFLINE = ("offline", "dryrun")


class WandbReporter:
    """Implements `Reporter`. WANDB_MODE, WANDB_PROJECT and WANDB_RUN_NAME are read where the config leaves them open.

    The x axis is the row's own `step`: W&B's step only grows, and a resumed run makes some steps again. The group is the
    run's id, or WANDB_RUN_GROUP.
    """

    def __init__(self, identity: RunIdentity) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import: its own telemetry, also when offline
        import wandb

        chosen = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        name = identity.name or os.environ.get("WANDB_RUN_NAME") or identity.run_dir.name
        run_id, logs = identity.run_id, identity.run_dir / "logs"
        if not chosen or os.environ.get("WANDB_MODE") in _OFFLINE:
            run_id, name = identity.part(name, len(list(logs.glob(f"wandb/offline-run-*-{run_id}*"))))
        self._image, self._table = wandb.Image, wandb.Table
        self._run = wandb.init(
            project=identity.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=name,
            id=run_id,
            group=os.environ.get("WANDB_RUN_GROUP") or identity.run_id,
            resume="allow",
            dir=str(logs),
            mode=None if chosen else "offline",
            config=dict(identity.config),
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        images = [self._image(picture.pixels_HWC, caption=picture.caption) for picture in pictures]
        self._run.log({"samples": images, "step": step})

    def texts(self, step: int, answers: Sequence[Answer]) -> None:
        columns, rows = table_of(answers)
        table = self._table(columns=["image", *columns])
        for answer, row in zip(answers, rows, strict=True):
            table.add_data(self._image(answer.images[0]) if answer.images else None, *row)
        self._run.log({"answers": table, "step": step})

    def close(self, *, crashed: bool) -> None:
        self._run.finish(exit_code=int(crashed))
