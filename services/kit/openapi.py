"""Writes docs/openapi/<service>.json: `make openapi`. A test keeps the files equal to what is served."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from services.kit.app import create_app
from services.kit.catalogue import DEPLOYED
from services.kit.samples import Sample
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import ConstantScorer
from wire.schema import ScorerInfo

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "openapi"


class _Unloaded(ConstantScorer):
    """Has the rewards of a service's samples, and nothing else of it."""

    def __init__(self, samples: Mapping[str, Sample]) -> None:
        super().__init__()
        self.samples = samples

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {name: ScorerInfo(name=name, revision="", range=(None, None)) for name in self.samples}


def render(service: str) -> str:
    """The document of one service. All share the contract and none needs its weights: their examples are drawn."""
    samples = import_module(f"services.{service}.samples").samples()
    tree = create_app(_Unloaded(samples), service, ServiceSettings()).openapi()
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for entry in DEPLOYED:
        path = FOLDER / f"{entry.name}.json"
        path.write_text(render(entry.name), "utf-8")
        print(path, file=sys.stdout)


if __name__ == "__main__":
    main()
