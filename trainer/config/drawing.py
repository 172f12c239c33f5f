"""How images are denoised: what a flow has, whichever way its rollouts are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Section, Share
from trainer.config.generation import Renorm

_PACE = ("sde_window_every", "sde_window_stride")
_MOTION = ("sde_window_motion", *_PACE)


class ImageGuidanceConfig(Section):
    """Guidance by source images beside that by the text, as `python -m trainer generate` draws."""

    image: float = Field(1.5, ge=1, description="Guidance by source images, of prompts that have some; 1 is none.")
    interval: tuple[Share, Share] = Field(
        (0.0, 1.0),
        description="Noise levels, low and high, between which there is guidance, that by the text, too.",
    )
    renorm: Renorm = Field(
        "none",
        description="Guided velocities are no longer than without guidance: of the whole image (global), of each token (channel), or of "
        "each token before the images guide it (text_channel).",
    )
    renorm_min: Share = Field(0.0, description="No velocity is shortened by more than this factor.")

    @model_validator(mode="after")
    def _acts(self) -> ImageGuidanceConfig:
        low, high = self.interval
        if low >= high:
            raise ValueError(f"interval = {low:g} {high:g} holds no noise level; give low, then high")
        if self.renorm == "none" and self.renorm_min:
            raise ValueError(f"renorm_min = {self.renorm_min:g} bounds what renorm = none never does; leave it out")
        return self


class FlowDrawing(Section):
    """Denoising: its steps, which of them are stochastic, and the size of the images."""

    num_inference_steps: int = Field(6, ge=2, le=1000, description="Denoising steps of a training rollout.")
    kind: Literal["flow_sde", "cps", "dance_sde"] = Field(
        "cps", description="Which stochastic differential equation makes the stochastic steps."
    )
    noise_level: float = Field(0.7, gt=0, le=2, description="How strong the injected noise is (eta in the papers).")
    sde_window: tuple[int, int] | None = Field(
        None,
        description="Steps from first up to last, [first, last), are stochastic, the others deterministic; null: all but the last are stochastic.",
    )
    sde_window_size: int | None = Field(
        None,
        ge=1,
        description="How many steps a window has that changes its place, in place of sde_window; see sde_window_motion.",
    )
    sde_window_range: tuple[int, int] | None = Field(
        None, description="Steps [first, last) within which the changing window lies; null: all but the last."
    )
    sde_window_motion: Literal["random", "progressive"] = Field(
        "random",
        description="random: a new place each training step (Flow-GRPO-Fast); progressive: from noise to data (MixGRPO).",
    )
    sde_window_every: int = Field(25, ge=1, description="A progressive window moves on after so many training steps.")
    sde_window_stride: int = Field(1, ge=1, description="A progressive window moves on by so many denoising steps.")
    timestep_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Which share of the stochastic steps is trained on; they are drawn anew each training step.",
    )
    solver: Literal["euler", "dpm2m"] = Field(
        "euler", description="Solver of the ODE steps; dpm2m is DPM-Solver++(2M)."
    )
    same_noise: bool = Field(
        False,
        description="All samples of a group start from the same noise; the deterministic steps before the first stochastic one are computed once.",
    )
    guidance_scale: float = Field(
        1.0, ge=1, description="Scale of classifier-free guidance; 1 is no guidance and costs nothing."
    )
    guidance_gradient: Literal["both", "conditional"] = Field(
        "both",
        description="Where the gradient of a guided velocity goes: through both of its halves, as the policy that is sampled from has it, or "
        "through the conditional half alone, which costs less and is another gradient.",
    )
    guidance: ImageGuidanceConfig | None = Field(
        None,
        description="Of a policy that reads source images as a condition of their own (mot): guidance by them, and where guidance_scale acts. "
        "Null is by the text alone, at all noise levels.",
    )
    shift: float | None = Field(
        1.0,
        gt=0,
        description="Timestep shift of evenly spaced noise levels; 1 is none, null takes the model's own levels.",
    )
    height: int | None = Field(None, ge=8, description="Image height in pixels; null is the model's own.")
    width: int | None = Field(None, ge=8, description="Image width in pixels; null is the model's own.")
    resolution_schedule: tuple[tuple[int, int, int], ...] = Field(
        (), description="[from_step, height, width] entries, rising; before the first one height and width hold."
    )

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Raises ValueError where one of these fields says something."""
        for name in names:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {value} {why}")

    @model_validator(mode="after")
    def _window(self) -> FlowDrawing:
        limit = self.num_inference_steps - 1
        for name, window in (("sde_window", self.sde_window), ("sde_window_range", self.sde_window_range)):
            if window is not None and not 0 <= window[0] < window[1] <= limit:
                raise ValueError(
                    f"{name} [{window[0]}, {window[1]}) does not fit num_inference_steps = {self.num_inference_steps}: it "
                    f"needs 0 <= first < last <= {limit} (the last step is always deterministic)"
                )
        if self.sde_window_size is None:
            if self.sde_window_range is not None:
                raise ValueError("sde_window_range says where a changing window may lie; give sde_window_size, too")
            self._refuse(_MOTION, "says how a changing window moves; give sde_window_size, too, or leave it out")
            return self
        if self.sde_window_motion == "random":
            self._refuse(_PACE, "is the pace of sde_window_motion = progressive, but the window jumps; leave it out")
        if self.sde_window is not None:
            raise ValueError(
                "sde_window fixes the window and sde_window_size lets it change its place; give one of them"
            )
        first, last = self.sde_window_range or (0, limit)
        if self.sde_window_size > last - first:
            raise ValueError(
                f"sde_window_size = {self.sde_window_size} is longer than the range [{first}, {last}) it may lie in; lower "
                "it, or widen sde_window_range"
            )
        return self

    @model_validator(mode="after")
    def _guidance_gradient(self) -> FlowDrawing:
        if self.guidance_gradient == "both":
            return self
        if self.guidance is not None:
            raise ValueError(
                f"guidance_gradient = {self.guidance_gradient} is of guidance by the text alone, and the section guidance adds that by "
                "source images (mot), whose gradient goes through all branches; leave one of them out"
            )
        if self.guidance_scale == 1:
            raise ValueError(
                f"guidance_gradient = {self.guidance_gradient} leaves a half of guidance out of the gradient, but guidance_scale = 1 is no "
                "guidance; set guidance_scale above 1, or leave guidance_gradient out"
            )
        return self

    @model_validator(mode="after")
    def _resolutions(self) -> FlowDrawing:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height = {self.height} and width = {self.width}: give both, or neither")
        starts = [start for start, _, _ in self.resolution_schedule]
        if starts != sorted(set(starts)) or any(min(entry) < 0 for entry in self.resolution_schedule):
            raise ValueError(f"resolution_schedule starts at steps {starts}: they must rise, from 0 or later")
        return self

    @model_validator(mode="after")
    def _cps_noise(self) -> FlowDrawing:
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(
                f"noise_level = {self.noise_level} is more than 1, the most that kind = cps knows; lower it or use "
                "kind = flow_sde"
            )
        return self
