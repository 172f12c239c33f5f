"""Every key of a row of metrics.jsonl: how those with a name in them are built and read, and what each means, in a sentence.

`<reward>` and the like stand for a name.
"""

from __future__ import annotations

import re
from functools import lru_cache

_FLAT = re.compile(r"^(?:(\w+)/)?adv/([^/]+)/zero_group_share$")
_MENTIONED = re.compile(r"[a-z_]+(?:/(?:<[a-z ]+>|[a-z_0-9]+))*")

SENTENCES: dict[str, str] = {
    "step": "Finished training steps; row 0 is the evaluation before training.",
    "eval/<reward>": "Mean score on held-out prompts: the same prompts and the same starting noise every time, "
    "deterministic sampling, averaged weights. This is the number to compare.",
    "eval/<reward>/valid_share": "Share of the held-out samples that got a score. A failed score is left out of the "
    "mean, never counted as 0.",
    "eval/<reward>/low": "Lower end of the mean's 95 % interval, by bootstrap over prompts; eval/<reward>/high is the "
    "upper end.",
    "eval/<reward>/gain": "Mean change since the evaluation before training, paired by sample; "
    "eval/<reward>/gain_low and eval/<reward>/gain_high bound its 95 % interval.",
    "eval/<set>/<reward>": "The same of a named evaluation set.",
    "eval/<set>/overall": "UniGenBench's overall accuracy of a set: the mean of the primary dimensions. "
    "overall_official is the same of the answers as the benchmark's own tool reads them, which is the leaderboard's way; "
    "overall_micro counts every test point the same, answered_share is the share of images with "
    "verdicts, primary/<dimension> the accuracy of a dimension.",
    "eval/step": "The step whose weights the row's evaluation is of, where they were scored while training went on.",
    "stats/saturation": "Mean saturation of a few of the step's images, 0 to 1. Likewise stats/brightness, "
    "stats/contrast, stats/edge_density (share of edge pixels), stats/colour_entropy (bits) and stats/sharpness.",
    "stats/diversity": "Mean distance between the images of one prompt, 0 to 1; near 0 they are all alike.",
    "stats/<set>/saturation": "The same of the held-out images: stats/heldout/saturation, stats/heldout/brightness, "
    "stats/heldout/contrast, stats/heldout/edge_density, stats/heldout/colour_entropy, stats/heldout/sharpness, "
    "stats/heldout/diversity, or with a set's name.",
    "stats/<set>/length": "Mean length of the held-out texts, in tokens, the end included. Likewise stats/<set>/truncated, the "
    "share that was cut off at the most tokens they may have; stats/<set>/distinct, the share of a prompt's texts that differ from each "
    "other; and stats/<set>/accuracy_given_format, the mean accuracy of the texts whose format reward is at least 0.5.",
    "text/length": "Mean length of the step's answers, in tokens, the end included; text/length_max is that of the longest.",
    "text/truncated_share": "Share of the step's answers that were cut off at sampling.max_new_tokens, of a policy with tasks at "
    "sampling.tasks.understand.max_new_tokens.",
    "text/entropy": "Mean of -log p over all tokens that were drawn, in nats: an estimate of the entropy of the distribution drawn "
    "from (after temperature, top-k and top-p), averaged over the places that answers visit. Near 0 all answers to a prompt are "
    "alike, and nothing can be learned from comparing them.",
    "image/entropy": "The same of images that are drawn by tokens: mean of -log p over their tokens, in nats, after guidance and "
    "temperature.",
    "plan/length": "Of what is written before an image is drawn, where sampling.tasks.generate.think asks for it: mean length in tokens. "
    "plan/length_max, plan/truncated_share (at sampling.tasks.generate.think.max_new_tokens) and plan/entropy are as those of answers.",
    "understand/<key>": "The same of the understand task alone, answers to questions about images: understand/adv/mean, "
    "understand/ratio/mean, understand/loss/policy and so on. generate/<key> is of the task that draws images.",
    "understand/loss_share": "How much of what moves the weights is this task's, from 0 to 1, by the size of the tasks' policy terms times "
    "their loss_weight; generate/loss_share is the rest. loss/pull is the size: the mean of |advantage times ratio| of what counts; of a loss on the "
    "forward process the mean of what a matching error's gradient is multiplied by.",
    "text/accuracy_given_format": "Mean of the accuracy reward over the step's answers whose format reward is at least 0.5. Which "
    "columns these are, rewards.roles says; else those of the names accuracy and format.",
    "alarm/drift": "1 where answers drawn by a rollout server are further from what the policy reads than sampling.vllm.drift_alarm.",
    "alarm/other_half/<set>/<reward>": "1 where a reward of one task fell by more than its interval since the start while one of the other "
    "task surely rose.",
    "alarm/own/<name>": "1 where an alarm of your own (evaluation.alarms.own) said that something is wrong; likewise in alarms.json.",
    "alarm/<name>": "1 where an evaluation showed a sign of reward hacking; the sentence is in eval/step_*/alarms.json.",
    "reward/<reward>/mean": "Mean score of the step's training rollouts; other prompts each step, and noise is injected, "
    "so it jumps about.",
    "dataset/<data set>/<reward>/mean": "The same of one data set's rollouts, where a step has prompts of several.",
    "reward/<reward>/std": "Spread of those scores (unbiased).",
    "reward/<reward>/valid_share": "Share of the scores asked for in this step that came back as a number.",
    "adv/<reward>/abs_mean": "How far, in standard deviations of its group, a score lies from the group's mean, on "
    "average: the strength of this reward's signal.",
    "adv/<reward>/zero_group_share": "Share of groups in which all valid scores are equal, so that this reward "
    "teaches nothing there.",
    "adv/mean": "Mean advantage of the samples that train; near 0 by construction.",
    "adv/std": "Spread of those advantages; near 1 when they are whitened.",
    "adv/abs_mean": "Their mean size.",
    "adv/clip_share": "Share of advantages beyond advantage.adv_clip, which are clamped to it.",
    "resampled": "How often the step was sampled again, for groups whose rewards did not differ; sampling.max_resamples is the "
    "most. Rewards are means over all that was drawn.",
    "adv/trained_share": "Share of the rollouts that train: those with at least one valid score.",
    "skipped_share": "Share of the step's samples that the update did not compute, as they have no gradient: a weight of 0, or, where no KL "
    "holds every sample, an advantage of 0. They count in the means that a loss is; ratios and the like are of those computed.",
    "loss/policy": "The clipped surrogate, per sample and stochastic step, or per token; only its gradient has a meaning. While ratios are 1 it is "
    "minus the mean advantage: 0, but where an advantage was clamped to adv_clip.",
    "loss/kl": "The KL penalty before its weight kl_beta.",
    "loss/sft": "The supervised loss; where it stands beside an objective, before its weight.",
    "sft/skipped": "Images or conversations that could not be read in this step; others took their places.",
    "sft/tokens": "How many tokens of the assistant the step learned, over all ranks.",
    "loss/ce": "Packed training: the cross-entropy of the learnt texts, the mean over their tokens as packed.loss.reduction weighs them.",
    "loss/mse": "Packed training: the squared error of the velocities of noised latents, the mean over their tokens.",
    "packed/tokens": "Tokens of the step's packs, over all ranks; packed/rows, packed/text_tokens and packed/latent_tokens are their rows, "
    "learnt text tokens and noised latent tokens.",
    "packed/fill": "packed/tokens by what the step's packs may have (packed.max_tokens each): the rest is left empty, not padded.",
    "packed/<group>/ce": "Plain means over the step's tokens of one group of packed.groups, whatever packed.loss.reduction says; "
    "packed/<group>/mse is of its images, packed/<group>/rows how many of its rows the step had.",
    "packed/left_out": "Rows that were met in the step and cannot be used; each is named once.",
    "time/packs": "Seconds in which the slowest rank waited for its packs, part of time/update; more of packed.workers make it less.",
    "packs_per_s": "Packs learned from per second.",
    "heldout/ce": "The cross-entropy of the texts of rows that packed.hold_out keeps from training, with the averaged weights.",
    "heldout/mse": "The squared error of the velocities of their images, the mean over the noise levels .25, .5, .75 and .95. Noise is the "
    "same every time.",
    "heldout/<group>/ce": "Plain means over the held-out rows of one group; heldout/<group>/mse is of its images.",
    "heldout/mse/<level>": "The same at this noise level alone.",
    "loss/imitation": "program vlm_base: the cross-entropy of the given answers, the mean over their tokens.",
    "loss/drawn": "program pair_base: the cross-entropy of the given images' tokens, the mean over them.",
    "loss/answers": "program pair_base: the cross-entropy of the given answers, the mean over their tokens.",
    "loss/pixels": "program pair_base: the squared error of the decoder of image tokens, the mean over all numbers (-1 to 1).",
    "loss/flow": "program quickstart_base: the squared error of the predicted velocity, the mean over all numbers.",
    "preferences/skipped": "Pairs that could not be read in this step; others took their places.",
    "importance/mean": "Mean weight that corrects for samples of older weights or of another engine, before its cap; "
    "importance/max is the largest, importance/capped_share the share beyond the cap.",
    "importance/effective_share": "How many tokens these weights leave, as a share: (sum w)^2 / (n sum w^2). 1: all weigh the same.",
    "drift/mean": "Mean |log-probability when a token was drawn - when the policy reads it|, of answers that older weights or a "
    "rollout server drew; drift/max is the largest, drift/k3 the KL between the two, estimated.",
    "rollout/servers": "Rollout servers that took the weights after the last update and draw with them.",
    "rollout/probe_error": "Largest difference between a log-probability of one known answer at a rollout server and here, under the "
    "weights that were just pushed.",
    "time/push": "Seconds in which weights were written, pushed to the rollout servers, and proved there; part of time/rollout.",
    "rollout/weight_version_lag": "How many updates behind the weights were at the servers that drew this step's answers.",
    "nft/reward": "DiffusionNFT: mean of the advantages as probabilities of being good; near 0.5 by construction.",
    "nft/positive": "DiffusionNFT: error of the branch that good images pull on; nft/negative is the other's.",
    "nft/drift": "DiffusionNFT: mean squared distance of the velocities from those of the sampling policy.",
    "loss/kl_old": "AWM with objective.old_kl_beta: that distance, before its weight.",
    "dpo/margin": "DPO: how much further than the reference the policy tells better from worse, on average.",
    "dpo/accuracy": "DPO: share of pairs in which it does.",
    "dpo/reward_margin": "DPO on answers: dpo/margin times objective.beta, the difference of the implicit rewards.",
    "dpo/chosen": "DPO on answers: mean log-ratio of the chosen answers to the reference; dpo/rejected is that of the others. Both may "
    "fall: what counts is the difference.",
    "dpo/kl": "DPO on answers: divergence from the starting weights on the given tokens (k3), the mean over both answers.",
    "heldout/loss": "The loss on the rows that hold_out keeps from training, with the averaged weights; other keys with heldout/ are "
    "what the objective shows of them.",
    "ratio/mean": "Mean probability ratio of new to old policy; exactly 1 before a step's first update. Its smallest "
    "and largest are ratio/min and ratio/max. All of ratio/, clip_share and what else is a mean over terms are null in a step in which none "
    "has a weight: no score came, or every group was left out.",
    "ratio/std": "Spread of the ratios around their mean: how far the updates of a step have moved the policy.",
    "ratio/replay_error": "Largest difference between a log-probability when it was sampled and when it is computed again "
    "before the update; anything but 0 means that sampling and training disagree.",
    "clip_share": "Share of ratios outside 1 ± clip_range: there the sample no longer pulls.",
    "kl": "Mean divergence from the starting weights: of the velocities, or of texts estimated from the drawn tokens (k3); 0 when "
    "kl_beta is 0.",
    "grad_norm": "Global norm of the gradient before it is clipped to optim.max_grad_norm.",
    "lr": "Learning rate of the step.",
    "time/rollout": "Seconds in which samples were drawn; rewards are computed meanwhile.",
    "time/reward_wait": "Seconds the trainer stood still for scores after the last sample was drawn.",
    "time/encode": "Seconds of this process's rollout in which prompts were encoded; cached ones take none.",
    "time/denoise": "Seconds of it in which latents were denoised.",
    "time/decode": "Seconds of it in which latents became images.",
    "time/cpu": "CPU seconds of this process (all its threads) in the step; services do not count.",
    "time/update": "Seconds for advantages, replay, gradients and the optimizer.",
    "time/update_hidden": "Seconds of time/update that passed while scores were awaited (optim.early_gradient); not in time/reward_wait.",
    "time/evaluate": "Seconds of a held-out evaluation, its rewards included; not part of time/total.",
    "time/checkpoint": "Seconds that saving held training up since the row before; files are written in the background. "
    "Not part of time/total.",
    "time/total": "Seconds of the step: rollout, wait, update.",
    "reward_wait_share": "time/reward_wait by time/total.",
    "wait/last_latency_s": "How long the last micro-batch's answer took: a wait of this length cannot be avoided.",
    "wait/excess_s": "Waiting beyond that: time lost to queues and retries.",
    "perf/mfu_rollout": "Model FLOPs of the rollout by what the device could do at its dense 16-bit peak meanwhile.",
    "perf/mfu_update": "The same of the update: forward and backward, neither recomputation nor the KL's reference.",
    "memory/allocated_gib": "GiB of GPU memory in use at the end of the step, on the fullest rank; absent on a CPU.",
    "memory/peak_gib": "The most in use at any moment of the step.",
    "images_per_s": "Training images sampled, scored and learned from per second.",
    "tokens_per_s": "Training tokens drawn, scored and learned from per second; those of prompts do not count.",
    "texts_per_s": "Given conversations or pairs learned from per second.",
    "latency_ms/<reward>/p50": "Half of the step's micro-batches were answered faster, from submit to answer; "
    "latency_ms/<reward>/p95: nineteen of twenty; latency_ms/<reward>/max: all.",
    "failed/<reward>/<code>": "Scores of this step that failed, by code (timeout, overloaded, upstream, internal, "
    "parse_error, non_finite, out_of_range, client_queue, changed_scorer, ...). They are masked, never replaced by a number.",
    "cached/<reward>": "Scores of this step that came from the service's cache.",
}


def reward(name: str, what: str) -> str:
    """The key of a reward's training scores; `what` is mean, std or valid_share."""
    return f"reward/{name}/{what}"


def dataset_mean(dataset: str, name: str) -> str:
    """The key of a reward's mean over the rollouts of one data set."""
    return f"dataset/{dataset}/{name}/mean"


def signal(name: str, what: str) -> str:
    """The key of how much a reward tells the answers of a group apart; `what` is abs_mean or zero_group_share."""
    return f"adv/{name}/{what}"


def failed(name: str, code: str) -> str:
    """The key of a reward's failed scores, by code."""
    return f"failed/{name}/{code}"


def latency(name: str, quantile: str) -> str:
    """The key of how long a reward's micro-batches took; `quantile` is p50, p95 or max."""
    return f"latency_ms/{name}/{quantile}"


def cached(name: str) -> str:
    """The key of a reward's scores that came from the service's cache."""
    return f"cached/{name}"


def reward_of(key: str) -> str | None:
    """The name in `reward/<name>/mean`; None for every other key."""
    return _between(key, "reward/", "/mean")


def signal_of(key: str) -> tuple[str | None, str] | None:
    """Task (None where the policy has one) and name in `<task>/adv/<name>/zero_group_share`; None for every other key."""
    found = _FLAT.match(key)
    return None if found is None else (found[1], found[2])


def failed_of(key: str) -> tuple[str, str] | None:
    """Name and code in `failed/<name>/<code>`; None for every other key."""
    parts = key.split("/", 2)
    return (parts[1], parts[2]) if parts[0] == "failed" and len(parts) == 3 else None


def sentence_of(key: str) -> str | None:
    """What a key means; None where nobody has said it."""
    if (said := next((sentence for pattern, sentence in _patterns() if pattern.fullmatch(key)), None)) is not None:
        return said
    first, _, rest = key.partition("/")
    told = {"heldout": "heldout/loss", "understand": "understand/<key>", "generate": "understand/<key>"}
    return SENTENCES[told[first]] if first in told and rest and sentence_of(rest) is not None else None


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Each key with its sentence, then the keys that a sentence tells of beside its own."""
    own = list(SENTENCES.items())
    beside = [(found, text) for text in SENTENCES.values() for found in _MENTIONED.findall(text) if "/" in found]
    return [(re.compile(re.sub(r"<[a-z ]+>", "[^/]+", key)), text) for key, text in [*own, *beside]]


def _between(key: str, start: str, end: str) -> str | None:
    name = key.removeprefix(start).removesuffix(end)
    return name if name and key == f"{start}{name}{end}" else None
