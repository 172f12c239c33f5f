"""Answers drawn by vLLM servers: where they are or how they are started, and how they get the weights after each update."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from trainer.config.base import FilePath, Positive, Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Flags that the trainer gives itself; a second value of one would silently win or lose.
OURS = (
    "--host",
    "--port",
    "--served-model-name",
    "--enable-scale-out",
    "--logprobs-mode",
    "--worker-extension-cls",
    "--weight-transfer-config",
    "--enable-lora",
    "--max-lora-rank",
    "--dtype",
)


class VllmLaunchConfig(Section):
    """Servers that the run starts on this machine and stops at its end. They listen on 127.0.0.1 alone."""

    executable: FilePath = Field("vllm", description="vLLM's command, in an environment of its own.")
    gpus: tuple[str, ...] = Field(
        (),
        description="Which GPUs each server sees, as CUDA_VISIBLE_DEVICES has them: ['4,5', '6,7'] is two servers of two.",
    )
    servers: int | None = Field(
        None, ge=1, le=64, description="How many are started; null is one for each entry of gpus, or one."
    )
    args: tuple[str, ...] = Field(
        (), description="More flags for `vllm serve`, such as [--tensor-parallel-size, '2', --max-model-len, '8192']."
    )
    env: dict[str, str] = Field(default_factory=dict, description="More environment variables of the servers.")
    start_timeout_s: Positive = Field(900.0, description="How long a server may take to load the model and answer.")

    @property
    def count(self) -> int:
        """How many servers are started."""
        return self.servers or len(self.gpus) or 1

    @model_validator(mode="after")
    def _fits_together(self) -> VllmLaunchConfig:
        if self.gpus and self.servers not in (None, len(self.gpus)):
            raise ValueError(
                f"servers = {self.servers}, but gpus has {len(self.gpus)} entries, one a server; leave servers out"
            )
        for flag in self.args:
            name = flag.partition("=")[0]
            if name in OURS:
                raise ValueError(f"args has {name}, which the trainer gives itself ({', '.join(OURS)}); leave it out")
        return self


class VllmConfig(Section):
    """What `sampling.engine: vllm` needs."""

    urls: tuple[str, ...] = Field(
        (), description="Running servers, such as http://127.0.0.1:8000; docs/vllm.md has the command that starts one."
    )
    launch: VllmLaunchConfig | None = Field(None, description="Start servers in place of urls.")
    weights_dir: FilePath | None = Field(
        None,
        description="Where versions of the weights (with policy.lora: of the adapter) are written as files; trainer and servers "
        "must both see it. /dev/shm is fastest on one machine. Null is rollout_weights in the run's folder.",
    )
    served_model: str = Field(
        "policy", min_length=1, description="The model's name at the servers (--served-model-name)."
    )
    dtype: Literal["bfloat16", "float32"] | None = Field(
        None, description="Type of the servers' computations; null is policy.dtype."
    )
    token_file: FilePath | None = Field(None, description="File with the servers' API key (VLLM_API_KEY).")
    max_in_flight: int = Field(64, ge=1, le=4096, description="Answers that one server draws at once, for one process.")
    timeout_s: Positive = Field(600.0, description="Longest wait for one answer; it is then drawn by another server.")
    push_timeout_s: Positive = Field(600.0, description="Longest wait for each call of a push of weights.")
    patience_s: Positive = Field(
        900.0, description="How long a step waits while no server can draw, before the run saves and stops."
    )
    probe_tolerance: Positive | None = Field(
        None,
        description="After a push, log-probabilities of a fixed answer may differ so much from the trainer's own; null is 1e-3 "
        "where both compute in float32, else 0.3.",
    )
    drift_alarm: Positive = Field(
        0.05,
        description="Say so when the mean |log-probability drawn with - the trainer's own| of a step's tokens is above this.",
    )
    drift_action: Literal["warn", "stop"] = Field("warn", description="Whether that also ends the run, saved.")

    @model_validator(mode="before")
    @classmethod
    def _no_passwords(cls, raw: Any) -> Any:
        # Of the whole section and before its fields: a message about the field would repeat what it holds.
        if isinstance(raw, dict) and "@" in str(raw.get("urls")):
            raise ValueError(
                "urls has an address with a user name or a password (before an @), which would end up in logs and in "
                "config.yaml; put the key into a file and name it in token_file"
            )
        return raw

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not _is_address(url):
                raise ValueError(f"{url!r} is no address of a server; write it like http://127.0.0.1:8000")
        return tuple(url.rstrip("/") for url in urls)

    @model_validator(mode="after")
    def _fits_together(self) -> VllmConfig:
        if bool(self.urls) == (self.launch is not None):
            there = "both urls and launch" if self.urls else "neither urls nor launch"
            raise ValueError(f"{there}: say where the servers run (urls), or let the run start them (launch)")
        return self

    def beyond_loopback(self) -> list[str]:
        """Servers on other machines: whoever reaches their port can change weights, whatever key is set."""
        return [url for url in self.urls if urlsplit(url).hostname not in LOOPBACK]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number from 0 to 65535
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
