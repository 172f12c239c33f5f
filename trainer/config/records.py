"""What a run leaves behind: checkpoints and logs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import OutputPath, Section


class KeepBestConfig(Section):
    """Checkpoints that stay for their worth, however old."""

    metric: str = Field(min_length=1, description="Key of metrics.jsonl, such as eval/ocr.")
    mode: Literal["max", "min"] = Field("max", description="Whether more or less of it is better.")
    count: int = Field(1, ge=1, description="How many of the best stay.")


class CheckpointConfig(Section):
    """What survives a crash."""

    save_every: int = Field(25, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_best: KeepBestConfig | None = Field(
        None, description="Best checkpoints kept besides; checkpoints/best names the best one. null: none."
    )
    export: OutputPath | None = Field(
        None,
        description="Folder that the trained model is written into once all steps are made, as `python -m trainer export` does: its "
        "averaged weights in float32, in the first format of the policy. What is there already stays. null writes none.",
    )


class LoggingConfig(Section):
    """Where numbers go."""

    report_to: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = Field(
        ("tensorboard",),
        description="Where numbers go besides metrics.jsonl; wandb and swanlab stay offline unless their API key is set.",
    )
    project: str | None = Field(
        None,
        min_length=1,
        description="The project's name for W&B and SwanLab; null takes WANDB_PROJECT or SWANLAB_PROJ_NAME.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="The run's name for W&B and SwanLab; null takes WANDB_RUN_NAME or SWANLAB_EXP_NAME, then run_name.",
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="The most teraflops of one device, dense and in the type of training, of which perf/mfu is the share reached; null knows common GPUs.",
    )
    report_every: int = Field(
        25,
        ge=1,
        description="Steps between rebuilds of report.html by a process beside the run; a long run makes fewer, so that they take at most 2 % of one core.",
    )
    warn_after_steps: int = Field(
        3, ge=1, description="Steps in a row in which a reward is constant, or the gradient is 0, before that is said."
    )
    progress: bool = Field(True, description="A progress bar on a terminal, lines elsewhere.")
