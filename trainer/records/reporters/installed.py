"""Whether the packages of the reporters that a recipe names are there; W&B and SwanLab are extras."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from trainer.config import ConfigError


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for reporters of `logging.report_to` whose package, which has the same name, is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"logging.report_to names {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed. "
            "Install the optional reporters: .venv/bin/python -m pip install --require-hashes -r "
            "requirements/reporters.txt (without a checkout: pip install 'rewards-as-services[reporters]'), or leave them out: "
            "logging.report_to=[tensorboard]"
        )
