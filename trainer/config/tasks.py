"""What a policy that both reads and draws is trained on in one run: a section for each task, told apart by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.advantage import AdvantageConfig
from trainer.config.base import Name, Positive, Section, Share
from trainer.config.drawing import FlowDrawing
from trainer.config.objective import (
    AwmConfig,
    DiffusionDpoConfig,
    DiffusionNftConfig,
    FlowGrpoConfig,
    GrpoGuardConfig,
    ObjectiveConfig,
)

TaskName = Literal["understand", "generate"]
_LENGTHS = {
    "understand": "sampling.tasks.understand.max_new_tokens",
    "generate": "sampling.tasks.generate.think.max_new_tokens",
}


def length_field(task: str) -> str:
    """The field that says after how many tokens a text is cut off: an answer, or with `generate` the plan before an image. An empty
    name is a policy that has one kind of sample."""
    return _LENGTHS.get(task, "sampling.max_new_tokens")


class TaskSection(Section):
    """What both tasks have."""

    default_types: ClassVar[Mapping[str, str]] = {"advantage": "gdpo"}

    group_size: int = Field(8, ge=2, description="K: how many rollouts of this task are drawn for each pair.")
    micro_batch_size: int = Field(
        64, ge=1, description="How many samples are drawn together: a multiple or a divisor of group_size."
    )
    temperature: Positive = Field(
        1.0, le=10, description="Logits are divided by this; log-probabilities are of that distribution."
    )
    rewards: dict[Name, float] = Field(
        min_length=1, description="Reward name to weight; samples of this task are scored by these and no others."
    )
    advantage: AdvantageConfig | None = Field(
        None, description="How scores of this task become advantages; null is the run's own `advantage`."
    )
    loss_weight: Positive = Field(1.0, description="Weight of this task's loss beside the other's.")

    @model_validator(mode="before")
    @classmethod
    def _sections_have_types(cls, raw: Any) -> Any:
        return cls.with_types(raw)

    @model_validator(mode="after")
    def _rewards_act(self) -> TaskSection:
        if not any(self.rewards.values()):
            raise ValueError("rewards needs at least one reward with a weight other than 0")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> TaskSection:
        big, small = max(self.micro_batch_size, self.group_size), min(self.micro_batch_size, self.group_size)
        if big % small:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} and group_size = {self.group_size} do not fit: one must be "
                f"a multiple of the other; try micro_batch_size = {self.group_size}"
            )
        return self


class UnderstandConfig(TaskSection):
    """Questions about images, answered in text."""

    max_new_tokens: int = Field(256, ge=1, le=65536, description="An answer is cut off after so many tokens.")
    top_p: Share = Field(
        1.0, gt=0, description="Only the likeliest tokens that together have this share can be drawn; 1 is all."
    )
    top_k: int = Field(0, ge=0, description="Only so many likeliest tokens can be drawn; 0 is all.")
    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="Token ids that end an answer beside the model's own."
    )


class ThinkConfig(Section):
    """A plan in text before each image. One reward is for both; their tokens are trained together."""

    instruction: str | None = Field(
        None,
        min_length=1,
        description="Text behind the prompt that asks for a plan; null where the model plans by itself.",
    )
    max_new_tokens: int = Field(64, ge=1, le=65536, description="A plan is cut off after so many tokens.")
    temperature: Positive = Field(
        1.0, le=10, description="Of the plan's tokens. In an evaluation a plan has the temperature of its image."
    )
    top_p: Share = Field(1.0, gt=0, description="As of answers, for the plan's tokens.")
    top_k: int = Field(0, ge=0, description="As of answers, for the plan's tokens.")
    plan_weight: float = Field(1.0, ge=0, description="What advantages are multiplied by at the tokens of the plan.")
    image_weight: float = Field(1.0, ge=0, description="What advantages are multiplied by at the tokens of the image.")

    @model_validator(mode="after")
    def _something_trains(self) -> ThinkConfig:
        if not self.plan_weight and not self.image_weight:
            raise ValueError("plan_weight and image_weight are both 0, which trains nothing; raise one of them")
        return self


class FlowTaskConfig(FlowDrawing):
    """Images denoised by a policy that also writes, and the loss on them."""

    default_types: ClassVar[Mapping[str, str]] = {"objective": "flow_grpo"}

    objective: Annotated[
        FlowGrpoConfig | GrpoGuardConfig | DiffusionNftConfig | AwmConfig | DiffusionDpoConfig,
        Field(discriminator="type"),
    ] = Field(
        default_factory=FlowGrpoConfig,
        description="The loss on images; `objective` of the recipe is that on the tokens of answers.",
    )

    @model_validator(mode="before")
    @classmethod
    def _sections_have_types(cls, raw: Any) -> Any:
        return cls.with_types(raw)


class GenerateConfig(TaskSection):
    """Images drawn from prompts, token by token, or denoised."""

    guidance_scale: float = Field(
        5.0, ge=1, description="w of classifier-free guidance, u + w (c - u); 1 is none and costs half."
    )
    score: Literal["guided", "conditional"] = Field(
        "guided",
        description="Whose log-probabilities are trained on: those of the guided distribution that was drawn from, or of its "
        "conditional branch alone, as T2I-R1 and ULM-R1 do, which is biased.",
    )
    think: ThinkConfig | None = Field(
        None, description="Write a plan in text first, and draw after it; true takes all defaults, null draws at once."
    )
    flow: FlowTaskConfig | None = Field(
        None,
        description="How a policy that denoises draws, in place of temperature, guidance_scale, score and think, which are of tokens.",
    )

    @field_validator("think", mode="before")
    @classmethod
    def _think_by_default(cls, given: Any) -> Any:
        if isinstance(given, bool):
            return {} if given else None
        return given

    @model_validator(mode="after")
    def _one_way_to_draw(self) -> GenerateConfig:
        for name in ("temperature", "guidance_scale", "score", "think") if self.flow is not None else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} = {value} is of images drawn by tokens, and flow says that they are denoised; leave it out"
                )
        return self


class TasksConfig(Section):
    """The tasks of a run; one may be left out."""

    understand: UnderstandConfig | None = Field(None, description="Answer questions about images; null is not trained.")
    generate: GenerateConfig | None = Field(None, description="Draw images; null is not trained.")

    @model_validator(mode="after")
    def _one_at_least(self) -> TasksConfig:
        if self.understand is None and self.generate is None:
            raise ValueError("tasks names none; give understand, generate, or both")
        return self

    def given(self) -> dict[TaskName, UnderstandConfig | GenerateConfig]:
        """The tasks that are trained, in the order in which they are drawn."""
        found: dict[TaskName, UnderstandConfig | GenerateConfig] = {}
        if self.understand is not None:
            found["understand"] = self.understand
        if self.generate is not None:
            found["generate"] = self.generate
        return found


class TaskSamplingConfig(Section):
    """How a unified policy draws: each task in groups of its own (Pair-GRPO, PairUni)."""

    max_resamples: ClassVar[int] = 0

    type: Literal["tasks"] = Field(
        description="Which family of policies samples; tasks writes answers and draws images."
    )
    prompts_per_step: int = Field(8, ge=1, description="P: how many distinct pairs a step has, over all ranks.")
    pipeline: Literal["on_policy", "one_step_off"] = Field(
        "on_policy",
        description="one_step_off: the next step is sampled while this step's rewards are computed, one update behind.",
    )
    pair_weight: Literal["sqrt", "linear", "none"] = Field(
        "sqrt",
        description="What advantages of a pair of similarity s are multiplied by: its root, s itself, or nothing. Aligned pairs "
        "have s = 1.",
    )
    similarity_threshold: Share = Field(
        0.0, description="Pairs of a smaller similarity are left out, counted and said."
    )
    old_logp: Literal["replay", "sampled"] = Field(
        "replay",
        description="What first ratios are to: log-probabilities computed again as in training, so that they are exactly 1, or those "
        "of the drawing, which differ from them in bfloat16.",
    )
    tasks: TasksConfig = Field(description="What is trained: understand, generate, or both.")

    @property
    def samples_per_step(self) -> int:
        """Of all tasks and ranks."""
        return sum(self.prompts_per_step * each.group_size for each in self.tasks.given().values())

    @property
    def largest_micro_batch(self) -> int:
        """Samples of the largest forward pass."""
        return max(each.micro_batch_size for each in self.tasks.given().values())

    def weight_of(self, similarity: float) -> float:
        """w of a pair (PairUni section 3.3): 1 where it is aligned, whatever the rule."""
        weights = {"sqrt": math.sqrt(similarity), "linear": similarity, "none": 1.0}
        return weights[self.pair_weight]

    @model_validator(mode="after")
    def _micro_batches(self) -> TaskSamplingConfig:
        for name, each in self.tasks.given().items():
            total = self.prompts_per_step * each.group_size
            if total % each.micro_batch_size:
                raise ValueError(
                    f"prompts_per_step * tasks.{name}.group_size = {self.prompts_per_step} * {each.group_size} = {total} samples "
                    f"cannot be cut into micro-batches of tasks.{name}.micro_batch_size = {each.micro_batch_size}; try "
                    f"{each.group_size} or a divisor of {total}"
                )
        return self


@dataclass(frozen=True)
class Task:
    """One kind of sample that a step draws.

    Attributes:
        name: `understand` or `generate`; empty for a policy that has one kind alone.
        group_size, micro_batch_size: see the sections of `sampling`.
        advantage: how its scores become advantages.
        loss_weight: of its loss beside the other's.
        objective: its loss.
    """

    name: str
    group_size: int
    micro_batch_size: int
    advantage: AdvantageConfig
    loss_weight: float = 1.0
    objective: ObjectiveConfig = field(default_factory=FlowGrpoConfig)

    def key(self, metric: str) -> str:
        """The metric's name for this task alone."""
        return f"{self.name}/{metric}" if self.name else metric


def tasks_of(sampling: TaskSamplingConfig, advantage: AdvantageConfig, objective: ObjectiveConfig) -> tuple[Task, ...]:
    """The tasks of a run, with what they leave to the run itself."""
    return tuple(
        Task(
            name,
            each.group_size,
            each.micro_batch_size,
            each.advantage or advantage,
            each.loss_weight,
            each.flow.objective if isinstance(each, GenerateConfig) and each.flow is not None else objective,
        )
        for name, each in sampling.tasks.given().items()
    )


def check_drawer(sampling: TaskSamplingConfig, policy: str, *, denoises: bool) -> None:
    """Raises ValueError where images are to be drawn in another way than the policy's."""
    drawn = sampling.tasks.generate
    if drawn is not None and (drawn.flow is not None) != denoises:
        way, remedy = (
            ("denoises images", "add it, {} for its defaults")
            if denoises
            else ("draws images by tokens", "leave it out")
        )
        raise ValueError(f"policy.type = {policy} {way}, which sampling.tasks.generate.flow is about; {remedy}")
