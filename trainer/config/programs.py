"""What a step of a run is, and the data of the programs that are given what they train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, OutputPath, Section, Share, nearest
from trainer.config.given_texts import AnswersConfig, ConversationsConfig
from trainer.config.network import PolicySection
from trainer.config.packed import PackedConfig
from trainer.config.supervised_loss import SftLossConfig

ProgramName = Literal["rl", "supervised", "preference", "quickstart_base", "vlm_base", "pair_base"]
# Names for optim.groups where a program trains the whole of a small model, in place of the policy's own.
BASE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "quickstart_base": ("blocks",),
    "vlm_base": ("matrices",),
    "pair_base": ("matrices", "decoder", "rest"),
}


class PreferencesConfig(Section):
    """Pairs of images of a prompt, of which one is preferred."""

    type: Literal["images"] = Field("images", description="What is compared: images, or answers in text.")
    path: FilePath = Field(
        description="A JSON array or JSON lines of {prompt, chosen, rejected}: a text and two images."
    )
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is the folder of `path`."
    )
    batch_size: int = Field(8, ge=1, description="Pairs of a step, over all ranks.")
    micro_batch_size: int | None = Field(None, ge=1, description="Pairs per forward pass; null takes all of a rank.")
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[height, width]: images are scaled to cover it and cut; null takes them as they are."
    )

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> PreferencesConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}, all pairs of a "
                "step; lower it or leave it out"
            )
        return self


class QuickstartBaseConfig(Section):
    """The rendered words that the quickstart's base is trained on, with captions that are often wrong."""

    output: OutputPath = Field(description="The safetensors file that is written once all steps are made.")
    batch_size: int = Field(128, ge=1, description="Images of a step, over all ranks.")
    char_noise: Share = Field(0.2, description="Share of caption characters that are wrong, as web captions are.")
    color_noise: Share = Field(0.3, description="Share of caption colours that are wrong.")


class CardsConfig(Section):
    """The cards that the small VLM's base is trained on: first captions, then thoughts, at last careless answers.

    The thoughts have the steps between `captions` and `careless`.
    """

    batch_size: int = Field(64, ge=1, description="Cards of a step, over all ranks.")
    captions: int = Field(150, ge=0, description="First steps, in which the model says all that is on a card.")
    careless: int = Field(150, ge=0, description="Last steps, in which it answers as careless people do.")
    recalled: Share = Field(0.15, description="Share of captions among the thoughts.")
    mixed: Share = Field(
        0.2, description="Share of careless answers among the thoughts, so that the last stage brings nothing new."
    )
    thinking: Share = Field(0.2, description="Share of careless answers that a thought comes before.")
    wrong: Share = Field(0.7, description="Share of wrong answers without a thought.")
    untidy: Share = Field(0.4, description="Share of careless answers whose tags are missing or left open.")


class ScenesConfig(Section):
    """The scenes that the base of the quickstart of pairs is trained on: first with care, at last as careless people would."""

    drawings: int = Field(48, ge=1, description="Captions of a step to draw, over all ranks.")
    talks: int = Field(28, ge=1, description="Images of a step that two questions each are about, over all ranks.")
    decoded: int = Field(
        12, ge=1, description="Of the drawings of a rank, those that the decoder of codes learns from."
    )
    careless: int = Field(110, ge=0, description="Last steps, in which captions and answers are careless.")
    dropout: Share = Field(0.12, description="Share of captions that are emptied, for guidance.")
    descriptions: Share = Field(0.4, description="Share of images that are also described.")
    look_alike: Share = Field(
        0.1, description="Share of colours, in captions and in answers, that are taken for one that looks like them."
    )
    wrong_color: Share = Field(0.65, description="Share of colours in captions that are any colour at all.")
    wrong_shape: Share = Field(0.65, description="Share of shapes in captions that are any shape at all.")
    wrong_order: Share = Field(0.15, description="Share of captions whose two things change places.")
    wrong_answer: Share = Field(0.4, description="Share of answers that are any letter at all.")


def check_program(
    program: ProgramName,
    *,
    given: str,
    is_text: bool,
    num_train: int,
    objective: str,
    updates: int,
    sft: SftLossConfig | None,
    conversations: ConversationsConfig | None,
    packed: PackedConfig | None,
    preferences: PreferencesConfig | AnswersConfig | None,
    quickstart: QuickstartBaseConfig | None,
    cards: CardsConfig | None,
    scenes: ScenesConfig | None,
) -> None:
    """Whether each program has what it trains on, and no other has been given something.

    Args:
        given: what program: supervised trains the policy on (`PolicySection.given`).
        is_text: the policy writes texts and draws no images.
        num_train: entries of data.train.
        updates: optim.updates_per_rollout.

    Raises:
        ValueError: naming the section that is missing, or that would not act.
    """
    if program == "rl" and not num_train:
        raise ValueError("no training set: give data.train at least one, or data.dataset_config a file")
    if program != "rl" and num_train:
        raise ValueError(
            f"data.train holds the prompts that program: rl samples, but program is {program}; leave data.train out"
        )
    trainable = {"supervised": ("images", "conversations", "packs"), "preference": ("images", "conversations")}
    if given not in trainable.get(program, (given,)):
        raise ValueError(f"program: {program} cannot train this policy.type; use another program, or another policy")
    sections = {
        "sft": (sft, ("rl", "supervised"), "supervised" if given == "images" else "", "images with texts"),
        "conversations": (
            conversations,
            ("supervised",),
            "supervised" if given == "conversations" else "",
            "conversations",
        ),
        "packed": (packed, ("supervised",), "supervised" if given == "packs" else "", "packs of texts and images"),
        "preferences": (preferences, ("preference",), "preference", f"pairs of {'answers' if is_text else 'images'}"),
        "quickstart": (quickstart, ("quickstart_base",), "quickstart_base", "rendered words"),
        "cards": (cards, ("vlm_base",), "vlm_base", "cards with questions"),
        "scenes": (scenes, ("pair_base",), "pair_base", "scenes to draw and to ask about"),
    }
    for name, (section, _, needed_by, what) in sections.items():
        if section is None and program == needed_by:
            raise ValueError(f"program: {program} trains on {what}; give the section {name}")
    for name, (section, where, needed_by, what) in sections.items():
        if section is not None and not needed_by:
            raise ValueError(f"{name} trains on {what}, which this policy.type does not; leave {name} out")
        if section is not None and program not in where:
            raise ValueError(f"{name} acts in program: {needed_by} alone, but program is {program}; leave it out")
    if program == "supervised" and sft is not None:
        _check_alone(sft)
    if given != "images" and program in ("supervised", "preference") and updates != 1:
        raise ValueError(
            f"optim.updates_per_rollout = {updates} makes several updates of what was sampled, but program: {program} samples "
            "nothing; leave it out"
        )
    _check_pairs(program, is_text, objective, preferences)


def check_base(program: ProgramName, policy_type: str, pretrained: str | None) -> None:
    """Whether a program that writes the folder of a base has a policy of the type that starts from it. Raises ValueError."""
    wanted = {"vlm_base": "vlm", "pair_base": "janus"}.get(program)
    if wanted is not None and (policy_type != wanted or not pretrained):
        raise ValueError(
            f"program: {program} writes the folder that a policy of type {wanted} starts from, but policy.type is "
            f"{policy_type}; set policy.type to {wanted} and policy.pretrained to the folder"
        )


def check_groups(program: ProgramName, policy: PolicySection, named: Iterable[str]) -> None:
    """Whether `optim.groups` names groups that the policy has, and trains. Raises ValueError."""
    known = BASE_GROUPS.get(program, policy.groups)
    for name in named:
        if name not in known:
            what = f"program: {program}" if program in BASE_GROUPS else f"policy.type = {policy.type}"
            raise ValueError(f"optim.groups.{name}: {what} has no parameters of that name; {nearest(name, known)}")
        if name in getattr(policy, "freeze", ()):
            raise ValueError(
                f"optim.groups.{name} gives a rate to what policy.freeze does not let train; take {name} out of one of the two"
            )


def check_stages(max_steps: int, cards: CardsConfig | None, scenes: ScenesConfig | None) -> None:
    """Whether the stages of a base fit into its steps. Raises ValueError."""
    if cards is not None and cards.captions + cards.careless > max_steps:
        raise ValueError(
            f"cards.captions + cards.careless = {cards.captions} + {cards.careless} steps are more than max_steps = {max_steps}; "
            "lower them or train longer"
        )
    if scenes is not None and scenes.careless > max_steps:
        raise ValueError(
            f"scenes.careless = {scenes.careless} steps are more than max_steps = {max_steps}; lower it or train longer"
        )


def _check_alone(sft: SftLossConfig) -> None:
    for field in ("coef", "every"):
        if getattr(sft, field) != SftLossConfig.model_fields[field].default:
            raise ValueError(
                f"sft.{field} = {getattr(sft, field)} weighs the loss beside an objective, but program: "
                "supervised has no other; leave it out"
            )


def _check_pairs(
    program: ProgramName, is_text: bool, objective: str, preferences: PreferencesConfig | AnswersConfig | None
) -> None:
    """Whether pairs, policy and objective are all of images or all of texts."""
    if preferences is not None and isinstance(preferences, AnswersConfig) != is_text:
        fits = "answers" if is_text else "images"
        raise ValueError(f"preferences.type = {preferences.type}, but this policy.type learns pairs of {fits}; set it")
    needed = "dpo" if is_text else "diffusion_dpo"
    if program == "preference" and objective != needed:
        raise ValueError(
            f"program: preference trains by objective.type = {needed}, not {objective}, which needs rewards; set it"
        )
    if program != "preference" and objective == "dpo":
        raise ValueError(
            f"objective.type = dpo learns from given pairs in program: preference, but program is {program}; set one of them"
        )
