"""Whether the packages of the reporters that a recipe names are there; W&B and SwanLab are extras."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from trainer.config import ConfigError


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for reporters of `logging.report_to` whose package, which has the same name, is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if "tensorboard" in missing:  # it comes with all that training needs, so that is missing, too
        raise ConfigError(
            "logging.report_to names tensorboard, which is not installed: pip install 'rewards-as-services[train]', in a checkout: bash "
            "train.sh"
        )
    if missing:
        raise ConfigError(
            f"logging.report_to names {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed. "
            "Install the optional reporters: .venv/bin/python -m pip install --require-hashes -r "
            "requirements/reporters.txt (without a checkout: pip install 'rewards-as-services[reporters]'), or leave them out: "
            "logging.report_to=[tensorboard]"
        )
