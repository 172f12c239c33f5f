"""The prompt sampler: distinct, fair, seeded, the same for any number of ranks, and exact after a resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trainer.config import ConfigError
from trainer.data.datasets import DataError, Dataset
from trainer.data.fingerprints import fingerprint
from trainer.data.sampler import PromptSampler
from trainer.types import Prompt


def dataset(name: str, count: int, weight: float = 1.0) -> Dataset:
    return Dataset(name, weight, tuple(Prompt(f"{name}-{i}", f"{name} {i}", name, {"ocr": 1.0}) for i in range(count)))


def sampler(
    datasets: Sequence[Dataset], prompts: int = 4, *, seed: int = 1, rank: int = 0, world: int = 1
) -> PromptSampler:
    return PromptSampler(datasets, prompts_per_step=prompts, seed=seed, rank=rank, world=world)


def ids(drawn: Sequence[Prompt]) -> list[str]:
    return [prompt.id for prompt in drawn]


def test_an_epoch_has_every_prompt_once_and_the_next_another_order() -> None:
    s = sampler([dataset("a", 20)], 4)
    epochs = [[p for _ in range(5) for p in ids(s.draw())] for _ in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_seeds_differ_and_a_seed_repeats() -> None:
    one, again, other = (ids(sampler([dataset("a", 50)], 10, seed=seed).draw()) for seed in (1, 1, 2))
    assert one == again != other


def test_a_known_draw_stays() -> None:
    """Golden: the order is made of hashes, so neither a platform nor a library version may move it."""
    s = sampler([dataset("a", 6), dataset("b", 3)], 3, seed=7)
    assert [ids(s.draw()) for _ in range(3)] == [["a-4", "b-2", "a-2"], ["b-1", "a-1", "b-0"], ["a-5", "b-1", "a-3"]]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    prompts=st.integers(1, 12),
)
@example(
    sizes=[2, 3, 1, 4], weights=[4, 1, 5, 3], prompts=2
)  # the turns alone would draw the third set twice in a step
def test_every_step_draws_distinct_prompts_whatever_the_sizes(
    sizes: list[int], weights: list[int], prompts: int
) -> None:
    """Also across the end of an epoch, and each data set's epochs stay permutations."""
    sets = [dataset(f"d{i}", size, weight=weights[i]) for i, size in enumerate(sizes)]
    try:
        s = sampler(sets, prompts)
    except DataError:
        assume(False)
    drawn = [ids(s.draw()) for _ in range(25)]
    assert all(len(set(step)) == prompts for step in drawn)
    for one in sets:
        of_set = [name for step in drawn for name in step if name.startswith(f"{one.name}-")]
        size = len(one.prompts)
        for start in range(0, len(of_set) - size + 1, size):
            assert len(set(of_set[start : start + size])) == size


def test_ranks_share_out_what_one_rank_would_draw() -> None:
    sets = [dataset("a", 17), dataset("b", 11, weight=2)]
    alone = sampler(sets, 6)
    ranks = [sampler(sets, 6, rank=r, world=3) for r in range(3)]
    for _ in range(9):
        assert ids(alone.draw()) == [name for r in ranks for name in ids(r.draw())]


def test_data_sets_are_mixed_by_weight() -> None:
    s = sampler([dataset("a", 40, weight=1), dataset("b", 40, weight=3)], 6)
    counts = Counter(p.dataset for _ in range(50) for p in s.draw())
    assert counts == {"a": 75, "b": 225}


def test_a_set_gets_its_share_within_one_prompt_or_so() -> None:
    s = sampler([dataset("a", 30, weight=0.1), dataset("b", 30, weight=0.35), dataset("c", 30, weight=0.55)], 5)
    counts: Counter[str] = Counter()
    for step in range(1, 60):
        counts.update(p.dataset for p in s.draw())
        for name, share in (("a", 0.1), ("b", 0.35), ("c", 0.55)):
            assert abs(counts[name] - share * 5 * step) <= 1.5


def test_the_order_of_lines_does_not_matter() -> None:
    one = dataset("a", 12)
    turned = replace(one, prompts=one.prompts[::-1])
    assert ids(sampler([one]).draw()) == ids(sampler([turned]).draw())
    assert fingerprint(one.prompts) == fingerprint(turned.prompts)


@pytest.mark.parametrize("stop", range(8))
def test_a_resumed_sampler_goes_on_exactly(stop: int) -> None:
    """At any step, also inside an epoch that a step has begun in its middle, and with another number of ranks."""
    sets = [dataset("a", 7), dataset("b", 5)]
    whole = sampler(sets, 4)
    expected = [ids(whole.draw()) for _ in range(16)]
    first = sampler(sets, 4)
    assert [ids(first.draw()) for _ in range(stop)] == expected[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler(sets, 4)
    second.draw()
    second.load_state_dict(state)
    assert second.step == stop
    assert [ids(second.draw()) for _ in range(16 - stop)] == expected[stop:]
    half = sampler(sets, 4, rank=1, world=2)
    half.load_state_dict(state)
    assert [ids(half.draw()) for _ in range(16 - stop)] == [step[2:] for step in expected[stop:]]


def test_a_step_can_be_taken_back() -> None:
    s = sampler([dataset("a", 6)], 4)
    s.draw()
    before = s.state_dict()
    drawn = ids(s.draw())
    s.load_state_dict(before)
    assert ids(s.draw()) == drawn


CHANGED = {
    "text": (
        lambda d: replace(d, prompts=(replace(d.prompts[0], text="new"), *d.prompts[1:])),
        "prompts of data set 'a' have changed",
    ),
    "targets": (lambda d: replace(d, prompts=(replace(d.prompts[0], targets=("x",)), *d.prompts[1:])), "have changed"),
    "metadata": (
        lambda d: replace(d, prompts=(replace(d.prompts[0], metadata={"x": 1}), *d.prompts[1:])),
        "have changed",
    ),
    "fewer": (lambda d: replace(d, prompts=d.prompts[1:]), "have changed"),
    "weight": (lambda d: replace(d, weight=2.5), "had the weight 1.0 when the run was started, now 2.5"),
    "name": (lambda d: replace(d, name="other"), "started with the data sets a; now they are other"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_changed_data_is_refused_on_resume(case: str) -> None:
    change, words = CHANGED[case]
    before = dataset("a", 8)
    state = sampler([before]).state_dict()
    with pytest.raises(DataError) as raised:
        sampler([change(before)]).load_state_dict(state)
    assert words in str(raised.value)
    assert "put it back, or start a new run with another run_name" in str(raised.value)


def test_another_seed_is_refused_on_resume() -> None:
    state = sampler([dataset("a", 8)], seed=1).state_dict()
    with pytest.raises(DataError, match="seed = 1, now it is 2"):
        sampler([dataset("a", 8)], seed=2).load_state_dict(state)


def test_prompts_must_divide_by_the_ranks() -> None:
    with pytest.raises(ConfigError, match=r"prompts_per_step = 8 .* 3 ranks.*multiple of 3, such as 9"):
        sampler([dataset("a", 20)], 8, world=3)


def test_more_prompts_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"prompts_per_step = 8, but the training data holds 7 prompts"):
        sampler([dataset("a", 4), dataset("b", 3)], 8)


def test_a_share_larger_than_its_set_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"'b' holds 2 prompts, but its weight 1.0 asks for 4.0 .* = 8"):
        sampler([dataset("a", 40), dataset("b", 2)], 8)
