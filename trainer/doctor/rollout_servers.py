"""The vLLM servers that draw a run's answers: whether they are there, or could be started."""

from __future__ import annotations

import json
from collections.abc import Iterator

from trainer.config import Config, ConfigError, TokenSamplingConfig, VlmConfig
from trainer.doctor.findings import Finding
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.server.launch import answers, check_command

_AREA = "rollouts"


def check_rollout_servers(config: Config) -> Iterator[Finding]:
    """Nothing is started: a server takes minutes. Nothing is found where the run draws its answers itself."""
    sampling = config.sampling
    if not isinstance(sampling, TokenSamplingConfig) or sampling.vllm is None:
        return
    for url in sampling.vllm.urls:
        if answers(url):
            yield Finding(_AREA, "OK", f"{url} answers")
        else:
            yield Finding(_AREA, "FAIL", f"no vLLM server answers at {url}", "start it, as docs/vllm.md says")
    launch = sampling.vllm.launch
    if launch is None:
        return
    try:
        check_command(launch, _model_type(config))
    except ConfigError as error:
        yield Finding(_AREA, "FAIL", str(error))
        return
    text = f"{launch.executable} is a command; whether it serves the model is seen when the run starts it"
    yield Finding(_AREA, "NOT CHECKED", text)


def _model_type(config: Config) -> str:
    """Of the model's config.json; empty where it cannot be read, which is said of the policy."""
    if not isinstance(config.policy, VlmConfig) or config.policy.pretrained is None:
        return ""
    try:
        folder = local_folder(config.policy.pretrained, "policy.pretrained", fetch=False)
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (ConfigError, OSError, ValueError):
        return ""
