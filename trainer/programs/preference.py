"""Training on preferences: pairs of images for a policy that denoises, pairs of answers for one that writes."""

from __future__ import annotations

import torch

from trainer.config import Config, PreferencesConfig
from trainer.config.given_texts import AnswersConfig
from trainer.config.objective import DiffusionDpoConfig
from trainer.config.preference_objective import DpoConfig
from trainer.data.answers import answer_prompts, read_answers
from trainer.data.dealt import Dealt
from trainer.data.overlap import PREFERENCES
from trainer.data.preferences import PreferenceData, preference_prompts
from trainer.objectives.flow.preferences import DpoOnPairs
from trainer.objectives.tokens.preference import TokenDpo
from trainer.policies.base import Policy
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.given import GivenProgram, by_given, given_material
from trainer.programs.given_texts import TextMaterial, TextProgram, text_material, token_reader
from trainer.programs.reference_table import precomputed
from trainer.programs.session import Session
from trainer.programs.supervised import denoiser
from trainer.types import AnswerPair


def _read_images(config: Config) -> Material:
    """The prompts of the pairs. Raises ConfigError, DataError."""
    return given_material(config, preference_prompts(_images(config)))


def _deal_images(config: Config, material: Material, world: World) -> PreferenceData:
    data = PreferenceData(_images(config), config.seed)
    data.leave_out(material.overlap.texts())
    return data


def _build_images(session: Session, material: Material, data: PreferenceData) -> GivenProgram:
    config, world = session.config, session.world
    assert isinstance(config.objective, DiffusionDpoConfig), "the configuration has checked it"
    given = _images(config)
    policy = denoiser(session.policy, config)
    objective = DpoOnPairs(policy, config.objective, given, data, config.seed, share=(world.rank, world.size))
    return GivenProgram(session, objective, given.batch_size)


def _images(config: Config) -> PreferencesConfig:
    assert isinstance(config.preferences, PreferencesConfig), "the configuration has checked it"
    return config.preferences


def _image_policy(config: Config, device: torch.device) -> Policy:
    policy: Policy = build_policy(config.policy, device, keep_reference=True)
    return policy


def _read_answers(config: Config) -> TextMaterial[AnswerPair]:
    """The pairs. Raises ConfigError, DataError."""
    rows = read_answers(_answers(config), field=PREFERENCES, dataset=PREFERENCES, max_images=config.max_images)
    return text_material(config, rows, answer_prompts(rows))


def _deal_answers(config: Config, material: TextMaterial[AnswerPair], world: World) -> Dealt[AnswerPair]:
    return Dealt(material.rows.train, config.seed, PREFERENCES)


def _build_answers(session: Session, material: TextMaterial[AnswerPair], rows: Dealt[AnswerPair]) -> TextProgram:
    config, world, given = session.config, session.world, _answers(session.config)
    assert isinstance(config.objective, DpoConfig), "the configuration has checked it"
    policy = token_reader(session.policy, config)
    objective = TokenDpo(policy, config.objective, given, rows, share=(world.rank, world.size))
    if config.objective.reference == "precomputed":  # here the weights are still those that the run starts from
        objective.reference = precomputed(config, world, objective, material.rows.held_out, session.recorder.note)
    return TextProgram(session, objective, given.batch_size, material.rows)


def _answers(config: Config) -> AnswersConfig:
    assert isinstance(config.preferences, AnswersConfig), "the configuration has checked it"
    return config.preferences


def _answer_policy(config: Config, device: torch.device) -> Policy:
    assert isinstance(config.objective, DpoConfig), "the configuration has checked it"
    kept = config.objective.reference == "kept"
    policy: Policy = build_policy(config.policy, device, keep_reference=kept)
    return policy


KIND = by_given(
    {
        "images": Kind(_read_images, _deal_images, _image_policy, _build_images),
        "conversations": Kind(_read_answers, _deal_answers, _answer_policy, _build_answers),
    }
)
