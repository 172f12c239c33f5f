"""The UnifiedReward gateway as a process in front of a judge, and the requests it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from services.kit.judge.content import image_part

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300.0


@contextmanager
def unifiedreward_gateway(judge_url: str, model: str, **flags: object) -> Iterator[str]:
    """The URL of a ready `python -m services.unifiedreward`; `cache_entries=0` is `--cache-entries=0`, `legacy=True` `--legacy`."""
    given = {"port": 0, "judge-url": judge_url, "model": model, "log-level": "warning", **flags}
    command = [sys.executable, "-m", "services.unifiedreward", *(_option(*each) for each in given.items())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNIFIEDREWARD_")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "listening on" in line, f"the gateway did not start: {line}"
            url = line.split()[-1]
            wait_for_status(url, 200, START_TIMEOUT_S)
            yield url
        finally:
            process.kill()


def _option(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


def ready_status(url: str) -> int:
    """What `/ready` answers."""
    return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code


def wait_for_status(url: str, status: int, timeout_s: float) -> None:
    """Wait until `/ready` answers `status`."""
    until = time.monotonic() + timeout_s
    while (now := ready_status(url)) != status:
        assert time.monotonic() < until, f"/ready still answers {now}, not {status}, after {timeout_s:.0f} s"
        time.sleep(0.05)


def post(url: str, body: object, timeout_s: float = 120.0) -> httpx.Response:
    return httpx.post(url, json=body, timeout=timeout_s, trust_env=False)


def metric(url: str, name: str, **labels: str) -> float:
    """The value of one sample of `/metrics`; 0 where there is none yet."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in httpx.get(f"{url}/metrics", trust_env=False).text.splitlines():
        head, _, value = line.rpartition(" ")
        sample, _, given = head.partition("{")
        if sample == name and wanted <= set(given.rstrip("}").split(",")):
            return float(value)
    return 0.0


def score_request(
    images: Sequence[Image.Image], prompt: str, *, group: bool = False, source: Image.Image | None = None, **top: Any
) -> dict[str, Any]:
    """A body for `POST /v1/score`: one item per image, `i0`, `i1`, ...; `top` are fields beside `items`."""
    extra: dict[str, Any] = {"group_id": "g"} if group else {}
    if source is not None:
        extra["source_images"] = [_png(source)]
    items = [{"id": f"i{n}", "prompt": prompt, "images": [_png(image)], **extra} for n, image in enumerate(images)]
    return {"items": items, **top}


def _png(image: Image.Image) -> dict[str, str]:
    data = image_part(image, "png")["image_url"]["url"].partition(";base64,")[2]
    return {"media_type": "image/png", "data": data}
