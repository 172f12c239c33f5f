"""Settings every service shares. Each field is a flag (`--max-items`) and an environment variable (`OCR_MAX_ITEMS`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from wire.hosts import is_loopback

MIB = 1024 * 1024
CaFile = Annotated[
    Path | None,
    Field(
        description="File of authorities (PEM) whose certificates are believed besides the public ones when others are "
        "asked over TLS, such as a company's own."
    ),
]
Port = Annotated[int, Field(ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")]


class ServiceSettings(BaseSettings):
    """Base of every service's settings; a service subclasses it with its `env_prefix`, `port` and own fields."""

    model_config = SettingsConfigDict(
        env_prefix="SERVICE_",
        frozen=True,
        extra="ignore",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: Port = 18080
    workers: int = Field(default=1, ge=1, le=256, description="Worker processes (CPU engines).")
    token_file: Path | None = Field(
        default=None,
        description="File of bearer tokens, one per line: `token` or `name:token`, then a client's limits if it has any, "
        "such as requests_per_minute=60 items_per_minute=6000.",
    )
    insecure_no_token: bool = Field(
        default=False, description="Allow a non-loopback --host without tokens: anyone who reaches the port may use it."
    )
    allowed_hosts: str | None = Field(
        default=None,
        description="Names, by commas, under which the service may be asked for (the Host of a request) beside localhost "
        "and addresses. Unset: any other is refused where --host is loopback, and none where it is not.",
    )
    ca_file: CaFile = None
    trusted_proxies: str | None = Field(
        default=None,
        description="Reverse proxies (addresses or networks, by commas) whose X-Forwarded-For is believed; unset: none.",
    )
    audit_log: Path | None = Field(
        default=None, description="File to which a line is appended for each request: who, what, how many, the answer."
    )
    max_connections: int = Field(
        default=512, ge=1, le=65_536, description="Most open connections; more are answered 503 and closed."
    )
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Most connections of one address on which no request was admitted yet; unset: half of all, and any "
        "number from this machine.",
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="How long an idle connection stays open: longer than the proxy before the service keeps its own.",
    )
    max_body_bytes: int = Field(default=128 * MIB, ge=1024, description="Largest request body, in bytes.")
    max_items: int = Field(default=1024, ge=1, description="Most items in one request.")
    max_group_items: int = Field(
        default=128, ge=2, description="Most items of one `group_id`, for rewards that compare them with one another."
    )
    max_images_per_item: int = Field(default=16, ge=1, description="Most images (and source images) of one item.")
    max_image_bytes: int = Field(default=32 * MIB, ge=1, description="Largest encoded image, in bytes.")
    max_image_pixels: int = Field(default=16 * MIB, ge=1, description="Largest image, in pixels (width x height).")
    max_memory_bytes: int = Field(
        default=2048 * MIB, ge=1 * MIB, description="Bodies and decoded images of all requests in flight, in bytes."
    )
    queue_size: int = Field(default=4096, ge=1, description="Most items in flight; above it requests get 429.")
    max_wait_ms: float = Field(
        default=2.0, ge=0, le=10_000, description="How long an item may wait for others to fill its batch."
    )
    cache_entries: int = Field(default=16_384, ge=0, description="Scores kept in memory; 0 switches the cache off.")
    request_timeout_s: float = Field(
        default=300.0, gt=0, le=3600, description="Longest a request may take; a shorter `deadline_ms` wins."
    )
    body_timeout_s: float = Field(default=60.0, gt=0, le=3600, description="Longest a body may take to arrive.")
    image_url_hosts: str | None = Field(
        default=None,
        description="Hosts, by commas, from which images may be fetched: [http://]host[:port][=network]; a name without "
        "a network must stand for public addresses. Unset: image URLs are refused.",
    )
    image_url_timeout_s: float = Field(
        default=10.0, gt=0, le=300, description="Longest the fetching of an image may take."
    )
    legacy: bool = Field(
        default=False, description="Also serve the protocols of other trainers: pickles at `/`, JSON at `/compute`."
    )
    legacy_reward: str | None = Field(
        default=None, description="The reward of requests in those protocols, which name none; unset: the default one."
    )
    legacy_missing: Literal["error", "nan"] = Field(
        default="error",
        description="Those protocols cannot say that a score is missing: fail the request, or send NaN.",
    )
    legacy_timeout_s: float = Field(
        default=50.0,
        gt=0,
        le=3600,
        description="Longest a request in those protocols may take: their clients leave after 60 s or 120 s.",
    )
    redis: SecretStr | None = Field(
        default=None,
        description="Share scores and jobs with other processes through this Redis (redis://[user:password@]host:port/db, "
        "rediss:// or unix://); a password is better given by the variable than by the flag.",
    )
    role: Literal["all", "front", "worker"] = Field(
        default="all",
        description="With --redis: front takes requests and loads no model, worker scores for all fronts; all does both.",
    )
    redis_prefix: str = Field(
        default="reward", pattern=r"^[\w.-]+$", description="Begins the name of every key in Redis."
    )
    visibility_timeout_s: float = Field(
        default=30.0, ge=0.5, le=3600, description="The jobs of a worker silent for that long go to another."
    )
    max_deliveries: int = Field(
        default=5, ge=1, le=100, description="A job that many workers left without an answer is given up."
    )
    max_stream_jobs: int = Field(
        default=16_384, ge=1, description="Most jobs of all fronts in Redis; above it requests get 429."
    )
    worker_jobs: int | None = Field(
        default=None, ge=1, le=4096, description="Jobs a worker holds at a time; unset: two batches of its scorer."
    )
    cache_ttl_s: float = Field(
        default=7 * 86_400.0, ge=1, description="How long a score stays in the cache in Redis, in seconds."
    )
    drain_s: float = Field(default=30.0, ge=0, le=3600, description="Seconds to finish queued work after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe log.")

    @field_validator("allowed_hosts")
    @classmethod
    def _are_host_names(cls, names: str | None) -> str | None:
        for name in (names or "").split(","):
            if names is not None and re.fullmatch(r"[\w.-]+", name.strip()) is None:
                raise ValueError(
                    f"{name.strip()!r} is no host name: names without scheme and port are needed, by commas"
                )
        return names

    @field_validator("redis")
    @classmethod
    def _is_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and urlsplit(url.get_secret_value()).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("a URL that begins with redis://, rediss:// or unix:// is needed")
        return url

    @model_validator(mode="after")
    def _redis_fits_together(self) -> Self:
        if self.redis is None:
            if self.role != "all":
                raise ValueError(f"role {self.role} works through Redis and none is given: add --redis URL")
            return self
        if self.visibility_timeout_s >= self.request_timeout_s:
            raise ValueError(
                f"visibility_timeout_s {self.visibility_timeout_s:g} is not below request_timeout_s "
                f"{self.request_timeout_s:g}, so the jobs of a dead worker would never be scored in time: lower the first"
            )
        if self.visibility_timeout_s * 1000 <= self.max_wait_ms:
            raise ValueError(
                f"visibility_timeout_s {self.visibility_timeout_s:g} is not above max_wait_ms {self.max_wait_ms:g} (ms), "
                f"so jobs would be claimed while they wait for their batch: raise the first or lower the second"
            )
        if self.max_stream_jobs < self.max_items:
            raise ValueError(
                f"max_stream_jobs {self.max_stream_jobs} is below max_items {self.max_items}, so a full request could "
                f"never be taken: raise max_stream_jobs or lower max_items"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.queue_size < self.max_items:
            raise ValueError(
                f"queue_size {self.queue_size} is below max_items {self.max_items}, so a full request could never be "
                f"taken: raise queue_size or lower max_items"
            )
        if self.max_memory_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_memory_bytes {self.max_memory_bytes} is below max_body_bytes {self.max_body_bytes}, so a full "
                f"body could never be taken: raise max_memory_bytes or lower max_body_bytes"
            )
        if not is_loopback(self.host) and self.token_file is None and not self.insecure_no_token:
            raise ValueError(
                f"host {self.host} is reachable from other machines and no token is set: give --token-file, or "
                f"--insecure-no-token where the network itself keeps strangers out"
            )
        return self


Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(settings_class: type[Settings], argv: Sequence[str] | None = None, prog: str = "") -> Settings:
    """Read flags (they win), then environment variables. Exits with status 2 and a sentence per wrong value."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return settings_class(_cli_parse_args=arguments, _cli_prog_name=prog or None)
    except ValidationError as error:
        prefix = settings_class.model_config.get("env_prefix", "")
        for problem in error.errors(include_url=False, include_context=False):
            print(_sentence(problem, prefix), file=sys.stderr)
    except SettingsError as error:
        print(error, file=sys.stderr)
    raise SystemExit(2)


def without_password(url: str) -> str:
    """A URL for logs and messages: without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _sentence(problem: ErrorDetails, prefix: str) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name, given = str(problem["loc"][0]), problem["input"]
    flag, variable = "--" + name.replace("_", "-"), (prefix + name).upper()
    if problem["type"] == "missing":
        return f"{flag} is missing: give it, or the variable {variable}"
    if name in ("redis", "judge_url"):
        given = without_password(str(given))
    return f"{flag} ({variable}): {message}; got {given!r}"
