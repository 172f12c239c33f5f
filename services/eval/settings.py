"""Settings of the service and of its commands."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from services.eval.judge import JudgeMethod
from services.eval.prompting import load_instructions
from services.eval.scorer import EvalScorer
from services.kit.judge.settings import JudgeOptions, JudgeSettings, MaxTokens

COMMAND = SettingsConfigDict(
    env_prefix="EVAL_",
    extra="ignore",
    cli_kebab_case=True,
    cli_hide_none_type=True,
    cli_avoid_json=True,
    cli_show_env_vars=True,
)


class EvalOptions(JudgeOptions):
    """How the judge is asked; the same for the service and for `run`."""

    judge_url: str = Field(
        default="http://127.0.0.1:8000", pattern=r"^https?://\S+$", description="The judge's OpenAI-compatible server."
    )
    model: str = Field(default="QwenVL", min_length=1, description="The judge's served name.")
    max_tokens: MaxTokens = 4096
    template_en: Path | None = Field(
        default=None, description="Text the judge is asked with for English test points; unset: our own wording."
    )
    template_zh: Path | None = Field(default=None, description="The same for Chinese test points.")
    definitions: Path | None = Field(
        default=None, description="JSON of test-point names and their definitions; unset: our own."
    )
    parse_retries: int = Field(
        default=2, ge=0, le=10, description="How often an answer that cannot be read is asked for again, sampled."
    )

    def method(self) -> JudgeMethod:
        """Raises ValueError, with the remedy, when a file cannot be used."""
        instructions = load_instructions(self.template_en, self.template_zh, self.definitions)
        return JudgeMethod(instructions, self.max_tokens, self.parse_retries, self.image_format, self.extra_body)


class EvalSettings(EvalOptions, JudgeSettings):
    """Flags and environment variables (`EVAL_JUDGE_URL`, `EVAL_PORT`, ...) of `python -m services.eval`."""

    model_config = SettingsConfigDict(env_prefix="EVAL_")

    port: int = Field(default=18088, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")


class ReportOptions(BaseSettings):
    """How a run's results are turned into a table and a page."""

    resamples: int = Field(default=10_000, ge=100, le=1_000_000, description="Bootstrap resamples for the intervals.")
    seed: int = Field(default=0, ge=0, description="Seed of the bootstrap.")
    page_images: int = Field(
        default=400, ge=0, description="Most pictures on the page; failures first. All verdicts are in results.jsonl."
    )


class RunSettings(EvalOptions, ReportOptions):
    """Judge a folder of images. What has verdicts already is not asked again, so a run can be stopped at any time."""

    model_config = COMMAND

    prompts: Path = Field(description="Prompt file: CSV of UniGenBench, long or short, English or Chinese.")
    images: Path = Field(description="Folder of images named <index>_<number>.png or <index>.<number>.png.")
    out: Path = Field(description="Folder for results.jsonl, table.csv, table.json and page.html.")
    image_timeout_s: float = Field(
        default=1800.0, gt=0, description="Longest one image may take, with retries and a restart of the judge."
    )


class TableSettings(ReportOptions):
    """Write table.csv, table.json and page.html of a run again, and print the table."""

    model_config = COMMAND

    run: CliPositionalArg[Path] = Field(description="Folder of the run.")


class CompareSettings(ReportOptions):
    """Differences of two runs over the images both have verdicts on, in percentage points, B minus A."""

    model_config = COMMAND

    a: CliPositionalArg[Path] = Field(description="Folder of the first run.")
    b: CliPositionalArg[Path] = Field(description="Folder of the second run.")


def make_scorer(settings: EvalSettings) -> EvalScorer:
    return EvalScorer(settings.endpoint(), settings.method(), wait_s=settings.judge_wait_s)
