"""What program: supervised trains a policy on that reads packs: rows of texts and images, side by side in one sequence."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Name, Positive, Section, Share

PackFormat = Literal["t2i", "edit", "t2i_reason", "edit_reason", "t2i_refine", "edit_refine", "conversations"]


class PackSetConfig(Section):
    """A file of rows."""

    name: Name | None = Field(None, description="What it is called in messages; null is the file's name.")
    path: FilePath = Field(description="A JSON array or JSON lines, in UTF-8.")
    format: PackFormat = Field(
        description="What a row is. UniReason's: t2i, edit, t2i_reason, edit_reason, t2i_refine, edit_refine; NEO's: conversations."
    )
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is the folder of `path`."
    )
    share: Share = Field(1.0, description="Share of the rows that is used, drawn by `seed`, the same at every start.")
    max_rows: int | None = Field(None, ge=1, description="At most so many rows, drawn as a share is; null takes all.")
    held_out: bool = Field(
        False,
        description="None of its rows is trained on; their loss is measured, as that of rows that hold_out keeps.",
    )
    frames: int = Field(
        8, ge=1, le=1024, description="Images, evenly spaced, that a video of a conversation is read as."
    )


class ResizeConfig(Section):
    """How images are scaled: both sides end as multiples of `stride`."""

    stride: int = Field(16, ge=1, description="Pixels that both sides are multiples of.")
    longest: int = Field(1024, ge=1, description="The longer side is at most so many pixels.")
    shortest: int = Field(512, ge=1, description="The shorter side is at least so many pixels.")


class PackGroupConfig(Section):
    """Files that are drawn from together."""

    name: Name = Field(description="Part of the names of its metrics.")
    sets: tuple[PackSetConfig, ...] = Field(min_length=1, description="Its files, one after the other.")
    weight: Positive = Field(1.0, description="How often a row of it is drawn, relative to the other groups.")
    mandatory: bool = Field(False, description="Every pack begins with a row of it.")
    image_size: ResizeConfig | None = Field(
        None, description="Scaling of images that are drawn, or read as latents; null is the policy's own."
    )
    seen_size: ResizeConfig | None = Field(
        None, description="Scaling of images that are seen; null is the policy's own."
    )


class DropoutConfig(Section):
    """How often a condition is left out, so that the model also learns to draw without it; guidance needs that."""

    text: Share = Field(0.1, description="Texts of prompts and reasoning.")
    clean: Share = Field(0.1, description="Images that are read as latents.")
    seen: Share = Field(0.1, description="Images that are seen by the vision encoder.")


class NoiseConfig(Section):
    """How drawn images are noised."""

    shift: Positive = Field(1.0, description="s of t = s u / (1 + (s - 1) u), u = sigmoid(N(0, 1)): above 1 noisier.")
    copies: int = Field(
        1, ge=1, le=64, description="Noised copies of an image, each with its own level, that share one context."
    )


class PackLossConfig(Section):
    """loss = ce_weight * cross-entropy + mse_weight * squared error, each a mean over the tokens of all ranks."""

    ce_weight: float = Field(1.0, ge=0, description="Weight of the texts.")
    mse_weight: float = Field(1.0, ge=0, description="Weight of the images.")
    reduction: Literal["token", "sample", "square"] = Field(
        "token",
        description="Weight of a token in the cross-entropy: token is 1, sample 1 / n, square 1 / sqrt(n), n the learnt tokens of its "
        "`per`.",
    )
    per: Literal["text", "row"] = Field("text", description="What n counts: a learnt text, as BAGEL; a row, as NEO.")

    @model_validator(mode="after")
    def _something_is_learnt(self) -> PackLossConfig:
        if not self.ce_weight and not self.mse_weight:
            raise ValueError("packed.loss.ce_weight and mse_weight are both 0: nothing would be learnt; raise one")
        return self


class PackedConfig(Section):
    """Rows that fill packs."""

    groups: tuple[PackGroupConfig, ...] = Field((), description="What is drawn from.")
    grouping: FilePath | None = Field(
        None, description="UniReason's grouping YAML, in place of `groups`; `registry` says where its data sets lie."
    )
    registry: FilePath | None = Field(
        None,
        description="UniReason's dataset_info.py, which is read and never run, or a YAML file of the same two tables.",
    )
    think_instruction: FilePath | None = Field(
        None,
        description="Text file with the fixed sentence before rows with reasoning, or the .py file that holds it; null is this trainer's own.",
    )
    refine_instruction: FilePath | None = Field(
        None,
        description="Text file with the fixed sentence before rows with refinements, or the .py file that holds it; null is this trainer's own.",
    )
    packs: int = Field(1, ge=1, description="Packs of a step, over all ranks: a number that ranks can share.")
    fill: Literal["tokens", "rows"] = Field(
        "tokens",
        description="tokens: a pack takes rows until it has expected_tokens; rows: it takes rows_per_pack, and those at its end that do "
        "not fit into max_tokens are put back.",
    )
    rows_per_pack: int | None = Field(None, ge=1, description="Rows of a pack where fill is rows.")
    expected_tokens: int = Field(32768, ge=1, description="A pack is full from so many tokens on.")
    max_tokens: int = Field(36864, ge=1, description="No pack has more.")
    max_row_tokens: int = Field(16384, ge=1, description="A longer row is left out by name.")
    buffer_below: int = Field(
        16384, ge=0, description="Below so many tokens a pack takes rows first that did not fit into one before."
    )
    buffer_size: int = Field(50, ge=0, description="At most so many rows wait because they did not fit.")
    workers: int = Field(
        2, ge=0, description="Threads of a rank that read rows ahead; 0 reads them as they are needed."
    )
    dropout: DropoutConfig = Field(default_factory=DropoutConfig)
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    loss: PackLossConfig = Field(default_factory=PackLossConfig)
    hold_out: int = Field(
        0, ge=0, description="Rows of each set, drawn by `seed`, that are not trained on: their loss is measured."
    )
    bad_rows: Literal["leave_out", "stop"] = Field(
        "leave_out",
        description="What becomes of a row that cannot be used: it is named and counted, or it ends the run.",
    )

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that is used."""
        return min(self.max_row_tokens, self.max_tokens)

    def too_long(self, row: str, length: int) -> str:
        """What is said of a longer one."""
        name = "max_row_tokens" if self.max_row_tokens <= self.max_tokens else "max_tokens"
        return f"{row} has {length} tokens, packed.{name} is {self.longest_row}; raise it or shorten the row"

    @model_validator(mode="after")
    def _one_source(self) -> PackedConfig:
        if bool(self.groups) == (self.grouping is not None):
            given = "both" if self.groups else "neither"
            raise ValueError(f"{given} of packed.groups and packed.grouping is given; give one of them")
        if (self.grouping is None) != (self.registry is None):
            raise ValueError("packed.grouping and packed.registry belong together; give both or none")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> PackedConfig:
        if self.expected_tokens > self.max_tokens:
            raise ValueError(
                f"packed.expected_tokens = {self.expected_tokens} is more than packed.max_tokens = {self.max_tokens}, which no "
                "pack may exceed; lower it"
            )
        if (self.fill == "rows") != (self.rows_per_pack is not None):
            raise ValueError("packed.rows_per_pack belongs to packed.fill: rows; give both or none")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError(f"packed.groups has two of the same name among {', '.join(names)}; rename one")
        return self
