"""Writes docs/openapi/<service>.json: `make openapi`. A test keeps the files equal to what is served."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.kit.app import create_app
from services.kit.catalogue import DEPLOYED
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import ConstantScorer

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "openapi"


def render(service: str) -> str:
    """The document of one service. All share the contract, so no scorer needs to be loaded."""
    tree = create_app(ConstantScorer(), service, ServiceSettings()).openapi()
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for entry in DEPLOYED:
        path = FOLDER / f"{entry.name}.json"
        path.write_text(render(entry.name), "utf-8")
        print(path, file=sys.stdout)


if __name__ == "__main__":
    main()
