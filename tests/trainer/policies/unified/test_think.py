"""A plan in text before an image: drawn, scored and weighed with it, and unknown to the unconditional branch.

Axes: B images, S tokens of a plan and an image, N tokens of an image.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from trainer.config import Config, ConfigError
from trainer.objectives.base import PlanNeeds, Scored
from trainer.objectives.tokens.policy import TokenLoss
from trainer.objectives.tokens.policy import TokenPolicy as TokenObjective
from trainer.policies.base import regroup
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.generate import GenerateDrawer
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.unified import branches
from trainer.policies.unified.draw import ImagePlan, Thinking
from trainer.policies.unified.images import ImagePolicy, Planner
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.plans import evaluation_plan, training_plan
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.policies.unified.trace import ImageTrace
from trainer.samplers.tokens import allowed_logits, log_probs
from trainer.types import Prompt, Rollout

GROUP = 4
PROMPTS = tuple(Prompt(f"p{n}", text, task="generate") for n, text in enumerate(["draw red disc", "draw a bar left"]))
SEEDS = list(range(3, 3 + GROUP * len(PROMPTS)))
WRITING = TokenPlan(micro_batch_size=64, max_new_tokens=7)
PLAN = ImagePlan(micro_batch_size=64, guidance_scale=2.0, think=Thinking(WRITING, "what is it ?"))


@pytest.fixture(scope="module")
def policy(janus: JanusModel) -> UnifiedPolicy:
    texts = TokenPolicy(janus, keep_reference=False)
    return UnifiedPolicy(texts, ImagePolicy(janus, Planner(texts, janus)), {})


@pytest.fixture(scope="module")
def writing(janus: JanusModel) -> TokenPlan:
    """Some plans end by themselves, others are cut off."""
    return replace(
        WRITING, stop_ids=tuple(janus.tokenizer.convert_tokens_to_ids(["red", "blue", "a", "7", "?", "left"]))
    )


@pytest.fixture(scope="module")
def plan(writing: TokenPlan) -> ImagePlan:
    return replace(PLAN, think=Thinking(writing, "what is it ?"))


@pytest.fixture(scope="module")
def rollout(policy: UnifiedPolicy, plan: ImagePlan) -> Rollout:
    (found,) = policy.sample(PROMPTS, GROUP, SEEDS, plan)
    return found


def configured(think: Any) -> Config:
    generate = {"guidance_scale": 2.0, "temperature": 0.7, "rewards": {"r": 1.0}, "think": think}
    return Config.model_validate(
        {
            "run_name": "think",
            "max_steps": 1,
            "policy": {"type": "janus", "pretrained": "somewhere"},
            "sampling": {"tasks": {"generate": generate}},
            "rewards": {"services": {"s": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"r": {"service": "s"}}},
            "data": {"train": [{"path": "train.jsonl"}]},
        }
    )


def test_plans_of_the_configuration() -> None:
    """In training a plan has a temperature of its own; in an evaluation it has that of its image, so 0 is greedy in both."""
    config = configured(
        {"instruction": "plan it", "max_new_tokens": 9, "temperature": 1.3, "top_k": 5, "plan_weight": 0.5}
    )
    found = training_plan(config, 0, PlanNeeds(), "generate")
    assert isinstance(found, ImagePlan) and found.temperature == 0.7
    assert found.think == Thinking(TokenPlan(64, 9, 1.3, 1.0, 5), "plan it", 0.5, 1.0)
    held_out = SimpleNamespace(task="generate", guidance_scale=3.0, temperature=0.0, num_inference_steps=0)
    asked = evaluation_plan(config, held_out)
    assert isinstance(asked, ImagePlan) and asked.think is not None
    assert (asked.temperature, asked.think.writing.temperature, asked.guidance_scale) == (0.0, 0.0, 3.0)


@pytest.mark.parametrize(("given", "thinks"), [(True, True), ({}, True), (False, False), (None, False)])
def test_think_is_switched_on_by_true(given: Any, thinks: bool) -> None:
    found = training_plan(configured(given), 0, PlanNeeds(), "generate")
    assert isinstance(found, ImagePlan) and (found.think is not None) == thinks


def test_weights_that_train_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="plan_weight and image_weight are both 0, which trains nothing"):
        configured({"plan_weight": 0, "image_weight": 0})


def trace_of(rollout: Rollout) -> ImageTrace:
    assert isinstance(rollout.trace, ImageTrace)
    return rollout.trace


def test_a_row_is_its_plan_and_then_its_image(policy: UnifiedPolicy, rollout: Rollout, janus: JanusModel) -> None:
    finished = [sample.finished for sample in rollout.samples]
    assert True in finished and False in finished, "both kinds of plan are there"
    assert rollout.mask_BS is not None
    for sample, mask_S in zip(rollout.samples, rollout.mask_BS, strict=True):
        count = len(sample.tokens) + janus.num_image_tokens
        assert mask_S.tolist() == [True] * count + [False] * (len(mask_S) - count)
        assert len(sample.images) == 1 and sample.text == janus.decode(torch.tensor(sample.tokens))


def test_the_image_follows_the_plan_and_the_tag(rollout: Rollout, janus: JanusModel) -> None:
    for sample, drawing in zip(rollout.samples, trace_of(rollout).drawings_B, strict=True):
        asked = janus.read_thinking(sample.prompt, "what is it ?").ids_T.tolist()
        written = list(sample.tokens[:-1] if sample.finished else sample.tokens)
        tag = janus.tokenizer.convert_tokens_to_ids("<begin_of_image>")
        assert drawing.cond_T.tolist() == [*asked, *written, tag]
        assert drawing.shared == len(asked)
        assert drawing.uncond_T.tolist() == [asked[0], *[janus.pad_id] * (len(asked) + len(written) - 1), tag]


def test_replay_is_what_was_drawn_by_both_ways(
    policy: UnifiedPolicy, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part,) = policy.parts(rollout)
    fast_BS = policy.replay(rollout, part).logp_BS
    assert rollout.mask_BS is not None
    torch.testing.assert_close(fast_BS.detach(), rollout.logp_BS, atol=3e-5, rtol=0)
    monkeypatch.setattr(branches, "supports", lambda network: "said by the test")
    torch.testing.assert_close(policy.replay(rollout, part).logp_BS, fast_BS, atol=3e-5, rtol=0)


def test_log_probabilities_by_hand(policy: UnifiedPolicy, rollout: Rollout, janus: JanusModel) -> None:
    """Of a plan by the head of texts, and of an image by guidance, each from a pass of its own over one row."""
    network = janus.network
    language = janus.language_model(network)
    for row, (sample, drawing) in enumerate(zip(rollout.samples, trace_of(rollout).drawings_B, strict=True)):
        tokens_N, count = trace_of(rollout).tokens_BN[row], len(sample.tokens)
        with torch.no_grad():
            asked = torch.tensor([*drawing.cond_T[: drawing.shared].tolist(), *sample.tokens])
            hidden = language(inputs_embeds=janus.embed_text(network, asked)[None], use_cache=False).last_hidden_state[
                0
            ]
            logits = allowed_logits(network.get_output_embeddings()(hidden), janus.banned_N)  # type: ignore[operator]
            of_plan = log_probs(logits[drawing.shared - 1 : -1], None).gather(1, torch.tensor(sample.tokens)[:, None])[
                :, 0
            ]
            both = []
            for ids in (drawing.cond_T, drawing.uncond_T):
                x = torch.cat([janus.embed_text(network, ids), janus.embed_image(network, tokens_N[:-1])])
                hidden = language(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, len(ids) - 1 :]
                both.append(janus.image_logits(network, hidden))
            guided = log_probs(both[1] + 2.0 * (both[0] - both[1]), None).gather(1, tokens_N[:, None])[:, 0]
        torch.testing.assert_close(rollout.logp_BS[row, :count], of_plan, atol=3e-5, rtol=0)
        torch.testing.assert_close(rollout.logp_BS[row, count : count + len(tokens_N)], guided, atol=3e-5, rtol=0)


def test_few_logits_of_plans_are_held_and_none_changes(
    policy: UnifiedPolicy, rollout: Rollout, plan: ImagePlan, janus: JanusModel
) -> None:
    cut = ImagePolicy(janus, policy.images.planner, most_logits=3 * janus.num_words)
    for found in (rollout, _top_k(policy, plan)):
        whole_BS = policy.images.logp(janus.network, trace_of(found))
        cut_BS = cut.logp(janus.network, trace_of(found))
        torch.testing.assert_close(cut_BS, whole_BS, atol=1e-5, rtol=0)
    head = next(each for name, each in policy.trainable.named_parameters() if name.endswith("lm_head.weight"))
    told, got = (torch.autograd.grad(each.sum(), head)[0] for each in (whole_BS, cut_BS))
    torch.testing.assert_close(got, told, atol=1e-4, rtol=1e-4)


def test_a_row_alone_is_what_it_is_among_others(policy: UnifiedPolicy, plan: ImagePlan, rollout: Rollout) -> None:
    alone = list(policy.sample(PROMPTS, GROUP, SEEDS, replace(plan, micro_batch_size=1)))
    assert [each.samples[0].tokens for each in alone] == [sample.tokens for sample in rollout.samples]
    assert torch.equal(torch.cat([trace_of(each).tokens_BN for each in alone]), trace_of(rollout).tokens_BN)
    (part,) = policy.parts(rollout)
    whole_BS = policy.replay(rollout, part).logp_BS
    for size in (3, 5):
        pieces, first = regroup(alone, size), 0
        for piece in pieces:
            (own,) = policy.parts(piece)
            logp_BS = policy.replay(piece, own).logp_BS
            expected_BS = whole_BS[first : first + len(piece), : logp_BS.shape[1]]
            torch.testing.assert_close(logp_BS, expected_BS, atol=3e-5, rtol=0)
            first += len(piece)


def test_plan_and_image_have_numbers_of_their_own(policy: UnifiedPolicy, plan: ImagePlan, rollout: Rollout) -> None:
    """A longer plan that ends where the shorter did leaves its tokens as they are; the image's numbers come behind all of them."""
    assert plan.think is not None
    longer = replace(plan, think=replace(plan.think, writing=replace(plan.think.writing, max_new_tokens=9)))
    (other,) = policy.sample(PROMPTS, GROUP, SEEDS, longer)
    ended = [row for row, sample in enumerate(rollout.samples) if sample.finished]
    assert all(other.samples[row].tokens == rollout.samples[row].tokens for row in ended)
    some, others = trace_of(rollout).tokens_BN[ended], trace_of(other).tokens_BN[ended]
    assert not torch.equal(some, others)


def test_plans_are_the_same_by_transformers_own_generate(
    policy: UnifiedPolicy, plan: ImagePlan, rollout: Rollout, monkeypatch: pytest.MonkeyPatch, janus: JanusModel
) -> None:
    """Janus overrides it, and then hears of nothing that is to be drawn; what cut weights are drawn by must not be that one."""
    monkeypatch.setattr(policy.texts, "_given_drawer", GenerateDrawer(janus))
    (slow,) = policy.sample(PROMPTS, GROUP, SEEDS, plan)
    assert [sample.tokens for sample in slow.samples] == [sample.tokens for sample in rollout.samples]
    torch.testing.assert_close(slow.logp_BS, rollout.logp_BS, atol=3e-5, rtol=0)


def test_an_instruction_is_no_part_of_a_prompts_length(janus: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are checked before the run, without it: none is refused for it in the middle of one."""
    prompt = PROMPTS[0]
    length = len(janus.read_drawing(prompt).cond_T)
    monkeypatch.setattr(janus, "config", janus.config.model_copy(update={"max_prompt_tokens": length}))
    assert len(janus.read_thinking(prompt, "what is it ?").ids_T) > length
    monkeypatch.setattr(janus, "config", janus.config.model_copy(update={"max_prompt_tokens": length - 1}))
    with pytest.raises(ConfigError, match=f"prompt 'p0' of data set 'default' has {length} tokens"):
        janus.read_thinking(prompt, "what is it ?")


def test_greedy_plans_and_images(policy: UnifiedPolicy, plan: ImagePlan) -> None:
    assert plan.think is not None
    greedy = replace(
        plan, temperature=0.0, think=replace(plan.think, writing=replace(plan.think.writing, temperature=0.0))
    )
    (rollout,) = policy.sample(PROMPTS, GROUP, SEEDS, greedy)
    for first in (0, GROUP):
        group = rollout.samples[first : first + GROUP]
        assert len({sample.tokens for sample in group}) == 1
        assert trace_of(rollout).tokens_BN[first : first + GROUP].unique(dim=0).shape[0] == 1


def test_top_k_of_a_plan_is_scored(policy: UnifiedPolicy, plan: ImagePlan) -> None:
    rollout = _top_k(policy, plan)
    (part,) = policy.parts(rollout)
    torch.testing.assert_close(policy.replay(rollout, part).logp_BS.detach(), rollout.logp_BS, atol=3e-5, rtol=0)


def _top_k(policy: UnifiedPolicy, plan: ImagePlan) -> Rollout:
    assert plan.think is not None
    narrow = replace(plan, think=replace(plan.think, writing=replace(plan.think.writing, top_k=3)))
    (rollout,) = policy.sample(PROMPTS, GROUP, SEEDS, narrow)
    return rollout


@pytest.mark.parametrize(("plan_weight", "image_weight"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_one_advantage_weighs_both_parts_by_themselves(
    policy: UnifiedPolicy, plan: ImagePlan, plan_weight: float, image_weight: float
) -> None:
    """At a ratio of 1 each token adds -weight * A, and its gradient is that times the gradient of its log-probability."""
    assert plan.think is not None
    weighted = replace(plan, think=replace(plan.think, plan_weight=plan_weight, image_weight=image_weight))
    (rollout,) = policy.sample(PROMPTS, GROUP, SEEDS, weighted)
    assert rollout.mask_BS is not None and rollout.scale_BS is not None
    adv_B = torch.linspace(-1, 1, len(rollout))
    objective = TokenObjective(policy, TokenLoss("dr_grpo", longest=1), micro_batch_size=3)
    loss = torch.zeros(())
    for batch in objective.batches(Scored([rollout], adv_B, torch.ones(len(rollout))), 0):
        terms, _ = objective.terms(batch, 0)
        loss = loss + sum(term.sum for term in terms if term.name == "loss/policy")
    counts = [len(sample.tokens) for sample in rollout.samples]
    num = trace_of(rollout).tokens_BN.shape[1]
    expected = -sum(
        a * (plan_weight * count + image_weight * num) for a, count in zip(adv_B.tolist(), counts, strict=True)
    )
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    (part,) = policy.parts(rollout)
    logp_BS = policy.replay(rollout, part).logp_BS
    by_hand = torch.zeros(())
    for row, count in enumerate(counts):
        by_hand = by_hand - adv_B[row] * plan_weight * logp_BS[row, :count].sum()
        by_hand = by_hand - adv_B[row] * image_weight * logp_BS[row, count : count + num].sum()
    named = dict(policy.trainable.named_parameters())
    head = next(each for name, each in named.items() if name.endswith("lm_head.weight"))
    codes = next(each for name, each in named.items() if name.endswith("vision_head.weight"))
    for got, told in zip(
        torch.autograd.grad(loss, [head, codes], retain_graph=True),
        torch.autograd.grad(by_hand, [head, codes]),
        strict=True,
    ):
        torch.testing.assert_close(got, told, atol=1e-4, rtol=1e-4)
    gradient = torch.autograd.grad(loss, head)[0]
    assert bool(gradient.abs().max() > 0) == bool(plan_weight), "the head of texts learns from plans alone"
