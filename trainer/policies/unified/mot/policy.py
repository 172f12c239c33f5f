"""The policy: packs are read, images drawn by the arithmetic of all rectified flows, prompts answered in turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.config.generation import GenerationConfig
from trainer.data.sequences import SequencePlan
from trainer.policies.base import Laying, PackOutput, Replays, SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.generation import Instructions, Made
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.unified.mot.flow import MotFlow
from trainer.policies.unified.mot.inference.context import canvas_size
from trainer.policies.unified.mot.inference.turns import Turns
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.texts import MotTexts, answer_logits
from trainer.types import Prompt, Replay, Rollout


class MotPolicy:
    """Implements `Samples`, `Replays`, `Denoises`, `ReadsPacks` and `NamesGroups` of `trainer.policies.base`, and `Generates`."""

    def __init__(self, model: MotModel, *, keep_reference: bool) -> None:
        self.model = model
        self._flow = FlowPolicy(MotFlow(model), keep_reference=keep_reference)
        texts = MotTexts(model)
        self._texts = TokenPolicy(
            texts, keep_reference=keep_reference, drawer=texts, logits=answer_logits, copy=self._flow.copy
        )

    @property
    def trainable(self) -> nn.Module:
        return self.model.network

    @property
    def group_of(self) -> Mapping[str, str]:
        """`matrices`: the two-dimensional weights inside layers, which Muon can take; `rest`: all others."""
        return {
            name: "matrices" if ".layers." in name and parameter.dim() == 2 else "rest"
            for name, parameter in self.trainable.named_parameters()
            if parameter.requires_grad
        }

    @property
    def copy(self) -> nn.Module | None:
        return self._flow.copy

    @property
    def about(self) -> str:
        return self.model.about

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompts that cannot be read, and their number."""
        asked = [prompt for prompt in prompts if prompt.task == "understand"]
        self._texts.check_prompts(asked)
        self._flow.check_prompts([prompt for prompt in prompts if prompt.task != "understand"])

    def lay(self, plan: SequencePlan, laying: Laying) -> LaidRow:
        return self.model.lay(plan, laying)

    def read(self, pack: Sequence[LaidRow]) -> PackOutput:
        return self.model.read(pack)

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: SamplingPlan | TokenPlan
    ) -> Iterator[Rollout]:
        """Answers by a TokenPlan, images by a SamplingPlan."""
        if isinstance(plan, TokenPlan):
            return self._texts.sample(prompts_P, group_size, seeds_B, plan)
        return self._flow.sample(prompts_P, group_size, seeds_B, plan)

    def parts(self, rollout: Rollout) -> Sequence[slice]:
        return self._of(rollout).parts(rollout)

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        return self._of(rollout).replay(rollout, part, reference=reference)

    def _of(self, rollout: Rollout) -> Replays:
        return self._texts if isinstance(rollout.trace, AnswerTrace) else self._flow

    def check_size(self, height: int | None, width: int | None) -> None:
        self._flow.check_size(height, width)

    def clean(self, rollout: Rollout) -> Tensor:
        return self._flow.clean(rollout)

    def encode_images(self, pixels_BHWC: Tensor) -> Tensor:
        return self._flow.encode_images(pixels_BHWC)

    def predict(self, prompts_B: Sequence[Prompt], x: Tensor, sigma_B: Tensor, *, reference: bool = False) -> Tensor:
        return self._flow.predict(prompts_B, x, sigma_B, reference=reference)

    def check_generation(self, settings: GenerationConfig) -> None:
        """Raises ConfigError where images of the size that is asked for cannot be drawn."""
        try:
            canvas_size(self.model, settings.height, settings.width)
        except ConfigError as error:
            raise ConfigError(f"--height, --width: {error}") from error

    def generate(
        self,
        prompts_B: Sequence[Prompt],
        seeds_B: Sequence[int],
        settings: GenerationConfig,
        instructions: Instructions,
    ) -> list[Made]:
        return Turns(self.model, settings, instructions).made(prompts_B, seeds_B)
