"""Configuration of the rewards: the services, and what is asked of them."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from rewards.shipped import shipped_in
from trainer.config.base import FilePath, Name, Section, Share, did_you_mean
from trainer.config.service_names import check_args, check_module, check_reward

# DeepGen-RL's variable names for service addresses; they are read when a service has no `urls`.
URL_VARIABLES = {
    "ocr": "OCR_URL",
    "rules": "RULES_URL",
    "hps": "HPS_URL",
    "unifiedreward": "UNIFIEDREWARD_THINK_URL",
    "unifiedreward_sglang": "UNIFIEDREWARD_SGLANG_URL",
    "eval": "UNIGENBENCH_API_URL",
    "clip": "CLIP_URL",
    "aesthetic": "AESTHETIC_URL",
    "pickscore": "PICKSCORE_URL",
    "imagereward": "IMAGE_REWARD_URL",
    "geneval": "GEN_EVAL_URL",
    "regression": "REGRESSION_URL",
    "editreward": "EDITREWARD_URL",
    "deqa": "DEQA_URL",
    "vqa": "VQA_URL",
    "textjudge": "TEXTJUDGE_URL",
}


def _with_shipped(args: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    return {name: shipped_in(value) if isinstance(value, str) else value for name, value in args.items()}


class ServiceConfig(Section):
    """One reward service: where it is, or how to start it."""

    module: str | None = Field(
        None,
        description="Service to start when rewards.launch is local: `ocr`, `rules`; or a file of your own, FILE.py or FILE.py:NAME.",
    )
    args: Annotated[dict[str, str | int | float | bool], AfterValidator(_with_shipped)] = Field(
        default_factory=dict, description="Command-line flags of the started service, without dashes."
    )
    urls: tuple[str, ...] = Field((), description="Where it runs. Several: the least loaded is asked first.")
    token_file: FilePath | None = Field(None, description="File with the bearer token.")
    ca_file: FilePath | None = Field(
        None, description="Certificates (PEM) of a company's CA, trusted beside the usual ones; or set SSL_CERT_FILE."
    )
    timeout_s: float = Field(
        60.0, gt=0, description="Hard deadline of one micro-batch from when it is sent, retries included."
    )
    queue_timeout_s: float = Field(
        600.0, gt=0, description="Longest wait in the trainer's own queue, behind max_in_flight requests."
    )
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection.")
    max_attempts: int = Field(
        4, ge=1, le=100, description="Attempts within the deadline (transport, 502-504); 429 is waited out."
    )
    max_in_flight: int = Field(32, ge=1, description="Requests of one process under way at once; the others queue.")
    breaker_failures: int = Field(5, ge=1, description="Failures in a row that take a URL out for a while.")
    breaker_reset_s: float = Field(5.0, gt=0, description="How long it stays out before one trial request.")
    hedge: bool = Field(False, description="Send a second request to another URL past the p95 latency.")
    image_encoding: Literal["rgb8", "png", "webp", "jpeg", "auto"] = Field(
        "rgb8",
        description="How images travel. rgb8: raw, best near by. png, webp: exact, for slow networks (PNG costs 33 ms a 512x512 "
        "image; OCR in line mode keeps .66 of its engine's pace). jpeg changes scores. auto: the cheapest exact one, measured.",
    )
    nice: int = Field(0, ge=0, le=19, description="Politeness of a started service: 19 leaves the CPU to the trainer.")

    @property
    def probe_encoding(self) -> Literal["rgb8", "png", "webp", "jpeg"]:
        """The encoding of images that travel before any were measured."""
        return "rgb8" if self.image_encoding == "auto" else self.image_encoding

    @property
    def longest_s(self) -> float:
        """How long a micro-batch may take at most, from its submission to its answer."""
        return self.queue_timeout_s + self.timeout_s

    @model_validator(mode="before")
    @classmethod
    def _no_passwords(cls, raw: Any) -> Any:
        # Of the whole section and before its fields: a message about the field would repeat what it holds.
        if isinstance(raw, dict) and "@" in str(raw.get("urls")):
            raise ValueError(
                "urls has an address with a user name or a password (before an @), which would end up in logs and in "
                "config.yaml; put the token into a file and name it in token_file"
            )
        return raw

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not _is_address(url):
                raise ValueError(f"{url!r} is no address of a service; write it like http://127.0.0.1:18082")
        return urls

    @model_validator(mode="after")
    def _fits_together(self) -> ServiceConfig:
        if self.connect_timeout_s > self.timeout_s:
            raise ValueError(
                f"connect_timeout_s = {self.connect_timeout_s:g} is longer than the whole deadline timeout_s = "
                f"{self.timeout_s:g}; lower it or raise timeout_s"
            )
        if self.hedge and len(self.urls) == 1:
            raise ValueError("hedge asks a second URL, and urls has 1; give at least 2 or set hedge: false")
        return self


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number from 0 to 65535
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


class RewardConfig(Section):
    """One reward: a column of the score matrix."""

    service: str = Field(description="A name under rewards.services.")
    reward: str | None = Field(None, description="Which of the service's rewards; null is its default.")
    on_failure: Literal["mask", "drop_group", "stop"] = Field(
        "mask",
        description="What a failed score does: mask leaves this reward of the sample out, drop_group the whole group, stop ends the run.",
    )
    on_change: Literal["stop", "accept"] = Field(
        "stop",
        description="What another scorer behind this reward does (name, revision, template, range, direction), in a run or "
        "since its checkpoint. accept: go on, and note it in the log, the tape, the report and the checkpoint.",
    )
    max_failure_rate: Share = Field(
        0.5, description="Above this share of failures among the last scores the run pauses and waits for the service."
    )
    failure_window: int = Field(200, ge=1, description="How many last scores the failure rate is taken over.")
    patience_s: float = Field(
        300.0, ge=0, description="How many seconds a pause waits for the service before the run stops."
    )
    canary: Literal["differ", "score", "none"] = Field(
        "differ",
        description="What two probes must do at the start: differ: get different scores; score: get any score; none: no probe is sent.",
    )


class TapeConfig(Section):
    """Every answer of the services on file, to make a run again, bit for bit, without any service."""

    mode: Literal["off", "record", "replay"] = Field(
        "off", description="record: keep every answer; replay: take them from `path` and contact no service."
    )
    path: FilePath | None = Field(None, description="The tape's folder; null records to `tape` in the run folder.")

    @model_validator(mode="after")
    def _replays_something(self) -> TapeConfig:
        if self.mode == "replay" and self.path is None:
            raise ValueError("mode: replay needs `path`, the `tape` folder of a run made with mode: record")
        return self


class RolesConfig(Section):
    """Which rewards say that a text is in the form that was asked for, and that its answer is right: what is shown of texts
    is accuracy by itself, and accuracy given format."""

    accuracy: str | None = Field(
        None,
        description="The column that says whether the answer is right; null is the column of the name accuracy, if any.",
    )
    format: str | None = Field(
        None,
        description="The column that says whether the form is right; null is the column of the name format, if any.",
    )


class RewardsConfig(Section):
    """The reward services and what is asked of them."""

    launch: Literal["local", "none"] = Field("none", description="local: start `services` as child processes.")
    services: dict[Name, ServiceConfig] = Field(default_factory=dict, description="The services, by name.")
    columns: dict[Name, RewardConfig] = Field(default_factory=dict, description="The rewards, by name.")
    ready_timeout_s: float = Field(120.0, gt=0, description="How long the start waits for /ready and the canary.")
    canary: bool = Field(True, description="Score two probes at the start: finds a wrong or constant reward at once.")
    restart: bool = Field(True, description="Start a local service again when it dies, up to five times in a run.")
    shuffle_control: bool = Field(
        False, description="Control experiment: scores are dealt to random samples, so nothing can be learned."
    )

    tape: TapeConfig = Field(default_factory=TapeConfig)
    roles: RolesConfig = Field(default_factory=RolesConfig)

    def role(self, name: Literal["accuracy", "format"]) -> str | None:
        """The column that plays a role: the one that `roles` names, else the one of that name; None where neither is."""
        return getattr(self.roles, name) or (name if name in self.columns else None)

    @model_validator(mode="after")
    def _roles_are_columns(self) -> RewardsConfig:
        for name, column in self.roles:
            if column is not None and column not in self.columns:
                known = ", ".join(self.columns) or "none"
                raise ValueError(
                    f"roles.{name} = {column!r} is not under rewards.columns (there: {known}){did_you_mean(column, self.columns)}"
                )
        return self

    @model_validator(mode="after")
    def _services_exist(self) -> RewardsConfig:
        for name, column in self.columns.items():
            if column.service not in self.services:
                known = ", ".join(sorted(self.services)) or "none"
                raise ValueError(
                    f"columns.{name}.service = {column.service!r} is not under rewards.services (there: {known})"
                    f"{did_you_mean(column.service, self.services)}"
                )
        for name, service in self.services.items():
            if self.tape.mode == "replay":
                break  # no service is contacted
            if self.launch == "local" and service.module is None and not service.urls:
                raise ValueError(f"services.{name} has neither `module` (to start it) nor `urls` (where it runs)")
            if self.launch == "none" and not service.urls and URL_VARIABLES.get(name, "") not in os.environ:
                hint = f" or set {URL_VARIABLES[name]}" if name in URL_VARIABLES else ""
                raise ValueError(f"services.{name}.urls is empty: give at least one URL{hint}, or use launch: local")
        return self

    @model_validator(mode="after")
    def _started_services_have_the_rewards(self) -> RewardsConfig:
        if self.launch != "local" or self.tape.mode == "replay":
            return self
        started = {name: s for name, s in self.services.items() if s.module is not None and not s.urls}
        for name, service in started.items():
            check_module(f"services.{name}", service.module or "")
            check_args(f"services.{name}", service.module or "", service.args)
        for name, column in self.columns.items():
            if column.service in started and column.reward is not None:
                service = started[column.service]
                check_reward(f"columns.{name}", column.reward, service.module or "", service.args)
        return self


def check_waits(rewards: RewardsConfig, timeout_s: float) -> None:
    """Whether other ranks, which give up after `timeout_s` seconds (distributed.timeout_s), outwait one that waits for rewards. Raises
    ValueError."""
    waits = {
        name: column.patience_s + 2 * rewards.services[column.service].longest_s
        for name, column in rewards.columns.items()
    }
    if rewards.columns and timeout_s <= rewards.ready_timeout_s:
        raise ValueError(
            f"distributed.timeout_s = {timeout_s:g} is not above rewards.ready_timeout_s = {rewards.ready_timeout_s:g}, so the other "
            "ranks would give up first; raise it"
        )
    name = max(waits, key=lambda name: waits[name], default=None)
    if name is not None and timeout_s <= waits[name]:
        raise ValueError(
            f"distributed.timeout_s = {timeout_s:g} is not above the {waits[name]:g} s that a rank may wait for {name} (its "
            "patience_s, and twice its queue_timeout_s and timeout_s), so the other ranks would give up first; raise it"
        )
