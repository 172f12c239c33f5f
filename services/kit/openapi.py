"""Writes docs/openapi/<service>.json: `python -m services.kit.openapi`. A test keeps them equal to what is served."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.kit.app import create_app
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import ConstantScorer

SERVICES = ("ocr", "rules", "eval", "hps", "unifiedreward", "clip", "geneval", "imagereward", "regression", "vqa")
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "openapi"


def render(service: str) -> str:
    """The document of one service. All share the contract, so no scorer needs to be loaded."""
    tree = create_app(ConstantScorer(), service, ServiceSettings()).openapi()
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        path = FOLDER / f"{service}.json"
        path.write_text(render(service), "utf-8")
        print(path, file=sys.stdout)


if __name__ == "__main__":
    main()
