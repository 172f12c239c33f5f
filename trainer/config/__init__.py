"""The configuration: frozen, closed (unknown keys are refused), a sentence per field, cross-checked.

`trainer.config.file.load_config` reads a file of it; `trainer.migration.load_recipe`, which the commands call, also takes
what users of other trainers bring. Nothing else of this project is imported here, and no torch: a recipe loads in an instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.advantage import AdvantageConfig, GdpoConfig
from trainer.config.base import ConfigError, FilePath, OutputPath, Section, did_you_mean
from trainer.config.data import DataConfig, DatasetConfig
from trainer.config.deepgen import DeepGenConfig
from trainer.config.deepspeed import Owner, check_deepspeed
from trainer.config.distributed import DeviceConfig, DistributedConfig
from trainer.config.evaluation import JUDGE, AlarmsConfig, EvaluationConfig, EvaluationSetConfig, check_held_out
from trainer.config.given_texts import AnswersConfig, ConversationsConfig
from trainer.config.janus import JanusConfig
from trainer.config.network import LoraConfig, NetworkConfig
from trainer.config.objective import FlowGrpoConfig, ObjectiveConfig
from trainer.config.objective_checks import check_objective
from trainer.config.optim import OptimConfig
from trainer.config.packed import PackedConfig
from trainer.config.policy import (
    DiffusersConfig,
    FluxConfig,
    PolicyConfig,
    QwenImageConfig,
    Sd3Config,
    TinyConfig,
    drawn_by,
)
from trainer.config.programs import (
    CardsConfig,
    PreferencesConfig,
    ProgramName,
    QuickstartBaseConfig,
    ScenesConfig,
    check_base,
    check_groups,
    check_program,
    check_stages,
)
from trainer.config.records import CheckpointConfig, LoggingConfig
from trainer.config.rewards import URL_VARIABLES, RewardConfig, RewardsConfig, ServiceConfig, check_waits
from trainer.config.sampling import (
    FlowSamplingConfig,
    SamplingConfig,
    TokenSamplingConfig,
    check_drawn,
    check_training_sets,
)
from trainer.config.supervised_loss import SftLossConfig
from trainer.config.tasks import GenerateConfig, Task, TaskSamplingConfig, UnderstandConfig, tasks_of
from trainer.config.texts import as_questions
from trainer.config.vlm import VlmConfig

__all__ = [
    "URL_VARIABLES",
    "AdvantageConfig",
    "AlarmsConfig",
    "AnswersConfig",
    "CardsConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "ConversationsConfig",
    "DataConfig",
    "DatasetConfig",
    "DeepGenConfig",
    "DeviceConfig",
    "DiffusersConfig",
    "DistributedConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "FlowSamplingConfig",
    "FluxConfig",
    "GenerateConfig",
    "JanusConfig",
    "LoggingConfig",
    "LoraConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PackedConfig",
    "PolicyConfig",
    "PreferencesConfig",
    "QuickstartBaseConfig",
    "QwenImageConfig",
    "RewardConfig",
    "RewardsConfig",
    "SamplingConfig",
    "ScenesConfig",
    "Sd3Config",
    "ServiceConfig",
    "SftLossConfig",
    "Task",
    "TaskSamplingConfig",
    "TinyConfig",
    "TokenSamplingConfig",
    "UnderstandConfig",
    "VlmConfig",
]

# What a policy of tokens has where the recipe names none, by how it is drawn.
_TOKEN_TYPES = {
    "tokens": {"sampling": "tokens", "objective": "grpo"},
    "tasks": {"sampling": "tasks", "objective": "grpo"},
}
_TEXT_PAIRS = {"preferences": "answers"}


class Config(Section):
    """One run."""

    default_types: ClassVar[Mapping[str, str]] = {
        "sampling": "flow",
        "objective": "flow_grpo",
        "advantage": "gdpo",
        "preferences": "images",
    }

    run_name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under output_dir.")
    output_dir: OutputPath = Field("outputs", description="Where runs live.")
    seed: int = Field(1, ge=0, lt=2**31, description="Seed of everything random in the run.")
    max_steps: int = Field(ge=1, description="Training steps.")
    resume: FilePath = Field(
        "auto", description="auto: go on from the newest checkpoint; never: refuse to overwrite; or a path."
    )
    after: FilePath | None = Field(
        None, description="Stage before this: trained first if its checkpoint.export is missing."
    )
    environment: Literal["none", "deepgen_rl"] = Field(
        "none",
        description="deepgen_rl: that project's environment variables set the fields they mean; said at the start.",
    )
    program: ProgramName = Field(
        "rl",
        description="What a step is: rl samples and asks for rewards, supervised learns images with texts (sft), "
        "conversations or packs (packed), preference learns from pairs (preferences), quickstart_base makes the quickstart's base (quickstart), "
        "vlm_base that of the small VLM (cards), pair_base that of the quickstart of pairs (scenes).",
    )
    policy: PolicyConfig = Field(default_factory=TinyConfig, description="The model that is trained.")
    sampling: SamplingConfig = Field(default_factory=FlowSamplingConfig, description="How rollouts are drawn.")
    objective: ObjectiveConfig = Field(
        default_factory=FlowGrpoConfig, description="The loss that turns advantages into a gradient."
    )
    advantage: AdvantageConfig = Field(default_factory=GdpoConfig, description="How scores become advantages.")
    sft: SftLossConfig | None = Field(None, description="Supervised loss beside the objective; null is none.")
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    conversations: ConversationsConfig | None = Field(
        None, description="What program: supervised trains on, with a policy that writes."
    )
    packed: PackedConfig | None = Field(
        None, description="What program: supervised trains on, with a policy that reads packs."
    )
    preferences: PreferencesConfig | AnswersConfig | None = Field(
        None, discriminator="type", description="What program: preference trains on."
    )
    quickstart: QuickstartBaseConfig | None = Field(None, description="What program: quickstart_base trains on.")
    cards: CardsConfig | None = Field(None, description="What program: vlm_base trains on.")
    scenes: ScenesConfig | None = Field(None, description="What program: pair_base trains on.")
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.run_name

    @model_validator(mode="before")
    @classmethod
    def _sections_have_types(cls, raw: Any) -> Any:
        return cls.with_types(raw)

    @classmethod
    def types_beside(cls, raw: Mapping[str, Any]) -> Mapping[str, str]:
        """A policy that writes has sections of its own for how it samples and what it minimises."""
        drawn = drawn_by(raw)
        if drawn not in _TOKEN_TYPES:
            return cls.default_types
        objective = {"objective": "dpo"} if raw.get("program") == "preference" else {}
        return {**cls.default_types, **_TOKEN_TYPES[drawn], **_TEXT_PAIRS, **objective}

    @classmethod
    def with_types(cls, raw: Any) -> Any:
        """As everywhere; and a policy that writes has its own sections also where the recipe leaves them out."""
        if isinstance(raw, Mapping) and (drawn := drawn_by(raw)) in _TOKEN_TYPES:
            raw = {**{name: {} for name in _TOKEN_TYPES[drawn]}, **raw}
            raw = as_questions(raw) if drawn == "tokens" else raw
        return super().with_types(raw)

    @property
    def max_images(self) -> int:
        """How many images a question of this policy may have."""
        return int(getattr(self.policy, "max_images", 0))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The kinds of sample that a step draws; a policy with one kind alone has one task without a name."""
        sampling = self.sampling
        if not isinstance(sampling, TaskSamplingConfig):
            return (Task("", sampling.group_size, sampling.micro_batch_size, self.advantage, objective=self.objective),)
        return tasks_of(sampling, self.advantage, self.objective)

    @property
    def train_rewards(self) -> list[tuple[str, str]]:
        """The rewards that are trained on, each with the field that names it."""
        if isinstance(self.sampling, TaskSamplingConfig):
            tasks = self.sampling.tasks.given()
            return [(f"sampling.tasks.{task}.rewards", name) for task, each in tasks.items() for name in each.rewards]
        return [(f"data.train.{i}.rewards", name) for i, d in enumerate(self.data.train) for name in d.rewards]

    @property
    def deepspeed_owner(self) -> Owner:
        """What of a DeepSpeed file these sections decide."""
        dtype = getattr(self.policy, "dtype", "float32")
        name = {"supervised": "conversations" if self.conversations else "sft", "preference": "preferences"}.get(
            self.program
        )
        given = None if name is None else getattr(self, name)
        if given is not None:
            micro = given.micro_batch_size or given.batch_size
            return Owner(given.batch_size, micro, self.optim, dtype, f"{name}.batch_size", f"{name}.micro_batch_size")
        if self.packed is not None:
            return Owner(self.packed.packs, 1, self.optim, dtype, "packed.packs", "the packs of a forward pass")
        batch = self.sampling.samples_per_step
        micro = self.optim.micro_batch_size or self.sampling.largest_micro_batch
        return Owner(batch, micro, self.optim, dtype)

    @model_validator(mode="after")
    def _program_fits(self) -> Config:
        check_program(
            self.program,
            given=self.policy.given,
            is_text=self.policy.draws_by[0] == "tokens",
            num_train=len(self.data.train),
            objective=self.objective.type,
            updates=self.optim.updates_per_rollout,
            sft=self.sft,
            conversations=self.conversations,
            packed=self.packed,
            preferences=self.preferences,
            quickstart=self.quickstart,
            cards=self.cards,
            scenes=self.scenes,
        )
        if self.program != "rl" and self.optim.micro_batch_size is not None:
            raise ValueError(
                f"optim.micro_batch_size = {self.optim.micro_batch_size} cuts samples of program: rl, but program is "
                f"{self.program}; leave it out: the section of its data has a micro_batch_size"
            )
        if self.program == "quickstart_base" and (not isinstance(self.policy, TinyConfig) or self.policy.checkpoint):
            raise ValueError(
                "program: quickstart_base trains policy.type = tiny from random weights; leave policy.checkpoint out"
            )
        check_base(self.program, self.policy.type, getattr(self.policy, "pretrained", None))
        check_stages(self.max_steps, self.cards, self.scenes)
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> Config:
        check_drawn(self.sampling, self.policy)
        self.evaluation.check_drawing(self.sampling.type)
        if isinstance(self.sampling, TokenSamplingConfig) and self.sampling.engine == "vllm" and self.program != "rl":
            raise ValueError(
                f"sampling.engine = vllm draws the answers of program: rl, but program is {self.program}, which draws only to "
                "evaluate; leave sampling.engine out"
            )
        return self

    @model_validator(mode="after")
    def _rewards_exist(self) -> Config:
        asked = [*self.train_rewards, *self.evaluation.asked()]
        for where, name in asked:
            if name not in self.rewards.columns:
                known = ", ".join(sorted(self.rewards.columns)) or "none"
                hint = "; add it, or name it in data.ignore_rewards" if where.startswith("data.") else ""
                raise ValueError(
                    f"{where} names the reward {name!r}, which no entry of rewards.columns serves (there: {known})"
                    f"{did_you_mean(name, self.rewards.columns) or hint}"
                )
        if len(self.data.train) > 1 and self.evaluation.hold_out:
            self.evaluation.check_names([dataset.dataset_name for dataset in self.data.train], self.rewards.columns)
        self.evaluation.check_columns({name: column.reward for name, column in self.rewards.columns.items()})
        return self

    @model_validator(mode="after")
    def _min_valid_fits(self) -> Config:
        for task in self.tasks:
            if task.advantage.min_valid > task.group_size:
                where = f"sampling.tasks.{task.name}" if task.name else "sampling"
                raise ValueError(
                    f"advantage.min_valid = {task.advantage.min_valid} is more than {where}.group_size = {task.group_size}: no "
                    "group could ever train; lower min_valid or raise group_size"
                )
        return self

    @model_validator(mode="after")
    def _tasks_have_data(self) -> Config:
        check_training_sets(self.data.train, self.sampling)
        self.evaluation.check_tasks([task.name for task in self.tasks])
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Config:
        check_objective(self.objective, self.sampling)
        return self

    @model_validator(mode="after")
    def _update_fits(self) -> Config:
        check_groups(self.program, self.policy, self.optim.groups)
        total, updated = self.sampling.samples_per_step, self.optim.micro_batch_size
        if updated is not None and updated > total:
            raise ValueError(
                f"optim.micro_batch_size = {updated} is more than sampling.prompts_per_step * group_size = {total}, all "
                f"samples of a step; try {total}"
            )
        if self.optim.warmup_steps >= self.max_steps:
            raise ValueError(
                f"optim.warmup_steps = {self.optim.warmup_steps} is not below max_steps = {self.max_steps}, so the rate "
                "would never reach optim.lr; lower it or train longer"
            )
        return self

    @model_validator(mode="after")
    def _padding_repeats(self) -> Config:
        sampled, updated = self.sampling.largest_micro_batch, self.optim.micro_batch_size
        is_padded = isinstance(self.policy, DeepGenConfig) and self.policy.conditioning == "padded"
        if is_padded and updated not in (None, sampled):
            raise ValueError(
                f"policy.conditioning = padded depends on which prompts share a micro-batch, but optim.micro_batch_size = "
                f"{updated} is not sampling.micro_batch_size = {sampled}; leave it out, or use conditioning: single"
            )
        return self

    @model_validator(mode="after")
    def _ranks_outwait_rewards(self) -> Config:
        check_waits(self.rewards, self.distributed.timeout_s)
        return self

    @model_validator(mode="after")
    def _best_is_saved(self) -> Config:
        best, saved, evaluated = self.checkpoint.keep_best, self.checkpoint.save_every, self.evaluation.every
        if best is None or not best.metric.startswith("eval/"):
            return self
        if not self.evaluation.active:
            raise ValueError(
                f"checkpoint.keep_best.metric = {best.metric}, but evaluation names no prompts, so it is never measured; give "
                "evaluation.path or choose a metric of training, such as reward/<name>/mean"
            )
        name = best.metric.removeprefix("eval/")
        asked = {name for _, name in self.train_rewards} | {name for _, name in self.evaluation.asked()}
        if any(each.scoring for each in self.evaluation.sets):  # a table is made of what the judge says
            asked |= {column for column, each in self.rewards.columns.items() if (each.reward or column) == JUDGE}
        if name in self.rewards.columns and name not in asked:
            raise ValueError(
                f"checkpoint.keep_best.metric = {best.metric}, but neither training nor evaluation asks for the reward {name}, "
                f"so it is never measured; name it in evaluation.rewards"
            )
        if saved % evaluated and evaluated % saved:
            raise ValueError(
                f"checkpoint.keep_best needs steps that are evaluated and saved, but evaluation.every = {evaluated} and "
                f"checkpoint.save_every = {saved}; make one a multiple of the other"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_fits(self) -> Config:
        if self.distributed.deepspeed is not None:
            check_deepspeed(self.distributed.deepspeed, self.deepspeed_owner)
        return self

    @model_validator(mode="after")
    def _evaluation_is_apart(self) -> Config:
        check_held_out(self.evaluation, self.data.train)
        return self
