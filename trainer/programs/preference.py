"""Training on preferences: a step is one optimizer step of a preference objective on given pairs."""

from __future__ import annotations

from trainer.config import Config, PreferencesConfig
from trainer.config.objective import DiffusionDpoConfig
from trainer.data.preferences import PreferenceData, preference_prompts
from trainer.objectives.flow.preferences import DpoOnPairs
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.session import Session
from trainer.programs.supervised import GivenProgram, denoiser, given_material


def read_material(config: Config) -> Material:
    """The prompts of the pairs. Raises ConfigError, DataError."""
    return given_material(config, preference_prompts(_given(config)))


def _deal(config: Config, material: Material, world: World) -> PreferenceData:
    data = PreferenceData(_given(config), config.seed)
    data.leave_out(material.overlap.texts())
    return data


def _build(session: Session, material: Material, data: PreferenceData) -> GivenProgram:
    config, world = session.config, session.world
    assert isinstance(config.objective, DiffusionDpoConfig), "the configuration has checked it"
    given = _given(config)
    policy = denoiser(session.policy, config)
    objective = DpoOnPairs(policy, config.objective, given, data, config.seed, share=(world.rank, world.size))
    return GivenProgram(session, objective, given.batch_size)


def _given(config: Config) -> PreferencesConfig:
    assert config.preferences is not None, "the configuration has checked it"
    return config.preferences


KIND = Kind(
    read_material, _deal, lambda config, device: build_policy(config.policy, device, keep_reference=True), _build
)
