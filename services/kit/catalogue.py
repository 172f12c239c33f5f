"""The one list of our services. What is made for each of them, and what names them all, is read from it or held to it.

`python -m services.kit.catalogue` prints it for scripts, one service a line: name, port, and how it is deployed. Only
the standard library is needed. A service that is `deployed` has an image, an entry in docker-compose.yml, a folder in
deploy/k8s/services, a job of Prometheus, an OpenAPI file and a row in docs/services.md; a test says which of them is
missing and prints what to add. One that is not needs nothing of the kind: `python -m services.<name>` starts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Entry:
    """One service.

    `name`: its folder in services/, its job in Prometheus, its name in compose. `url_variable`: where the trainer reads
    its address when a recipe gives none; DeepGen-RL's name where DeepGen-RL has one. `deployed`: "default" is started by
    `docker compose up`, "shelf" by its name. `gpu`: its container asks for a GPU.
    """

    name: str
    port: int
    url_variable: str | None = None
    deployed: Literal["default", "shelf"] | None = None
    gpu: bool = False

    @property
    def module(self) -> str:
        """What `python -m` starts."""
        return f"services.{self.name}"

    @property
    def image(self) -> str:
        """The container image's name, without its tag."""
        return f"rewards-{self.name}"


CATALOGUE: tuple[Entry, ...] = (
    Entry("clip", 18080, "CLIP_URL", "default", gpu=True),
    Entry("imagereward", 18081, "IMAGE_REWARD_URL", "shelf", gpu=True),
    Entry("ocr", 18082, "OCR_URL", "default"),
    Entry("hps", 18083, "HPS_URL", "default", gpu=True),
    Entry("rules", 18084, "RULES_URL", "default"),
    Entry("geneval", 18085, "GEN_EVAL_URL", "shelf", gpu=True),
    Entry("regression", 18086, "REGRESSION_URL", "shelf", gpu=True),
    Entry("unifiedreward", 18087, "UNIFIEDREWARD_THINK_URL", "default"),
    Entry("eval", 18088, "UNIGENBENCH_API_URL", "default"),
    Entry("vqa", 18089, "VQA_URL", "shelf"),
    Entry("textjudge", 18090, "TEXTJUDGE_URL", "shelf"),
    Entry("own", 18091),
)

DEPLOYED: tuple[Entry, ...] = tuple(entry for entry in CATALOGUE if entry.deployed is not None)


def main() -> None:
    for entry in CATALOGUE:
        print(entry.name, entry.port, entry.deployed or "-")


if __name__ == "__main__":
    main()
