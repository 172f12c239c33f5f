"""Supervised and preference losses on given texts, on the bigram double: unequal lengths, and NaN behind every end."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.support.bigram import Bigram
from tests.support.bigram_ranks import gradient, weights
from tests.support.given_texts import answer_pairs, conversations, preference, supervised, updater_of
from tests.support.tiny_updates import WORLD
from trainer.config import ConfigError
from trainer.config.preference_objective import DpoConfig
from trainer.data.dealt import Dealt
from trainer.losses import OF_STEP, PreferenceKind, preference_loss
from trainer.programs.given_texts import held_out_metrics
from trainer.types import AnswerPair, Conversation, Prompt, StopTrainingError, Turn

REDUCTIONS = ("token", "sample", "root")
KINDS = get_args(PreferenceKind)
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")


def dpo_of(kind: str) -> dict[str, Any]:
    return {"kind": kind, "smoothing": 0.1 if kind == "exo_pair" else 0.0}


def learnt_logp(policy: Bigram, row: Conversation) -> Tensor:
    """Of the assistant's tokens of one conversation, computed alone."""
    text = policy.read_conversation(row)
    return policy.logp([text.reading], [text.tokens])[0][torch.tensor(text.learnt)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_supervised_loss_is_the_weighted_mean_over_what_the_assistant_says(reduction: str) -> None:
    policy, rows = Bigram(), conversations()
    with torch.no_grad():
        logps = [learnt_logp(policy, row) for row in rows]
    weigh = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "root": lambda n: n**-0.5}[reduction]
    count = {"token": sum(map(len, logps)), "sample": len(rows), "root": sum(len(logp) ** 0.5 for logp in logps)}
    expected = -sum(weigh(len(logp)) * logp.sum().item() for logp in logps) / count[reduction]
    row = updater_of(policy, supervised(policy, rows, reduction=reduction)).step(None, 0)
    assert row["loss/sft"] == pytest.approx(expected, rel=1e-6)
    assert row["sft/tokens"] == sum(map(len, logps)) and row["sft/skipped"] == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_the_cut_into_micro_batches_changes_no_supervised_step(reduction: str, micro: int) -> None:
    steps = []
    for size in (None, micro):
        policy = Bigram()
        row = updater_of(policy, supervised(policy, conversations(), reduction=reduction, micro_batch_size=size)).step(
            None, 0
        )
        steps.append((gradient(policy), row))
    assert steps[0][1]["grad_norm"] > 1e-3
    torch.testing.assert_close(steps[1][0], steps[0][0], rtol=1e-4, atol=1e-7)
    assert steps[1][1] == pytest.approx(steps[0][1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro", [1, 3])
def test_the_cut_into_micro_batches_changes_no_preference_step(kind: str, micro: int) -> None:
    steps = []
    for size in (None, micro):
        policy = Bigram()
        with torch.no_grad():
            policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
        row = updater_of(policy, preference(policy, answer_pairs(), dpo=dpo_of(kind), micro_batch_size=size)).step(
            None, 0
        )
        steps.append((gradient(policy), row))
    assert steps[0][1]["grad_norm"] > 1e-3
    size = steps[0][0].abs().max().item()
    torch.testing.assert_close(steps[1][0], steps[0][0], rtol=1e-4, atol=max(1e-7, 1e-6 * size))
    assert steps[1][1] == pytest.approx(steps[0][1], rel=1e-4, abs=1e-7)


def test_micro_batches_are_of_like_length_and_padded_to_their_own_longest() -> None:
    policy = Bigram()
    rows = [Conversation(str(n), (Turn("user", "q"), Turn("assistant", "x" * n))) for n in (9, 1, 8, 2)]
    batches = supervised(policy, rows, micro_batch_size=2).batches(None, 0)
    assert [[len(text.tokens) for text in batch.texts] for batch in batches] == [[2, 3], [9, 10]]


@pytest.mark.parametrize(
    ("kind", "first"),
    [("sigmoid", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo", 25.0), ("ipo_sum", 25.0)],
)
def test_the_first_preference_loss_is_that_of_no_difference(kind: str, first: float) -> None:
    """Published first values: ln 2, 1, and 1 / (4 beta²) at beta .1; of four pairs they are exact in float32."""
    policy = Bigram()
    row = updater_of(policy, preference(policy, answer_pairs(4), dpo={"kind": kind})).step(None, 0)
    assert row["loss/policy"] == torch.tensor(first, dtype=torch.float32).item()
    assert row["dpo/margin"] == row["dpo/kl"] == row["dpo/chosen"] == row["dpo/rejected"] == row["dpo/accuracy"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_preference_loss_is_that_of_the_loss_function(kind: str, smoothing: float) -> None:
    """Its values are those of the golden file (tests/trainer/losses); here: the right rows, masks and halves reach it."""
    if smoothing and kind not in SMOOTHED:
        with pytest.raises(ValueError, match=f"acts in kind = {', '.join(SMOOTHED)} alone, not in {kind}"):
            preference(Bigram(), answer_pairs(), dpo={"kind": kind, "smoothing": smoothing})
        return
    smoothing = smoothing or dpo_of(kind)["smoothing"]
    policy, pairs = Bigram(), answer_pairs(5)
    with torch.no_grad():
        policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
    objective = preference(policy, pairs, dpo={"kind": kind, "smoothing": smoothing, "beta": 0.3})
    rows = [objective.read(pair) for pair in pairs]
    texts = [row.chosen for row in rows] + [row.rejected for row in rows]
    width = max(len(text.tokens) for text in texts)
    logp_BS, ref_BS, mask_BS = torch.zeros(10, width), torch.zeros(10, width), torch.zeros(10, width)
    with torch.no_grad():
        for at, text in enumerate(texts):
            mask_BS[at, : len(text.tokens)] = torch.tensor(text.learnt)
            for out, reference in ((logp_BS, False), (ref_BS, True)):
                out[at, : len(text.tokens)] = policy.logp([text.reading], [text.tokens], reference=reference)[0]
    expected = preference_loss(logp_BS, ref_BS, mask_BS, kind=kind, beta=0.3, smoothing=smoothing)
    row = updater_of(policy, objective).step(None, 0)
    assert row["loss/policy"] == pytest.approx(expected.item(), rel=1e-5)
    assert (
        objective.config.kind not in OF_STEP or policy.forwards == 2 * 10 + 4
    )  # a look: policy and reference once more
    assert row["dpo/margin"] != 0 and row["dpo/reward_margin"] == pytest.approx(0.3 * row["dpo/margin"], rel=1e-5)
    assert row["dpo/margin"] == pytest.approx(row["dpo/chosen"] - row["dpo/rejected"], rel=1e-4) and row["dpo/kl"] > 0


def test_options_that_would_not_act_are_refused() -> None:
    for dpo, problem in (
        ({"kind": "exo_pair"}, "takes the logarithm of smoothing, which is 0"),
        (
            {"kind": "hinge", "divergence": "forward_kl"},
            "divergence = forward_kl acts in kind = sigmoid alone, not in hinge",
        ),
        (
            {"kind": "ipo", "ld_alpha": 0.5},
            "ld_alpha = 0.5 weighs tokens of sums, but kind = ipo takes means over tokens",
        ),
    ):
        with pytest.raises(ValueError, match=problem):
            DpoConfig.model_validate({"type": "dpo", **dpo})


@pytest.mark.parametrize("dpo", [{"divergence": "js_divergence"}, {"ld_alpha": 0.25}, {"kind": "aot", "ld_alpha": 0.5}])
def test_divergence_and_length_share_reach_the_loss(dpo: dict[str, Any]) -> None:
    """The first step's loss is that of no difference with any of them; the second is another one."""
    found = []
    for options in ({"kind": dpo.get("kind", "sigmoid")}, dpo):
        policy = Bigram()
        updater = updater_of(policy, preference(policy, answer_pairs(4), dpo=options), lr=0.05)
        found.append([updater.step(None, number)["loss/policy"] for number in range(3)])
    assert found[0][0] == found[1][0] == pytest.approx(math.log(2))
    assert abs(found[0][2] - found[1][2]) > 1e-5


@pytest.mark.parametrize("kind", ["aot", "bco_pair"])
def test_the_loss_of_held_out_pairs_compares_them_with_each_other(kind: str) -> None:
    """As if they were one step; micro-batches of two change nothing."""
    found = []
    for micro in (None, 2):
        policy, pairs = Bigram(), answer_pairs(5)
        with torch.no_grad():
            policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
        objective = preference(policy, pairs, dpo={"kind": kind}, micro_batch_size=micro)
        held_out = held_out_metrics(objective, pairs, WORLD)
        assert held_out["heldout/loss"] == pytest.approx(
            updater_of(policy, objective).step(None, 0)["loss/policy"], rel=1e-5
        )
        found.append(held_out)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_preference_and_a_conversation_are_learnt() -> None:
    policy = Bigram()
    updater = updater_of(policy, preference(policy, answer_pairs()), lr=0.05)
    rows = [updater.step(None, number) for number in range(30)]
    assert rows[0]["dpo/accuracy"] == 0 and rows[-1]["dpo/accuracy"] == 1
    assert rows[-1]["loss/policy"] < 0.6 < rows[0]["loss/policy"]
    policy = Bigram()
    updater = updater_of(policy, supervised(policy, conversations()), lr=0.05)
    losses = [updater.step(None, number)["loss/sft"] for number in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_row_is_met_once_an_epoch_whatever_shares_them() -> None:
    """Twelve steps of four are six epochs of eight rows; three ranks meet what one meets."""
    met = []
    for ranks in (1, 3):
        policies = [Bigram() for _ in range(ranks)]
        objectives = [
            supervised(policy, conversations(), (rank, ranks), batch_size=4) for rank, policy in enumerate(policies)
        ]
        sizes = [len(objective.given.places) for objective in objectives]
        assert sum(sizes) == 4 and max(sizes) - min(sizes) <= 1
        epochs = []
        for epoch in range(6):
            steps = range(2 * epoch, 2 * epoch + 2)
            texts = [
                t.tokens for step in steps for o in objectives for batch in o.batches(None, step) for t in batch.texts
            ]
            epochs.append(texts)
            assert len(texts) == 8 and max(Counter(texts).values()) == 1
        met.append([sorted(texts) for texts in epochs])
        assert len({tuple(texts) for texts in epochs}) > 1, "each epoch has an order of its own"
    assert met[0] == met[1]


def test_the_order_needs_no_state() -> None:
    rows = list(range(10))
    whole = [Dealt(rows, 3, "x").row(number) for number in range(40)]
    dealt = Dealt(rows, 3, "x")
    assert [dealt.row(number) for number in reversed(range(40))] == whole[::-1]
    assert [Dealt(rows, 4, "x").row(number) for number in range(40)] != whole


def test_a_row_that_cannot_be_read_is_passed_over_and_named() -> None:
    rows = conversations(6)
    rows[2] = Conversation("row 2", (Turn("user", "unreadable"), Turn("assistant", "x")))
    rows[4] = Conversation("row 4", (Turn("user", "q"), Turn("user", "r")))
    policy = Bigram()
    objective = supervised(policy, [rows[0], *rows[1:]], batch_size=6)
    row = updater_of(policy, objective).step(None, 0)
    assert row["sft/skipped"] >= 2 and row["loss/sft"] > 0
    assert sorted(objective.given.refused)[:2] == [
        "row 2 cannot be read",
        "row 4 has no token of an assistant to learn",
    ]


def test_rows_that_are_all_unreadable_stop_the_run_and_a_first_one_the_start() -> None:
    bad = Conversation("row 0", (Turn("user", "unreadable"), Turn("assistant", "x")))
    with pytest.raises(
        ConfigError, match="conversations: 10 rows in a row cannot be read, the last: row 0 cannot be read"
    ):
        supervised(Bigram(), [bad])
    policy, rows = Bigram(), conversations(2)
    objective = supervised(policy, rows, batch_size=2)
    objective.given.rows.rows[:] = [bad, bad]
    with pytest.raises(StopTrainingError, match="conversations: 10 rows in a row cannot be read, the last: row 0"):
        updater_of(policy, objective).step(None, 0)


def test_a_long_text_is_cut_at_its_end_and_never_through_its_images_or_to_nothing() -> None:
    policy = Bigram()
    row = Conversation(
        "row", (Turn("user", "qq"), Turn("assistant", "abcdef"), Turn("user", "r"), Turn("assistant", "gh"))
    )
    objective = supervised(policy, [row], max_tokens=8)
    text = objective.read(row)
    assert text.length == 8 and len(text.tokens) == 5 == len(text.learnt)
    assert text.tokens == policy.read_conversation(row).tokens[:5]
    with pytest.raises(
        ConfigError,
        match=r"the last: row has 15 tokens, and to cut it to max_tokens = 3 would cut through its question",
    ):
        supervised(policy, [row], max_tokens=3)
    late = Conversation("late", (Turn("user", "q"), Turn("user", "longer"), Turn("assistant", "a")))
    with pytest.raises(ConfigError, match="late has no token of an assistant to learn within max_tokens = 4"):
        supervised(Bigram(), [late], max_tokens=4)


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"preferences\.batch_size = 2 rows leave one of 3 ranks without any"):
        preference(Bigram(), answer_pairs(2), (0, 3))


def test_a_prompt_of_a_pair_is_not_trained_on() -> None:
    policy = Bigram()
    pair = AnswerPair(Prompt("p", "what"), "ab", "c")
    read = preference(policy, [pair]).read(pair)
    assert all(read.chosen.learnt) and len(read.chosen.tokens) == 3 and len(read.rejected.tokens) == 2


def test_a_resumed_run_is_the_same_to_the_last_bit() -> None:
    for make in (supervised, preference):
        found = []
        for is_cut in (False, True):
            rows: Any = conversations() if make is supervised else answer_pairs()
            policy = Bigram()
            updater = updater_of(policy, make(policy, rows, batch_size=3, micro_batch_size=2))
            for number in range(4):
                if is_cut and number == 2:
                    saved = {name: updater.engine.read(name) for name in updater.engine.names}
                    policy = Bigram()
                    updater = updater_of(policy, make(policy, rows, batch_size=3, micro_batch_size=2))
                    for name, tensors in saved.items():
                        updater.engine.write(name, tensors)
                row = updater.step(None, number)
            found.append((weights(policy), row))
        assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
