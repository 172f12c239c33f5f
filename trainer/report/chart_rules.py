"""Which chart a key belongs to: the first rule that takes it. Rules come in the order in which their charts are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

TASKS = ("understand", "generate")
SECTIONS = (
    "Rewards",
    "Form and content",
    "Update",
    "Advantages",
    "Image statistics",
    "Time",
    "Hardware",
    "Reward latency",
    "Failures",
    "Other",
)


@dataclass(frozen=True)
class Rule:
    """A kind of chart.

    Attributes:
        pattern: of keys, those of a task without the task before them.
        section: where the chart stands; empty: the key has none, because another one says the same.
        title, label: of the chart, and of the curve in it; `\\1` is what the pattern's first brackets took.
        unit: show 0 to 1 whole where all values lie there. zero: begin at 0 where none is negative.
        counts: it counts something, and rows name the key only where it is not 0.
        by_task: curves of both tasks stand in one chart, and are called by them.
    """

    pattern: str
    section: str
    title: str
    label: str
    unit: bool = False
    zero: bool = True
    counts: bool = False
    by_task: bool = False

    @cached_property
    def match(self) -> re.Pattern[str]:
        return re.compile(self.pattern)


RULES = (
    Rule("dataset/(.+)/([^/]+)/mean", "Rewards", r"\2 by data set", r"\1", unit=True, zero=False),
    Rule("reward/(.+)/mean", "Rewards", r"\1 by task", "", unit=True, zero=False, by_task=True),
    Rule("reward/(.+)/valid_share", "Rewards", "share of valid scores", r"\1", unit=True),
    Rule("reward/(.+)/std", "Rewards", "spread of scores", r"\1"),
    Rule("text/length", "Form and content", "length, tokens", "mean"),
    Rule("text/length_max", "Form and content", "length, tokens", "longest"),
    Rule("plan/length(_max)?", "Form and content", "length of plans, tokens", r"plans\1"),
    Rule("text/truncated_share", "Form and content", "share of answers cut off", "training", unit=True),
    Rule("plan/truncated_share", "Form and content", "share of plans cut off", "plans", unit=True),
    Rule("text/entropy", "Form and content", "entropy, nats a token", "answers"),
    Rule("image/entropy", "Form and content", "entropy, nats a token", "images"),
    Rule("plan/entropy", "Form and content", "entropy, nats a token", "plans"),
    Rule("text/accuracy_given_format", "", "", ""),  # stands beside form and accuracy
    Rule("(text|plan|image)/(.+)", "Form and content", r"\1: \2", r"\2"),
    Rule("loss/sft", "Update", "supervised loss", "loss"),
    Rule("loss/(ce|mse)", "Update", "packs: errors", r"\1"),
    Rule("packed/(.+)/(ce|mse)", "Update", r"packs: \2 by group", r"\1"),
    Rule("ratio/mean", "Update", "ratio − 1", "ratio", zero=False),
    Rule("ratio/(min|max)", "", "", ""),  # the ends of its band
    Rule("ratio/std", "Update", "spread of ratios", "", by_task=True),
    Rule("ratio/replay_error", "Update", "replay error", "", by_task=True),
    Rule("clip_share", "Update", "clip share", "", by_task=True),
    Rule("skipped_share", "Update", "share of samples without a gradient", "", unit=True, by_task=True),
    Rule("kl", "Update", "KL to the starting weights", "", by_task=True),
    Rule("loss/kl", "", "", ""),  # is kl
    Rule("grad_norm", "Update", "gradient norm", "before clipping"),
    Rule("importance/(mean|max)", "Update", "importance of older samples", r"\1", by_task=True),
    Rule("importance/(.+)", "Update", "importance of older samples: shares", r"\1", unit=True, by_task=True),
    Rule("drift/(.+)", "Update", "rollout servers and trainer apart", r"\1", by_task=True),
    Rule("nft/(positive|negative)", "Update", "DiffusionNFT: error of the branches", r"\1"),
    Rule("nft/(.+)", "Update", r"DiffusionNFT: \1", r"\1"),
    Rule("loss/kl_old", "Update", "AWM: drift", "drift"),
    Rule("dpo/(chosen|rejected)", "Update", "DPO: log-ratios", r"\1", zero=False),
    Rule("dpo/((?:reward_)?margin)", "Update", "DPO: margin", r"\1", zero=False),
    Rule("dpo/accuracy", "Update", "DPO: accuracy", "accuracy", unit=True),
    Rule("dpo/(.+)", "Update", r"DPO: \1", r"\1"),
    Rule("lr", "Update", "learning rate", "lr"),
    Rule("loss/policy", "Update", "policy loss", "", zero=False, by_task=True),
    Rule("loss/pull", "Update", "size of the policy terms", "", by_task=True),
    Rule("loss_share", "Update", "share of the pull", "", unit=True, by_task=True),
    Rule("loss/(.+)", "Update", r"loss: \1", r"\1"),
    Rule("packed/fill", "Update", "packs: how full", "share", unit=True),
    Rule("packed/(text_tokens|latent_tokens|tokens)", "Update", "packs: tokens of a step", r"\1"),
    Rule("packed/rows", "Update", "packs: rows of a step", "rows"),
    Rule("packed/(.+)/rows", "Update", "packs: rows of a step, by group", r"\1"),
    Rule("(?:packed/left_out|(?:sft|preferences)/skipped)", "Update", "rows that cannot be used", "passed over"),
    Rule("sft/tokens", "Update", "tokens learned in a step", "tokens"),
    Rule("adv/(mean|std|abs_mean|clip_share)", "Advantages", "advantage, all rewards together", r"\1", zero=False),
    Rule("adv/trained_share", "Advantages", "share of the rollouts that train", "", unit=True, by_task=True),
    Rule("adv/(.+)/abs_mean", "Advantages", "mean |advantage| per reward", r"\1"),
    Rule("adv/(.+)/zero_group_share", "Advantages", "groups without signal", r"\1", unit=True),
    Rule("(adv/.+)", "Advantages", r"\1", r"\1"),
    Rule("resampled", "Advantages", "groups sampled again", "times a step"),
    Rule("stats/([^/]+)", "Image statistics", r"\1", "training"),
    Rule("time/(rollout|reward_wait|update|total)", "Time", "time per step, seconds", r"\1"),
    Rule("time/(encode|denoise|decode)", "Time", "rollout, seconds", r"\1"),
    Rule("reward_wait_share", "Time", "share of a step spent waiting", "share"),
    Rule("wait/last_latency_s", "Time", "waiting for rewards, seconds", "last answer took"),
    Rule("wait/excess_s", "Time", "waiting for rewards, seconds", "excess"),
    Rule("time/(.+)", "Time", r"\1, seconds", r"\1"),
    Rule("(.+)_per_s", "Hardware", r"\1 a second", r"\1"),
    Rule("memory/(.+)", "Hardware", "GPU memory, GiB", r"\1"),
    Rule("perf/mfu_(.+)", "Hardware", "model FLOPs utilization", r"\1"),
    Rule("rollout/(.+)", "Hardware", r"rollout servers: \1", r"\1"),
    Rule("latency_ms/(.+)/(p50|p95|max)", "Reward latency", r"\1: latency, ms", r"\2"),
    Rule("cached/(.+)", "Reward latency", "scores from the cache", r"\1", counts=True),
    Rule("failed/([^/]+)/(.+)", "Failures", r"\1: failed scores of a step", r"\2", counts=True),
    Rule("(.+)", "Other", r"\1", r"\1"),
)

# Of evaluations that are no reward's: pattern, section, title, and the curve's name, which is a set's or a part's.
HELD_OUT = tuple(
    (re.compile(pattern), section, title, label)
    for pattern, section, title, label in (
        ("stats/([^/]+)/length", "Form and content", "length, tokens", r"\1"),
        ("stats/([^/]+)/truncated", "Form and content", "share of answers cut off", r"\1"),
        ("stats/([^/]+)/distinct", "Form and content", "share of answers that differ", r"\1"),
        ("stats/([^/]+)/accuracy_given_format", "", "", ""),  # stands beside form and accuracy
        ("stats/([^/]+)/([^/]+)", "Image statistics", r"\2", r"\1"),
        ("heldout/(ce|mse)", "Update", "packs: errors on held-out rows", r"\1"),
        ("heldout/mse/(.+)", "Update", "packs: mse on held-out rows by noise level", r"\1"),
        ("heldout/(.+)/(ce|mse)", "Update", r"packs: \2 on held-out rows by group", r"\1"),
        ("heldout/(.+)", "Update", r"\1 on held-out rows", r"\1"),
    )
)

# Sentences beside charts, by their titles.
NOTES = (
    (r"share of valid scores", "In training. A score that failed is masked, never a number."),
    (
        r"form and content, .*",
        "Accuracy given format: of the answers whose form holds, how many are right. Where only the form is learned, it stays flat.",
    ),
    (
        r"entropy, nats a token",
        "Of the distribution drawn from, estimated from the tokens that were drawn. Near 0 all answers are alike.",
    ),
    (
        r"groups without signal.*",
        "Share of groups whose valid scores are all equal: such a group teaches nothing about that reward.",
    ),
    (
        r"share of the pull",
        "Of what moves the weights, by the sizes of the tasks' policy terms. Far from even, one task hardly trains.",
    ),
    (r"policy loss", "Only its gradient has a meaning: while ratios are 1, it is minus the mean advantage."),
    (r"replay error", "0, or sampling and training do not compute the same."),
    (r"rows that cannot be used", "0 where all can be used; others take their places."),
    (r"share of a step spent waiting", "For rewards, after the last sample was drawn (reward_wait_share)."),
    (r"waiting for rewards, seconds", "Excess is waiting beyond the last answer's own latency."),
    (r"model FLOPs utilization", "Of the dense 16-bit peak."),
    (r"DiffusionNFT: error of the branches", "While the weights are those that drew the samples, both are one curve."),
)

# A chart all of whose values are at least this says nothing, and is left out.
FLOORS = {"share of valid scores": 1.0}
