"""Packs: what goes in comes out, every pack keeps its bounds, and nobody's number of ranks or threads changes any."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.support.pack_reader import LaidRow, PackReader
from tests.support.pack_rows import ListedPlans, drawing, groups_of, lanes_of, packed, plans
from tests.support.waiting import wait_until
from trainer.data.packing.lanes import Lanes, Pack
from trainer.data.packing.shuffle import Shuffle
from trainer.data.prompts.checks import DataError
from trainer.data.sequences import Plans, SequencePlan, TextItem
from trainer.types import StopTrainingError

GROUPS = [{"name": "drawings", "weight": 2.0}, {"name": "writings"}, {"name": "thoughts", "mandatory": True}]


def sets(**fields: Any) -> dict[str, Plans]:
    return {
        "drawings": plans("drawings", 37, bad=(5, 11)),
        "writings": plans("writings", 23),
        "thoughts": plans("thoughts", 11),
    }


def drawn(lanes: Lanes[LaidRow], steps: int) -> list[list[Pack[LaidRow]]]:
    return [lanes.packs() for _ in range(steps)]


def keys(steps: list[list[Pack[LaidRow]]]) -> list[list[tuple[tuple[int, int], ...]]]:
    return [[pack.keys for pack in step] for step in steps]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1023, 1025])
def test_a_shuffle_is_a_permutation_of_its_own(count: int) -> None:
    orders = [[Shuffle(count, 1, "epoch", epoch)[place] for place in range(count)] for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 16 or len({tuple(order) for order in orders}) == 3
    with pytest.raises(IndexError):
        Shuffle(count, 1)[count]


def test_a_shuffle_has_no_memory_of_the_places() -> None:
    """Of a thousand shuffles of ten rows each row stands first about a hundred times (4 standard deviations: 38)."""
    first = Counter(Shuffle(10, seed)[0] for seed in range(1000))
    assert all(62 <= first[row] <= 138 for row in range(10))


@pytest.mark.parametrize("fill", ["tokens", "rows"])
def test_what_goes_in_comes_out_or_is_named_or_waits(fill: str) -> None:
    config = packed(
        GROUPS, packs=2, fill=fill, rows_per_pack=4 if fill == "rows" else None, max_tokens=64, max_row_tokens=24
    )
    lanes, groups = lanes_of(config, sets()), groups_of(config, sets())
    packs = [pack for step in drawn(lanes, 30) for pack in step]  # 60 packs
    placed = Counter(key for pack in packs for key in pack.keys)
    waiting = Counter(key for lane in lanes.lanes for key in lane.waiting)
    left_out = sum(len(pack.left_out) for pack in packs)
    given = Counter(
        (group, lane.number + draw * config.packs)
        for lane in lanes.lanes
        for group, draws in enumerate(lane.drawn)
        for draw in range(draws)
    )
    assert placed - given == waiting - given == Counter() and max(placed.values()) == 1
    assert sum((given - placed - waiting).values()) == left_out > 0
    assert waiting.total() > 0
    for pack in packs:
        length = sum(row.length for row in pack.rows)
        assert length <= 64 and all(row.length <= 24 for row in pack.rows)
        assert groups[pack.keys[0][0]].name == "thoughts"
        assert fill == "tokens" or len(pack.rows) <= 4
    shares = [sum(row.length for row in pack.rows) / 64 for pack in packs]
    assert fill == "rows" or sum(shares) / len(shares) > 0.9
    sentences = {sentence for pack in packs for sentence in pack.left_out}
    assert "drawings:6: txt is missing; give it" in sentences
    assert any("has 28 tokens, packed.max_row_tokens is 24" in each for each in sentences)


def test_every_row_is_seen_before_any_comes_again() -> None:
    """Also those that the lanes do not divide; in the order of no other epoch."""
    config = packed([{"name": "drawings"}], packs=3, max_tokens=200)
    lanes = lanes_of(config, {"drawings": plans("drawings", 25)})
    rows: dict[int, str] = {}
    for step in drawn(lanes, 40):
        for pack in step:
            rows |= {position: row.id for (_, position), row in zip(pack.keys, pack.rows, strict=True)}
    for epoch in range(3):
        assert len({rows[position] for position in range(25 * epoch, 25 * epoch + 25)}) == 25
    assert [rows[p] for p in range(25)] != [rows[p] for p in range(25, 50)]


def test_groups_are_drawn_by_weight() -> None:
    config = packed([{"name": "drawings", "weight": 3.0}, {"name": "writings"}], packs=4)
    lanes = lanes_of(config, {"drawings": plans("drawings", 50), "writings": plans("writings", 50)})
    drawn(lanes, 60)
    counts = [sum(lane.drawn[group] for lane in lanes.lanes) for group in (0, 1)]
    total = sum(counts)
    assert total > 1000 and abs(counts[0] / total - 0.75) < 4 * (0.75 * 0.25 / total) ** 0.5


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_that_read_ahead_change_nothing(workers: int) -> None:
    alone, ahead = (drawn(lanes_of(packed(GROUPS, packs=2, workers=number), sets()), 12) for number in (0, workers))
    assert keys(alone) == keys(ahead)
    assert [pack.left_out for step in alone for pack in step] == [pack.left_out for step in ahead for pack in step]
    for one, other in zip(alone, ahead, strict=True):
        for a, b in zip(one, other, strict=True):
            noise = [[n[1].tolist() for n in row.noised] for row in a.rows]
            assert noise == [[n[1].tolist() for n in row.noised] for row in b.rows]


def test_rows_are_read_ahead_while_a_pack_is_trained_on() -> None:
    policy = PackReader()
    lanes = lanes_of(packed(GROUPS, workers=2), sets(), policy)
    [pack] = lanes.packs()
    wait_until(lambda: len(policy.laid) > len(pack.rows) + len(pack.left_out), "a row that is read ahead")
    lanes.close()  # waits for what is being read
    assert len(policy.laid) <= 3 * (len(pack.rows) + len(pack.left_out)) + 8


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_other_ranks_go_on_with_the_same_packs(ranks: int) -> None:
    """The state of one rank's four lanes, through JSON, taken up by several ranks with other threads."""
    config = packed(GROUPS, packs=4)
    whole = lanes_of(config, sets())
    drawn(whole, 7)
    state = json.loads(json.dumps(whole.state_dict()))
    rest = keys(drawn(whole, 7))
    shares = []
    for rank in range(ranks):
        part = lanes_of(packed(GROUPS, packs=4, workers=rank), sets(), share=(rank, ranks))
        part.load_state_dict(state)
        shares.append(keys(drawn(part, 7)))
        part.close()
    assert [[pack for share in shares for pack in share[step]] for step in range(7)] == rest


def test_a_row_that_was_put_back_is_the_same_row() -> None:
    """Its noise and what is left out of it do not change while it waits, nor through a restart."""
    config = packed([{"name": "drawings"}], max_tokens=61)
    lanes = lanes_of(config, {"drawings": plans("drawings", 40)})
    while not lanes.lanes[0].waiting:
        lanes.packs()
    again = lanes_of(config, {"drawings": plans("drawings", 40)})
    again.load_state_dict(lanes.state_dict())
    noises = []
    for each in (lanes, again):
        [pack] = each.packs()
        noises.append([noise.tolist() for row in pack.rows for _, noise, _ in row.noised])
    assert noises[0] == noises[1]


def test_other_settings_do_not_take_the_state() -> None:
    state = lanes_of(packed(GROUPS, packs=2), sets()).state_dict()
    with pytest.raises(ValueError, match=r"packed\.packs was 2, now 3"):
        lanes_of(packed(GROUPS, packs=3), sets()).load_state_dict(state)
    with pytest.raises(ValueError, match=r"packed\.groups were drawings, writings, thoughts, now drawings"):
        lanes_of(packed(GROUPS[:1], packs=2), sets()).load_state_dict(state)


def test_a_file_of_bad_rows_ends_the_run_and_says_why() -> None:
    lanes = lanes_of(packed([{"name": "drawings"}]), {"drawings": plans("drawings", 3, bad=range(3))})
    with pytest.raises(
        StopTrainingError, match=r"100 rows in a row cannot be used, the last: drawings:\d: txt is missing"
    ):
        lanes.packs()


def test_one_bad_row_ends_the_run_where_that_is_asked_for() -> None:
    lanes = lanes_of(packed([{"name": "drawings"}], bad_rows="stop"), {"drawings": plans("drawings", 4, bad=(0, 1))})
    with pytest.raises(StopTrainingError, match=r"drawings:\d: txt is missing; give it \(packed\.bad_rows = stop\)"):
        drawn(lanes, 4)


def test_a_row_that_no_pack_can_take_beside_the_mandatory_ones_is_named() -> None:
    long = ListedPlans("long", [SequencePlan("long:1", (TextItem("a" * 69, learnt=True),))])
    config = packed([{"name": "long"}, {"name": "thoughts", "mandatory": True}], max_tokens=80)
    lanes = lanes_of(config, {"long": long, "thoughts": plans("thoughts", 5)})
    left_out = [pack.left_out for _ in range(3) for pack in lanes.packs()]
    assert "long:1 has 70 tokens, which do not fit into packed.max_tokens beside a row of every mandatory group" in str(
        left_out
    )


def test_fewer_rows_than_lanes_and_threads_end_no_run_and_hang_none() -> None:
    lanes = lanes_of(packed([{"name": "drawings"}], packs=8, workers=4), {"drawings": plans("drawings", 2)})
    packs = [pack for step in drawn(lanes, 3) for pack in step]
    lanes.close()
    assert len(packs) == 24 and {row.id for pack in packs for row in pack.rows} == {"drawings:1", "drawings:2"}


class TestRowsThatTakePart:
    """share, max_rows and hold_out."""

    def test_a_share_is_drawn_and_the_same_every_time(self) -> None:
        config = packed(
            [{"name": "drawings", "sets": [{"name": "drawings", "path": "a", "format": "t2i", "share": 0.29}]}]
        )
        found = [self._rows(config) for _ in range(2)]
        assert found[0] == found[1] and len(set(found[0])) == 29 and found[0] != sorted(range(29))

    def test_a_share_of_a_set_does_not_depend_on_the_sets_beside_it(self) -> None:
        """As NEO's `%50` is drawn for each data set by itself; two of equal length have shares of their own."""
        half = [{"name": f"drawings_{n}", "path": "a", "format": "t2i", "share": 0.5} for n in (1, 2)]
        files = {f"drawings_{n}": plans(f"drawings_{n}", 40) for n in (1, 2)}
        taken = []
        for sets in (half[:1], half, half[::-1]):
            [group] = groups_of(packed([{"name": "all", "sets": sets}]), files)
            taken.append({each.plans.name: [each.row(place) for place in range(len(each))] for each in group.sets})
        assert len(taken[0]["drawings_1"]) == 20
        assert taken[0]["drawings_1"] == taken[1]["drawings_1"] == taken[2]["drawings_1"] != taken[1]["drawings_2"]

    def test_so_many_rows_are_drawn_and_of_these_some_held_out(self) -> None:
        config = packed(
            [{"name": "drawings", "sets": [{"name": "drawings", "path": "a", "format": "t2i", "max_rows": 20}]}],
            hold_out=6,
        )
        [group] = groups_of(config, {"drawings": plans("drawings", 100)})
        held_out = [number for _, number in group.held_out()]
        rows = [group.row(position, 1)[1] for position in range(len(group))]
        taken = set(rows + held_out)
        assert len(held_out) == 6 and len(taken) == len(rows + held_out) == 20 and taken != set(range(20))

    def test_a_set_can_be_held_out_as_a_whole_beside_one_that_is_trained_on(self) -> None:
        sets = [{"name": name, "path": "a", "format": "t2i"} for name in ("drawings_1", "drawings_2")]
        config = packed([{"name": "all", "sets": [sets[0], {**sets[1], "held_out": True}]}], hold_out=2)
        [group] = groups_of(config, {"drawings_1": plans("drawings_1", 6), "drawings_2": plans("drawings_2", 3)})
        held_out = [each.name for each, _ in group.held_out()]
        assert held_out == ["drawings_1"] * 2 + ["drawings_2"] * 3
        assert [group.row(position, 1)[0].name for position in range(len(group))] == ["drawings_1"] * 4

    def test_a_hold_out_that_leaves_nothing_is_refused(self) -> None:
        config = packed([{"name": "drawings"}], hold_out=5)
        with pytest.raises(
            DataError, match=r"packed\.hold_out = 5 rows of each set leave none of the 5 rows of drawings"
        ):
            groups_of(config, {"drawings": plans("drawings", 5)})

    def test_a_group_without_rows_is_refused(self) -> None:
        config = packed(
            [{"name": "drawings", "sets": [{"name": "drawings", "path": "a", "format": "t2i", "share": 0}]}]
        )
        with pytest.raises(DataError, match="drawings: share = 0 of 5 rows is no row; raise it, or leave the set out"):
            groups_of(config, {"drawings": plans("drawings", 5)})

    def test_two_sets_of_one_name_are_refused(self) -> None:
        twice = [{"name": "drawings", "path": "a", "format": "t2i"}] * 2
        with pytest.raises(DataError, match="drawings has two sets of one name"):
            groups_of(packed([{"name": "drawings", "sets": twice}]), {"drawings": plans("drawings", 5)})

    def test_the_sets_of_a_group_are_dealt_as_one(self) -> None:
        named = [{"name": name, "path": "a", "format": "t2i"} for name in ("drawings_1", "drawings_2")]
        config = packed([{"name": "all", "sets": named}])
        [group] = groups_of(config, {"drawings_1": plans("drawings_1", 3), "drawings_2": plans("drawings_2", 9)})
        ids = [each.plan(number).id for each, number in (group.row(p, 1) for p in range(12))]
        assert (
            Counter(each.partition(":")[0] for each in ids) == {"drawings_1": 3, "drawings_2": 9}
            and len(set(ids)) == 12
        )

    def _rows(self, config: Any) -> list[int]:
        [group] = groups_of(config, {"drawings": plans("drawings", 100)})
        return [group.row(position, 1)[1] for position in range(len(group))]


def test_a_drawing_is_what_the_tests_take_it_for() -> None:
    assert PackReader().lay(drawing("a", 0), _no_chance()).length == 9


def _no_chance() -> Any:
    from trainer.policies.base import Laying

    return Laying(1)
