"""Held-out images that are drawn after a thought, by a policy that writes and draws in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.config import Config, ConfigError, FlowSamplingConfig
from trainer.config.drawing import ImageGuidanceConfig
from trainer.config.generation import GenerationConfig
from trainer.data.formats.unireason.instructions import Instructions as Sentences
from trainer.data.formats.unireason.instructions import read_instructions
from trainer.evaluation.sets import EvaluationSet
from trainer.policies.base import Samples
from trainer.policies.generation import Generates, Instructions, Made
from trainer.types import Prompt, Sample


def think_and_draw(
    policy: Samples, prompts_P: Sequence[Prompt], seeds_B: Sequence[int], chosen: EvaluationSet, config: Config
) -> Iterator[list[Sample]]:
    """Samples with a thought as their text, a prompt's side by side, in micro-batches of `evaluation.batch_size`.

    Thoughts are the likeliest tokens, images the deterministic ODE from the noise of `seeds_B`; both are made as the set's other
    settings say, and as images of a set without thoughts are.

    Raises:
        ConfigError: the policy cannot do it.
    """
    if not isinstance(policy, Generates):
        raise ConfigError(
            f"evaluation.sets {chosen.name}.think = {chosen.think}: policy.type = {config.policy.type} does not write and draw in "
            "turns; leave it out"
        )
    settings = _settings(chosen, config)
    policy.check_generation(settings)
    prompts_B = [(prompt, number) for prompt in prompts_P for number in range(chosen.duplicates)]
    size = config.evaluation.batch_size
    for first in range(0, len(prompts_B), size):
        batch = prompts_B[first : first + size]
        prompts, seeds = [prompt for prompt, _ in batch], seeds_B[first : first + size]
        made = policy.generate(prompts, seeds, settings, instructions_of(config))
        yield [_sample(prompt, number, each) for (prompt, number), each in zip(batch, made, strict=True)]


def instructions_of(config: Config) -> Instructions:
    """The fixed sentences that the recipe's rows begin with. Raises DataError naming the field of one that cannot be read."""
    said = Sentences() if config.packed is None else read_instructions(config.packed)
    return Instructions(said.think, said.refine)


def _settings(chosen: EvaluationSet, config: Config) -> GenerationConfig:
    sampling, evaluation = config.sampling, config.evaluation
    assert isinstance(sampling, FlowSamplingConfig) and chosen.think is not None, "the configuration has checked it"
    if sampling.shift is None:
        raise ConfigError(
            f"evaluation.sets {chosen.name}.think needs evenly spaced noise levels, and sampling.shift = null takes the model's own; "
            "set sampling.shift to a number, 1 for no shift"
        )
    guided = sampling.guidance or ImageGuidanceConfig(image=1.0)
    return GenerationConfig(
        think=True,
        num_inference_steps=chosen.num_inference_steps,
        shift=sampling.shift,
        text_guidance=chosen.guidance_scale,
        image_guidance=guided.image,
        guidance_interval=guided.interval,
        renorm=guided.renorm,
        renorm_min=guided.renorm_min,
        height=evaluation.height or sampling.height,
        width=evaluation.width or sampling.width,
        temperature=0.0,
        max_new_tokens=chosen.think,
    )


def _sample(prompt: Prompt, number: int, made: Made) -> Sample:
    thoughts = [each for each in made.texts if each.purpose == "thought"]
    return Sample(
        id=f"{prompt.id}#{number}",
        group_id=prompt.id,
        prompt=prompt,
        images=made.images[-1:],
        text=thoughts[0].text if thoughts else None,
        finished=all(each.finished for each in thoughts),
    )
