"""Supervised training: images with their texts for a policy that denoises, conversations for one that writes, packs for one that
reads them."""

from __future__ import annotations

import torch

from trainer.config import Config, ConfigError, SftLossConfig
from trainer.config.given_texts import ConversationsConfig
from trainer.data.captions import CaptionData, caption_prompts
from trainer.data.conversations import conversation_prompts, read_conversations
from trainer.data.dealt import Dealt
from trainer.data.overlap import SUPERVISED
from trainer.objectives import Supervised
from trainer.objectives.tokens.supervised import SupervisedTokens
from trainer.policies.base import Denoises, Policy
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.given import GivenProgram, by_given, given_material
from trainer.programs.given_texts import TextMaterial, TextProgram, text_material, token_reader
from trainer.programs.packs import build_packs, deal_rows, read_rows
from trainer.programs.session import Session
from trainer.types import Conversation


def _read_images(config: Config) -> Material:
    """The texts of the images. Raises ConfigError, DataError."""
    return given_material(config, caption_prompts(_sft(config)))


def _deal_images(config: Config, material: Material, world: World) -> CaptionData:
    data = CaptionData(_sft(config), config.seed)
    data.leave_out(material.overlap.texts())
    return data


def _build_images(session: Session, material: Material, data: CaptionData) -> GivenProgram:
    config, world = session.config, session.world
    given = _sft(config)
    policy = denoiser(session.policy, config)
    objective = Supervised(policy, given, data, config.seed, share=(world.rank, world.size))
    return GivenProgram(session, objective, given.batch_size)


def denoiser(policy: Policy, config: Config) -> Denoises:
    """The policy, once it is known that it can be trained on images. Raises ConfigError."""
    if not isinstance(policy, Denoises):
        raise ConfigError(
            f"program = {config.program} trains on images, which policy.type = {config.policy.type} cannot"
        )
    return policy


def _sft(config: Config) -> SftLossConfig:
    assert config.sft is not None, "the configuration has checked it"
    return config.sft


def _read_texts(config: Config) -> TextMaterial[Conversation]:
    """The conversations. Raises ConfigError, DataError."""
    rows = read_conversations(_conversations(config), field="conversations", max_images=config.max_images)
    return text_material(config, rows, conversation_prompts(rows, SUPERVISED))


def _deal_texts(config: Config, material: TextMaterial[Conversation], world: World) -> Dealt[Conversation]:
    return Dealt(material.rows.train, config.seed, "conversations")


def _build_texts(session: Session, material: TextMaterial[Conversation], rows: Dealt[Conversation]) -> TextProgram:
    config, world = session.config, session.world
    given = _conversations(config)
    objective = SupervisedTokens(token_reader(session.policy, config), given, rows, share=(world.rank, world.size))
    return TextProgram(session, objective, given.batch_size, material.rows)


def _conversations(config: Config) -> ConversationsConfig:
    assert config.conversations is not None, "the configuration has checked it"
    return config.conversations


def _policy(config: Config, device: torch.device) -> Policy:
    policy: Policy = build_policy(config.policy, device, keep_reference=False)
    return policy


KIND = by_given(
    {
        "images": Kind(_read_images, _deal_images, _policy, _build_images),
        "conversations": Kind(_read_texts, _deal_texts, _policy, _build_texts),
        "packs": Kind(read_rows, deal_rows, _policy, build_packs),
    }
)
