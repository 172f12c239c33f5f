"""How rollouts are made: one section per family of policies, told apart by `type`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section, Share
from trainer.config.data import DatasetConfig
from trainer.config.drawing import FlowDrawing
from trainer.config.network import PolicySection
from trainer.config.tasks import TaskSamplingConfig, check_drawer
from trainer.config.vllm import VllmConfig


class RolloutSection(Section):
    """What every family of policies has."""

    prompts_per_step: int = Field(8, ge=1, description="P: how many distinct prompts a step has, over all ranks.")
    group_size: int = Field(
        12, ge=2, description="G: how many rollouts are drawn for each prompt; they are compared with one another."
    )
    micro_batch_size: int = Field(
        24, ge=1, description="How many samples are drawn together: a multiple or a divisor of group_size."
    )
    pipeline: Literal["on_policy", "one_step_off"] = Field(
        "on_policy",
        description="one_step_off: the next step is sampled while this step's rewards are computed, one update behind.",
    )

    max_resamples: int = Field(
        0,
        ge=0,
        le=20,
        description="How often a step may sample other prompts in place of those whose rewards do not differ within their "
        "group, and teach nothing (DAPO's dynamic sampling); 0 is never.",
    )

    @property
    def samples_per_step(self) -> int:
        """Over all ranks."""
        return self.prompts_per_step * self.group_size

    @property
    def largest_micro_batch(self) -> int:
        """Samples of a forward pass."""
        return self.micro_batch_size

    @model_validator(mode="after")
    def _resamples_on_policy(self) -> RolloutSection:
        if self.max_resamples and self.pipeline != "on_policy":
            raise ValueError(
                f"max_resamples = {self.max_resamples} waits for the rewards before it samples again, but pipeline = "
                f"{self.pipeline} samples ahead of them; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches(self) -> RolloutSection:
        big, small = max(self.micro_batch_size, self.group_size), min(self.micro_batch_size, self.group_size)
        if big % small:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} and group_size = {self.group_size} do not fit: one must be "
                f"a multiple of the other; try micro_batch_size = {self.group_size}"
            )
        total = self.prompts_per_step * self.group_size
        if total % self.micro_batch_size:
            raise ValueError(
                f"prompts_per_step * group_size = {self.prompts_per_step} * {self.group_size} = {total} samples cannot be "
                f"cut into micro-batches of micro_batch_size = {self.micro_batch_size}; try {self.group_size} or a divisor "
                f"of {total}"
            )
        return self


class FlowSamplingConfig(FlowDrawing, RolloutSection):
    """How a flow model draws its rollouts."""

    type: Literal["flow"] = Field("flow", description="Which family of policies samples; flow denoises images.")


class TokenSamplingConfig(RolloutSection):
    """How a policy that writes draws its answers, token by token."""

    type: Literal["tokens"] = Field(description="Which family of policies samples; tokens writes texts.")
    max_new_tokens: int = Field(256, ge=1, le=65536, description="An answer is cut off after so many tokens.")
    temperature: Positive = Field(
        1.0, le=10, description="Logits are divided by this; log-probabilities are of that distribution."
    )
    top_p: Share = Field(
        1.0, gt=0, description="Only the likeliest tokens that together have this share can be drawn; 1 is all."
    )
    top_k: int = Field(0, ge=0, description="Only so many likeliest tokens can be drawn; 0 is all.")
    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="Token ids that end an answer beside the model's own."
    )
    engine: Literal["local", "vllm"] = Field(
        "local", description="Who writes: this process, or vLLM servers that get the weights after every update."
    )
    vllm: VllmConfig | None = Field(None, description="The servers of engine: vllm.")

    @model_validator(mode="after")
    def _engine_fits(self) -> TokenSamplingConfig:
        if (self.engine == "vllm") != (self.vllm is not None):
            remedy = "add it, with urls or launch" if self.vllm is None else "set engine: vllm, or leave vllm out"
            raise ValueError(
                f"engine = {self.engine} {'needs' if self.vllm is None else 'makes no use of'} vllm: {remedy}"
            )
        if self.engine == "vllm" and (self.top_p != 1 or self.top_k):
            raise ValueError(
                f"top_p = {self.top_p:g} and top_k = {self.top_k} draw from a part of the distribution, and servers do not say "
                "which part, so that nothing could be trained on their log-probabilities: leave both out, or set engine: local"
            )
        if self.engine == "vllm" and self.temperature > 2:
            raise ValueError(f"temperature = {self.temperature:g} is above 2, the most that vLLM takes; lower it")
        return self


SamplingConfig = Annotated[FlowSamplingConfig | TokenSamplingConfig | TaskSamplingConfig, Field(discriminator="type")]


def check_drawn(sampling: SamplingConfig, policy: PolicySection) -> None:
    """Whether the policy can draw so. Raises ValueError."""
    if sampling.type not in policy.draws_by:
        raise ValueError(
            f"policy.type = {policy.type} does not sample by sampling.type = {sampling.type}; leave sampling.type out"
        )
    where = "sampling"
    drawn: FlowDrawing | None = sampling if isinstance(sampling, FlowSamplingConfig) else None
    if isinstance(sampling, TaskSamplingConfig):
        check_drawer(sampling, policy.type, denoises="flow" in policy.draws_by)
        if sampling.tasks.generate is not None:
            where, drawn = "sampling.tasks.generate.flow", sampling.tasks.generate.flow
    if drawn is not None and drawn.guidance is not None and not policy.guided_by_images:
        raise ValueError(
            f"{where}.guidance is guidance by source images, which policy.type = {policy.type} does not have; leave it out: "
            "guidance_scale is that by the text"
        )


def check_training_sets(train: Sequence[DatasetConfig], sampling: SamplingConfig) -> None:
    """Whether each training set has what its samples are scored by, and prompts of every task. Raises ValueError."""
    tasks = sampling.tasks.given() if isinstance(sampling, TaskSamplingConfig) else {}
    for i, dataset in enumerate(train):
        if not tasks and not any(dataset.rewards.values()):
            raise ValueError(f"data set {dataset.path}: `rewards` needs at least one reward with a weight other than 0")
        if tasks and dataset.rewards:
            raise ValueError(
                f"data.train.{i}.rewards is not read: the rewards of a policy with tasks are in sampling.tasks.<task>.rewards; "
                "move them there"
            )
        if len(tasks) > 1 and dataset.format != "pairs":
            raise ValueError(
                f"data.train.{i}.format = {dataset.format} has prompts of one task, and sampling.tasks names two; give a file of "
                "pairs with format: pairs, or leave a task out"
            )
        if not tasks and dataset.format == "pairs":
            raise ValueError(
                f"data.train.{i}.format = pairs is read by a policy with tasks, and sampling.type is {sampling.type}"
            )
