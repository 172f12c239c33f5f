"""What ranks of packs need of every policy that reads them: the same modules in the same order, whatever a pack holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pack_reader import PackReader
from tests.support.repeated_indexes import adds_in_order
from tests.support.small_mot import picture, row, small_mot, text
from tests.support.tiny_neo import make_qwen3, neo_section
from trainer.data.sequences import ImageItem, SequencePlan
from trainer.policies.base import Laying, ReadsPacks
from trainer.policies.registry import build_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


def policy_of(kind: str, folder: Path) -> ReadsPacks:
    policy: ReadsPacks
    if kind == "neo":
        policy = build_policy(neo_section(make_qwen3(folder / "qwen3")), torch.device("cpu"), keep_reference=False)
    elif kind == "mot":
        policy = small_mot()
    else:
        policy = PackReader()
    return policy


def rows_of(kind: str, folder: Path) -> list[SequencePlan]:
    image = "1" if kind == "double" else picture(folder, "picture")
    said = text("red disc", learnt=True)
    seen, clean, drawn = ImageItem(image, "seen"), ImageItem(image, "clean"), ImageItem(image, "drawn")
    rows = [row("text", said), row("looked at", seen, said)]
    if kind != "neo":
        rows += [row("drawn", drawn), row("edit", text("make red"), clean, seen, said, drawn)]
    return rows


@pytest.mark.parametrize("kind", ["mot", "neo", "double"])
def test_all_modules_run_in_one_order_whatever_a_pack_holds(folder: Path, kind: str) -> None:
    policy = policy_of(kind, folder)
    ran, ready = list[str](), list[str]()
    for name, module in policy.trainable.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    trained = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))

    def orders(plans: Sequence[SequencePlan]) -> Any:
        ran.clear()
        ready.clear()
        for parameter in trained.values():
            parameter.grad = None
        out = policy.read([policy.lay(plan, Laying(1)) for plan in plans])
        with adds_in_order():
            (out.cross_entropy_T.sum() + out.squared_error_L.sum()).backward()  # type: ignore[no-untyped-call]
        return list(ran), list(ready)

    plans = rows_of(kind, folder)
    found = [orders([plan]) for plan in plans] + [orders(plans), orders(plans[::-1])]
    assert set(found[0][1]) == set(trained) and len(found[0][0]) > 0
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("kind", ["mot", "neo", "double"])
def test_rows_are_laid_alike_by_several_threads(folder: Path, kind: str) -> None:
    """Tokenizers and image files are shared by the threads that read ahead."""
    from concurrent.futures import ThreadPoolExecutor

    policy = policy_of(kind, folder)
    plans = rows_of(kind, folder) * 8
    layings = [Laying(number, 0.3, 0.3, 0.3) for number in range(len(plans))]
    with ThreadPoolExecutor(4) as threads:
        ahead = list(threads.map(policy.lay, plans, layings))
    for laid, plan, laying in zip(ahead, plans, layings, strict=True):
        alone = policy.lay(plan, laying)
        assert (laid.length, laid.learnt, laid.drawn) == (alone.length, alone.learnt, alone.drawn)
        with torch.no_grad():
            one, other = policy.read([laid]), policy.read([alone])
        assert torch.equal(one.cross_entropy_T, other.cross_entropy_T)
        assert torch.equal(one.squared_error_L, other.squared_error_L)
