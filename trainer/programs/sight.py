"""A run of a policy that reads images proves on its first batch that it sees them (`trainer.policies.tokens.sight`), and one that
draws by tokens that it draws by its prompts (`trainer.policies.unified.sight`), before step 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from trainer.config import Config, ConfigError, TokenSamplingConfig
from trainer.data.sampler import PromptSampler
from trainer.objectives.tokens.preference import PairBatch
from trainer.objectives.tokens.supervised import TextBatch
from trainer.policies.base import Policy
from trainer.policies.registry import entry_of
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.generate import GenerateDrawer
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.sight import Case, Sight, look
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.policies.unified.sight import look_at_drawings
from trainer.processes.distributed import World
from trainer.programs.session import Session
from trainer.records.recorder import write_atomic
from trainer.seeds import sample_seed
from trainer.types import Prompt, Rollout

FILE = "sight.json"  # in the run folder
SHOWN_ROWS = 4
_LONGEST = 32  # tokens of an answer that is drawn for it


def is_asked_for(config: Config, policy: Policy) -> bool:
    """Whether the recipe wants it, of a policy that it can be shown of."""
    return texts_of(policy) is not None and getattr(config.policy, "check_sight", False)


def texts_of(policy: Any) -> TokenPolicy | None:
    """What writes of a policy: the policy itself, or its half for texts; None where it writes none."""
    found = policy if isinstance(policy, TokenPolicy) else getattr(policy, "texts", None)
    return found if isinstance(found, TokenPolicy) else None


def prove_on_prompts(session: Session, sampler: PromptSampler, needs: Any) -> None:
    """Draw answers and images to prompts of the first step and look; the sampler stays where it is. Raises ConfigError: a check
    failed."""
    config, policy = session.config, session.policy
    if session.step or not is_asked_for(config, policy):
        return
    position = sampler.state_dict()
    prompts = sampler.draw()
    sampler.load_state_dict(position)
    _tell(session, look_by_task(config, policy, prompts, needs, _common(session.world, len(prompts))))


def look_by_task(config: Config, policy: Policy, prompts: Sequence[Prompt], needs: Any, rows: int) -> list[Sight]:
    """What is found of every task that is trained, by the plan of its rollouts: whether images move the answers, and prompts the
    images; that no row depends on its neighbours; and that what is drawn is what is trained on.

    Args:
        prompts: of a step, or pairs; of each task the first `rows` are looked at, of questions first those with images.
    """
    found = []
    for task in config.tasks:
        plan = entry_of(config.policy).family.training_plan(config, 0, needs, task.name)
        sides = [prompt.side(task.name) for prompt in prompts]
        if isinstance(plan, TokenPlan):
            texts = texts_of(policy)
            assert texts is not None, "only a policy that writes has such a plan"
            with_images = sorted(sides, key=lambda prompt: not prompt.source_images)
            found += look(texts, *drawn_cases(config, texts, with_images[:rows], plan))
        else:
            assert isinstance(policy, UnifiedPolicy) and isinstance(plan, ImagePlan)
            seeds = [sample_seed(config.seed, "sight", number) for number in range(rows)]
            plan = replace(plan, micro_batch_size=rows)
            found += look_at_drawings(policy, list(policy.sample(sides[:rows], 1, seeds, plan)))
    return found


def prove_on_texts(session: Session, batches: Sequence[Any]) -> None:
    """Look at given texts of the first step, micro-batches of texts or of pairs. Raises ConfigError: a check failed."""
    policy = session.policy
    if session.step or not is_asked_for(session.config, policy):
        return
    texts, found = texts_of(policy), given_cases(batches)
    assert texts is not None, "it is asked for"
    _tell(session, look(texts, found[: _common(session.world, len(found))]))


def drawn_cases(
    config: Config, policy: TokenPolicy, prompts: Sequence[Prompt], plan: TokenPlan
) -> tuple[list[Case], list[Rollout]]:
    """An answer to each prompt, and what a replay needs of them where this process draws."""
    seeds = [sample_seed(config.seed, "sight", number) for number in range(len(prompts))]
    plan = replace(plan, micro_batch_size=len(prompts), max_new_tokens=min(plan.max_new_tokens, _LONGEST))
    engine = (
        getattr(config.sampling, "engine", "local") if isinstance(config.sampling, TokenSamplingConfig) else "local"
    )
    if engine != "local":  # its servers have no weights yet; what they draw is compared in every step
        readings = [policy.model.read(prompt) for prompt in prompts]
        answers = GenerateDrawer(policy.model).draw(readings, 1, seeds, plan)
        drawn = zip(prompts, readings, answers, strict=True)
        return [Case(p.id, reading, tuple(answer.tokens_S.tolist())) for p, reading, answer in drawn], []
    rollouts = list(policy.sample(prompts, 1, seeds, plan))
    cases = []
    for rollout in rollouts:
        assert isinstance(rollout.trace, AnswerTrace)
        for sample, reading in zip(rollout.samples, rollout.trace.readings_B, strict=True):
            cases.append(Case(sample.prompt.id, reading, sample.tokens))
    return cases, rollouts


def given_cases(batches: Sequence[TextBatch | PairBatch]) -> list[Case]:
    """Given texts, those with images first; of a pair the chosen answer."""
    texts = [
        text
        for batch in batches
        for text in (batch.texts if isinstance(batch, TextBatch) else batch.texts_B[: len(batch.pairs)])
    ]
    cases = [Case(f"text {n} of the first step", text.reading, text.tokens) for n, text in enumerate(texts, 1)]
    return sorted(cases, key=lambda case: not case.reading.images)


def _common(world: World, count: int) -> int:
    """As many rows as every rank has, few."""
    return min([SHOWN_ROWS, *map(int, world.gather(count))])


def _tell(session: Session, found: Sequence[Sight]) -> None:
    """Note what was found and keep it in the run folder. Raises ConfigError on all ranks where a check failed on any."""
    world, recorder = session.world, session.recorder
    if world.is_main:
        for each in found:
            recorder.note(f"sight: {each.status} {each.check}: {each.sentence}")
        write_atomic(recorder.run_dir / FILE, json.dumps([asdict(each) for each in found], indent=1) + "\n")
    failed = [f"{each.sentence}; {each.remedy}" for each in found if each.status == "FAIL"]
    for sentences in world.gather(failed):
        if sentences:
            raise ConfigError(f"stopped before step 1: {sentences[0]}")
