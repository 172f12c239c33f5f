"""What other trainers' reward clients put on the wire and how they read the answer, without the trainers.

Written from the formats of the published clients: flow_grpo (`rewards.py`), verl-omni (`http_scorer_client.py`),
DeepGen-RL (`reward_evaluator.py`) and Flow-Factory (`my_reward_remote.py`). They unpickle answers as carelessly as
the originals do, so an answer that is not plain data would show.
"""

from __future__ import annotations

import base64
import io
import math
import pickle
from collections.abc import Sequence
from typing import Any

import httpx
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def flow_grpo(url: str, images: Sequence[Image.Image], prompts: Sequence[str] | None = None, tries: int = 3) -> list:
    """Chunks of 64, retried on 500 and on what has Retry-After; the status is never looked at. Reads `outputs`."""
    scores: list[float] = []
    with requests.Session() as session:
        retries = Retry(total=tries, backoff_factor=0.01, status_forcelist=[500], allowed_methods=None)
        session.mount("http://", HTTPAdapter(max_retries=retries))
        for start in range(0, len(images), 64):
            chunk: dict[str, Any] = {"images": [jpeg(image) for image in images[start : start + 64]]}
            if prompts is not None:
                chunk["prompts"] = list(prompts[start : start + 64])
            answer = session.post(url, data=pickle.dumps(chunk), timeout=300)
            scores += pickle.loads(answer.content)["outputs"]
    return scores


def flow_grpo_geneval(url: str, images: Sequence[Image.Image], rows: Sequence[dict], only_strict: bool) -> tuple:
    """flow_grpo's five results for GenEval: chunks of 64, whose groups are joined. Every answer is taken for a good one."""
    lists: dict[str, list[float]] = {"scores": [], "rewards": [], "strict_rewards": []}
    groups: dict[str, dict[str, list[float]]] = {"group_rewards": {}, "group_strict_rewards": {}}
    for start in range(0, len(images), 64):
        chunk = {
            "images": [jpeg(image) for image in images[start : start + 64]],
            "meta_datas": list(rows[start : start + 64]),
            "only_strict": only_strict,
        }
        answer = pickle.loads(requests.post(url, data=pickle.dumps(chunk), timeout=300).content)
        for name in lists:
            lists[name] += answer[name]
        for name, group in groups.items():
            for task, values in answer[name].items():
                group.setdefault(task, []).extend(values)
    return (*lists.values(), *groups.values())


async def verl_omni(url: str, image: Image.Image, prompt: str, max_retries: int = 2) -> float:
    """One image a request; 408, 429 and 5xx are tried again; an `error` in a pickled answer is repeated."""
    payload = pickle.dumps({"images": [jpeg(image)], "prompts": [prompt], "metadata": {}})
    headers = {"Content-Type": "application/octet-stream"}
    async with httpx.AsyncClient(timeout=300) as client:
        for _ in range(max_retries + 1):
            answer = await client.post(url, content=payload, headers=headers)
            if answer.status_code in {408, 429} or answer.status_code >= 500:
                continue
            if answer.status_code != 200:
                raise RuntimeError(f"HTTP {answer.status_code}: {pickle.loads(answer.content)['error']}")
            return float(pickle.loads(answer.content)["scores"][0])
    raise RuntimeError(f"failed after {max_retries + 1} attempts: HTTP {answer.status_code}")


def deepgen_rl(url: str, images: Sequence[Image.Image] | dict, prompts: Sequence[str], workers: int = 1) -> list:
    """All images, or one share for each of `workers`, in one request each; no second try."""
    share = math.ceil(len(prompts) / workers)
    scores: list[float] = []
    for start in range(0, len(prompts), share):
        part = slice(start, start + share)
        encoded: Any = (
            {key: [jpeg(image) for image in value[part]] for key, value in images.items()}
            if isinstance(images, dict)
            else [jpeg(image) for image in images[part]]
        )
        payload = pickle.dumps({"images": encoded, "prompts": list(prompts[part]), "metadata": {}})
        answer = requests.post(url if url.endswith("/") else f"{url}/", data=payload, timeout=600)
        answer.raise_for_status()
        scores += pickle.loads(answer.content)["scores"]
    return scores


def flow_factory(url: str, images: Sequence[Image.Image], prompts: Sequence[str], **more: Any) -> list:
    """Asks /health, then sends everything in one request; any bad status is tried three times at once."""
    assert requests.get(f"{url}/health", timeout=5).ok
    payload = {
        "prompt": list(prompts),
        "image": [png64(image) for image in images],
        "video": None,
        "condition_images": None,
        "condition_videos": None,
        **more,
    }
    for _ in range(3):
        answer = requests.post(f"{url}/compute", json=payload, timeout=300)
        if answer.ok:
            tree = answer.json()
            if tree.get("error"):
                raise RuntimeError(f"server error: {tree['error']}")
            return tree["rewards"]
    raise RuntimeError(f"failed: HTTP {answer.status_code}")


def png64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
