"""SwanLab under `logs/swanlab`: offline unless SWANLAB_API_KEY is set; `swanlab sync` uploads it later.

Online a resumed run goes on under its id. Offline each start is a part; the run's id groups them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from trainer.records.reporters.base import Answer, Picture, RunIdentity, table_of

DEFAULT_PROJECT = "rewards-as-services"


class SwanLabReporter:
    """Implements `Reporter`. SWANLAB_MODE, SWANLAB_PROJ_NAME and SWANLAB_EXP_NAME are read where the config is open."""

    def __init__(self, identity: RunIdentity) -> None:
        import swanlab

        mode = os.environ.get("SWANLAB_MODE") or ("online" if os.environ.get("SWANLAB_API_KEY") else "offline")
        folder = identity.run_dir / "logs" / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        run_id, name = identity.run_id, identity.name or os.environ.get("SWANLAB_EXP_NAME") or identity.run_dir.name
        if mode == "offline":
            run_id, name = identity.part(name, len(list(folder.glob(f"run-*-{run_id}*"))))
        self._image, self._text = swanlab.Image, swanlab.Text
        self._run = swanlab.init(
            project=identity.project or os.environ.get("SWANLAB_PROJ_NAME") or DEFAULT_PROJECT,
            name=name,
            id=run_id,
            group=identity.run_id,
            resume="allow",
            log_dir=str(folder),
            mode=mode,
            config=dict(identity.config),
            # It must neither ask at a terminal nor take over standard output, which is the progress bar's.
            settings=swanlab.Settings(interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none")),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        images = [self._image(picture.pixels_HWC, caption=picture.caption) for picture in pictures]
        self._run.log({"samples": images}, step=step)

    def texts(self, step: int, answers: Sequence[Answer]) -> None:
        columns, rows = table_of(answers)
        texts = [
            self._text(
                str(row[1]),
                caption=" | ".join(
                    str(value) if n == 0 else f"{name} {'no score' if value is None else value}"
                    for n, (name, value) in enumerate(zip(columns, row, strict=True))
                    if n != 1
                ),
            )
            for row in rows
        ]
        logged: dict[str, object] = {"answers": texts}
        images = [self._image(image, caption=answer.prompt) for answer in answers for image in answer.images[:1]]
        self._run.log(logged | ({"prompts": images} if images else {}), step=step)

    def close(self, *, crashed: bool) -> None:
        self._run.finish(state="crashed" if crashed else "success", error="see the run's log" if crashed else None)
