"""`python -m trainer doctor CONFIG`: what would go wrong, found before the run, with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.config import Config, ConfigError
from trainer.doctor.findings import Finding, as_row, summary, to_json
from trainer.doctor.packages import check_packages, check_reporters
from trainer.migration import load_recipe

__all__ = ["Finding", "examine", "run_doctor"]


def run_doctor(config_path: str | Path, overrides: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Print the findings as they come, or all as JSON at the end. Returns 0 when nothing failed, else 1.

    Nothing is left behind: local services are started on free ports and stopped, no run folder is made.
    """
    findings = []
    for finding in examine(config_path, overrides):
        findings.append(finding)
        if not as_json:
            print(as_row(finding, color=sys.stdout.isatty()), flush=True)
    print(to_json(findings) if as_json else summary(findings))
    return int(any(finding.status == "FAIL" for finding in findings))


def examine(config_path: str | Path, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings; the quick checks come first, the services last."""
    try:
        config = load_recipe(config_path, Config, overrides)
    except ConfigError as error:
        yield Finding("config", "FAIL", str(error), "correct the file or the override; nothing else was checked")
        return
    yield Finding("config", "OK", f"{config_path} loads, and its values fit together")
    yield from check_packages()
    yield from check_reporters(config)
    # Not before: these import torch, and a mistake in the config is said at once.
    from trainer.doctor.machine import check_compiler, check_device, check_memory, check_ports
    from trainer.doctor.own_code import check_own_code
    from trainer.doctor.prompts import check_base, check_data, check_names
    from trainer.doctor.rollout_servers import check_rollout_servers
    from trainer.doctor.run_folder import check_disk, check_run
    from trainer.doctor.services import check_services
    from trainer.doctor.sight import check_sight

    yield from check_names(config)
    yield from check_own_code(config)
    sampler = yield from check_data(config)
    yield from check_base(config)
    yield from check_device(config)
    yield from check_compiler(config)
    yield from check_memory(config)
    yield from check_disk(config)
    scorers = yield from check_run(config, sampler)
    yield from check_sight(config, sampler)
    yield from check_rollout_servers(config)
    yield from check_ports(config)
    yield from check_services(config, scorers)
