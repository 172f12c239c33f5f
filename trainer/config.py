"""The configuration: frozen, closed (unknown keys are refused), a sentence per field, cross-checked.

`trainer.config_file.load_config` is the only way in. No torch here, so that `doctor` and tests load it in an instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from trainer.config_base import Beta, ConfigError, FilePath, Name, Positive, Section, Share
from trainer.config_rewards import URL_VARIABLES, RewardConfig, RewardsConfig, ServiceConfig

__all__ = [
    "URL_VARIABLES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DatasetConfig",
    "DeviceConfig",
    "DistributedConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OptimConfig",
    "PolicyConfig",
    "RewardConfig",
    "RewardsConfig",
    "SamplingConfig",
    "ServiceConfig",
    "SftConfig",
    "SftOptimConfig",
    "WordsConfig",
]


class PolicyConfig(Section):
    """The model that is trained."""

    type: Literal["tiny"] = Field("tiny", description="Which policy of trainer/policies.")
    checkpoint: FilePath | None = Field(
        None, description="Safetensors file to start from; null starts from random weights."
    )
    num_layers: int = Field(4, ge=1, le=64, description="Transformer blocks.")
    num_heads: int = Field(4, ge=1, le=64, description="Attention heads.")
    head_dim: int = Field(32, ge=8, le=256, description="Width of a head.")


class SamplingConfig(Section):
    """How rollouts are made."""

    prompts_per_step: int = Field(8, ge=1, description="P: distinct prompts a step, over all ranks.")
    group_size: int = Field(12, ge=2, description="G: rollouts per prompt.")
    micro_batch_size: int = Field(
        24, ge=1, description="Samples denoised together; a multiple of group_size or a divisor."
    )
    num_inference_steps: int = Field(6, ge=2, le=1000, description="Denoising steps of a training rollout.")
    kind: Literal["flow_sde", "cps", "dance_sde"] = Field("cps", description="Which SDE makes the stochastic steps.")
    noise_level: float = Field(0.7, gt=0, le=2, description="Strength of the injected noise (eta).")
    sde_window: tuple[int, int] | None = Field(
        None, description="[first, last) stochastic steps; the others are ODE steps. Null: all but the last."
    )
    timestep_fraction: float = Field(1.0, gt=0, le=1, description="Share of the stochastic steps that is trained.")
    guidance_scale: float = Field(1.0, ge=1, description="Classifier-free guidance; 1 is none and costs nothing.")
    shift: float = Field(1.0, gt=0, description="Timestep shift of the sigma schedule; 1 is none.")

    @model_validator(mode="after")
    def _window(self) -> SamplingConfig:
        if self.sde_window is not None:
            first, last = self.sde_window
            if not 0 <= first < last <= self.num_inference_steps - 1:
                raise ValueError(
                    f"sde_window [{first}, {last}) does not fit num_inference_steps = {self.num_inference_steps}: it needs "
                    f"0 <= first < last <= {self.num_inference_steps - 1} (the last step is always deterministic)"
                )
        return self

    @model_validator(mode="after")
    def _micro_batches(self) -> SamplingConfig:
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

    @model_validator(mode="after")
    def _cps_noise(self) -> SamplingConfig:
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(
                f"noise_level = {self.noise_level} is more than 1, the most that kind = cps knows; lower it or use "
                "kind = flow_sde"
            )
        return self


class AlgorithmConfig(Section):
    """From scores to a gradient."""

    type: Literal["gdpo", "grpo", "grpo_global_std", "dr_grpo", "reinforce_pp"] = Field(
        "gdpo", description="The advantage estimator."
    )
    clip_range: float = Field(1e-4, gt=0, description="Clip of the probability ratio (mean log-probabilities: small).")
    adv_clip: float = Field(5.0, gt=0, description="Advantages are clamped to plus and minus this.")
    eps: float = Field(1e-4, gt=0, description="Added to a standard deviation before dividing.")
    min_valid: int = Field(2, ge=2, description="Fewer valid scores in a group than this: the group's advantage is 0.")
    std_floor: float = Field(
        0.0, ge=0, le=1, description="Least divisor of a group, as a share of the reward's running spread; 0 is off."
    )
    kl_beta: float = Field(0.0, ge=0, description="Weight of the velocity KL to the starting weights.")
    updates_per_rollout: int = Field(1, ge=1, le=16, description="Optimizer steps on one set of rollouts.")

    @model_validator(mode="after")
    def _floor_acts(self) -> AlgorithmConfig:
        if self.std_floor and self.type == "dr_grpo":
            raise ValueError(
                f"std_floor = {self.std_floor:g} is the least divisor, but type = dr_grpo divides by none; set std_floor "
                "to 0 or choose another type"
            )
        return self


class DatasetConfig(Section):
    """One prompt file with its mixture of rewards."""

    path: FilePath = Field(description="A .txt file (a prompt a line) or .jsonl (id, prompt, targets, metadata).")
    name: Name | None = Field(None, description="Shown in metrics; the file's stem otherwise.")
    rewards: dict[str, float] = Field(description="Reward name to weight; only these are asked for.")
    weight: Positive = Field(1.0, description="How often this set is drawn from, relative to the others.")

    @property
    def dataset_name(self) -> str:
        """`name`, or the file's stem."""
        return self.name or Path(self.path).stem

    @model_validator(mode="after")
    def _some_reward(self) -> DatasetConfig:
        if not any(weight != 0 for weight in self.rewards.values()):
            raise ValueError(f"data set {self.path}: `rewards` needs at least one reward with a weight other than 0")
        return self


class DataConfig(Section):
    """Where prompts come from."""

    train: tuple[DatasetConfig, ...] = Field(min_length=1, description="The training sets.")

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [dataset.dataset_name for dataset in self.train]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(
                    f"train.{names.index(name)} and train.{i} are both called {name!r}; give one of them another `name`"
                )
        return self


class OptimConfig(Section):
    """The optimizer."""

    lr: float = Field(1e-4, gt=0, description="Peak learning rate (AdamW).")
    schedule: Literal["constant", "linear"] = Field("linear", description="linear falls to 0 at max_steps.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="The gradient's global norm is clipped to this.")
    ema_decay: float = Field(0.9, ge=0, lt=1, description="Weights' moving average, used by evaluation; 0 is off.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Samples per forward pass of the update; null takes sampling.micro_batch_size."
    )


class DeviceConfig(Section):
    """Where tensors live."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA when there is one.")
    num_threads: int | None = Field(
        None, ge=1, description="torch threads per process on a CPU; null is torch's choice."
    )


class DistributedConfig(DeviceConfig):
    """Processes and devices."""

    timeout_s: float = Field(1800.0, gt=0, description="Longest wait in a collective operation.")


class EvaluationConfig(Section):
    """Held-out prompts, fixed noise, deterministic ODE, averaged weights."""

    path: FilePath | None = Field(None, description="Prompt file; null: no evaluation.")
    every: int = Field(25, ge=1, description="Steps between evaluations; the first and the last always happen.")
    num_inference_steps: int = Field(10, ge=1, le=1000, description="ODE steps.")
    batch_size: int = Field(48, ge=1, description="Samples denoised together.")
    rewards: tuple[str, ...] = Field(
        (), description="Rewards asked for at every evaluation; empty: all that training uses."
    )
    final_rewards: tuple[str, ...] = Field((), description="Asked for only before the first and after the last step.")
    seed: int = Field(1234, ge=0, description="Seed of the fixed noise; sample i always starts from the same noise.")
    num_pictures: int = Field(24, ge=0, description="Samples kept as pictures for the report.")
    may_share: Literal["nothing", "targets"] = Field(
        "nothing",
        description="What held-out prompts may have in common with training: targets, where words are meant to come again.",
    )

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> EvaluationConfig:
        for field in ("rewards", "final_rewards"):
            names = getattr(self, field)
            if self.path is None and names:
                raise ValueError(
                    f"{field} asks for {', '.join(names)}, but path is null, so nothing is evaluated; give a prompt file "
                    f"or leave {field} out"
                )
        return self


class CheckpointConfig(Section):
    """What survives a crash."""

    save_every: int = Field(25, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")


class LoggingConfig(Section):
    """Where numbers go."""

    report_to: tuple[Literal["tensorboard"], ...] = Field(("tensorboard",), description="Besides metrics.jsonl.")
    report_every: int = Field(25, ge=1, description="Steps between rebuilds of report.html.")
    progress: bool = Field(True, description="A progress bar on a terminal, lines elsewhere.")


class Config(Section):
    """One run."""

    run_name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under output_dir.")
    output_dir: FilePath = Field("outputs", description="Where runs live.")
    seed: int = Field(1, ge=0, lt=2**31, description="Seed of everything random in the run.")
    max_steps: int = Field(ge=1, description="Training steps.")
    resume: FilePath = Field(
        "auto", description="auto: go on from the newest checkpoint; never: refuse to overwrite; or a path."
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.run_name

    @model_validator(mode="after")
    def _rewards_exist(self) -> Config:
        asked = [(f"data.train.{i}.rewards", name) for i, d in enumerate(self.data.train) for name in d.rewards]
        asked += [("evaluation.rewards", name) for name in self.evaluation.rewards]
        asked += [("evaluation.final_rewards", name) for name in self.evaluation.final_rewards]
        for where, name in asked:
            if name not in self.rewards.columns:
                known = ", ".join(sorted(self.rewards.columns)) or "none"
                raise ValueError(
                    f"{where} names the reward {name!r}, which no entry of rewards.columns serves (there: {known})"
                )
        return self

    @model_validator(mode="after")
    def _min_valid_fits(self) -> Config:
        if self.algorithm.min_valid > self.sampling.group_size:
            raise ValueError(
                f"algorithm.min_valid = {self.algorithm.min_valid} is more than sampling.group_size = "
                f"{self.sampling.group_size}: no group could ever train; lower min_valid or raise group_size"
            )
        return self

    @model_validator(mode="after")
    def _update_fits(self) -> Config:
        total, updated = self.sampling.prompts_per_step * self.sampling.group_size, self.optim.micro_batch_size
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
    def _ranks_outwait_rewards(self) -> Config:
        services = self.rewards.services
        waits = {
            name: column.patience_s + 2 * services[column.service].timeout_s
            for name, column in self.rewards.columns.items()
        }
        name = max(waits, key=lambda name: waits[name], default=None)
        if name is not None and self.distributed.timeout_s <= waits[name]:
            raise ValueError(
                f"distributed.timeout_s = {self.distributed.timeout_s:g} is not above the {waits[name]:g} s that a rank may "
                f"wait for {name} (its patience_s and two deadlines), so the other ranks would give up first; raise it"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_is_apart(self) -> Config:
        held_out = self.evaluation.path
        for i, dataset in enumerate(self.data.train):
            if held_out is not None and Path(held_out) == Path(dataset.path):
                raise ValueError(
                    f"evaluation.path and data.train.{i}.path are both {held_out}; evaluate on prompts that training "
                    "never sees"
                )
        return self


class WordsConfig(Section):
    """The rendered words that the quickstart's base model is pre-trained on, with captions that are often wrong."""

    char_noise: Share = Field(0.2, description="Share of caption characters that are wrong, as web captions are.")
    color_noise: Share = Field(0.3, description="Share of caption colours that are wrong.")


class SftOptimConfig(Section):
    """Muon for the block matrices, AdamW for the rest."""

    batch_size: int = Field(128, ge=1, description="Images a step.")
    muon_lr: float = Field(0.01, gt=0, description="Learning rate of Muon.")
    adamw_lr: float = Field(1e-3, gt=0, description="Learning rate of AdamW.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    decay_share: Share = Field(0.3, description="Share of the steps, at the end, in which the rate falls to 0.")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="Moving average of the weights; it is what is saved.")


class SftConfig(Section):
    """Supervised pre-training of the tiny policy (`python -m trainer sft`)."""

    run_name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under output_dir.")
    output_dir: FilePath = Field("outputs", description="Where runs live.")
    output: FilePath = Field(description="The safetensors file that is written.")
    seed: int = Field(1, ge=0, lt=2**31, description="Seed of everything random in the run.")
    max_steps: int = Field(ge=1, description="Training steps.")
    log_every: int = Field(100, ge=1, description="Steps between lines of metrics.jsonl.")
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    words: WordsConfig = Field(default_factory=WordsConfig)
    optim: SftOptimConfig = Field(default_factory=SftOptimConfig)
    distributed: DeviceConfig = Field(default_factory=DeviceConfig)

    @model_validator(mode="after")
    def _warmup_ends(self) -> SftConfig:
        if self.optim.warmup_steps >= self.max_steps:
            raise ValueError(
                f"optim.warmup_steps = {self.optim.warmup_steps} is not below max_steps = {self.max_steps}, so the rates "
                "would never be reached; lower it or train longer"
            )
        return self

    @model_validator(mode="after")
    def _from_random_weights(self) -> SftConfig:
        if self.policy.checkpoint is not None:
            raise ValueError(
                f"policy.checkpoint = {self.policy.checkpoint}, but pre-training starts from random weights; leave it out"
            )
        return self
