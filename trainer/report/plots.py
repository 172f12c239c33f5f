"""Which curves the page shows, in which section. A curve whose numbers were never recorded is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.records import keys
from trainer.report.run_folder import Points, RunFolder, percent
from trainer.report.svg import DASHES, INK, MARKERS, SERIES, Plot, drawing, values_in_unit_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("rollout", "reward_wait", "update")
SAMPLING_PHASES = ("encode", "denoise", "decode")
_MARKED_POINTS = 60  # more markers would hide the line
_PER_PLOT = 3  # rewards in one plot; more would be a tangle on a phone


Read = Callable[[str, Callable[[Sequence[float]], float] | None], Points]  # RunFolder.points or .counts


@dataclass(frozen=True)
class Line:
    """One curve: its key in a row and its name in the legend."""

    key: str
    label: str


def reward_plots(run: RunFolder) -> list[Plot]:
    """Per reward the training mean and the held-out evaluation; then the shares that had a valid score."""
    plots: list[Plot] = []
    trained_on = run.trained_on()
    for name in run.rewards():
        training, heldout = run.points(keys.reward(name, "mean")), run.points(f"eval/{name}")
        if not _numbers(training) and not _numbers(heldout):
            continue
        note = "" if run.is_trained_on(name) or not trained_on else "Never used in training."
        words = [_ends(label, points) for label, points in (("training", training), ("held-out", heldout)) if points[0]]
        with drawing(name, plots, alt=f"{name} over steps. {' '.join(words)}", note=note) as axes:
            if _numbers(training):
                axes.plot(*training, color=SERIES[1], linewidth=1, alpha=0.85, label="training")
                _shade(axes, run.points, keys.reward(name, "mean"), SERIES[1])
            intervals = run.points(f"eval/{name}/low"), run.points(f"eval/{name}/high")
            if _numbers(intervals[0]) and intervals[0][0] == intervals[1][0]:
                axes.fill_between(*intervals[0], intervals[1][1], color=SERIES[0], alpha=0.2, linewidth=0)
            if _numbers(heldout):
                few = len(heldout[0]) <= _MARKED_POINTS
                look = {"linewidth": 2.4, "marker": "o"} if few else {"linewidth": 1.6}
                axes.plot(*_without_gaps(heldout), color=SERIES[0], label="held-out", **look)
            if values_in_unit_range([*training[1], *heldout[1]]):
                axes.set_ylim(0, 1.03)
            for step, _ in run.config_changes:
                axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
        plots += _dataset_plots(run, name)
    shares = [value for name in run.rewards() for value in run.points(keys.reward(name, "valid_share"), _least)[1]]
    if any(value < 1 for value in shares):
        plots += _per_reward(run, "share of valid scores", "reward/{}/valid_share", unit=True, note=_VALID)
    return plots


def text_plots(run: RunFolder) -> list[Plot]:
    """Of texts: the reward split into form, accuracy, and accuracy where the form holds; length; what is cut off; entropy.
    None for a run without texts."""
    of_texts = [key for key in run.series if _is_of_texts(key) or key in ("text/length", "image/entropy")]
    if not of_texts:
        return []
    plots = []
    roles = [run.setting("rewards", "roles", role) or role for role in ("format", "accuracy")]
    for title, means, given in (
        ("form and content, training", "reward/{}/mean", "text/accuracy_given_format"),
        *((f"form and content, {name or 'held-out'}", *told) for name, told in _heldout_keys(run).items()),
    ):
        lines = [*(Line(means.format(role), role) for role in roles), Line(given, "accuracy given format")]
        plots += _chart(run, title, lines, unit=True, note=_GIVEN)
    lengths = [Line("text/length", "mean"), Line("text/length_max", "longest"), Line("plan/length", "plans")]
    lengths += _heldout_lines(run, "length")
    plots += _chart(run, "length, tokens", lengths, zero=True)
    cut = [Line("text/truncated_share", "training"), *_heldout_lines(run, "truncated")]
    plots += _chart(run, "share of answers cut off", cut, unit=True)
    entropies = [Line("text/entropy", "answers"), Line("image/entropy", "images"), Line("plan/entropy", "plans")]
    return plots + _chart(run, "entropy, nats a token", entropies, zero=True, note=_ENTROPY)


_SHARE = "Of what moves the weights, by the sizes of the tasks' policy terms. Far from even, one task hardly trains."
_GIVEN = "Accuracy given format: of the answers whose form holds, how many are right. Where only the form is learned, it stays flat."
_ENTROPY = "Of the distribution drawn from, estimated from the tokens that were drawn. Near 0 all answers are alike."


def _is_of_texts(key: str) -> bool:
    """Whether a key is the mean length of a held-out set's texts."""
    return key.startswith("stats/") and key.count("/") == 2 and key.endswith("/length")


def _heldout_keys(run: RunFolder) -> dict[str, tuple[str, str]]:
    """Per set of held-out texts (the plain one by an empty name) the keys of its rewards, and of its accuracy given format."""
    sets = [key.split("/")[1] for key in run.series if _is_of_texts(key)]
    return {
        "" if name == "heldout" else name: (
            "eval/{}" if name == "heldout" else f"eval/{name}/{{}}",
            f"stats/{name}/accuracy_given_format",
        )
        for name in sets
    }


def _heldout_lines(run: RunFolder, statistic: str) -> list[Line]:
    """A statistic of each set of held-out texts."""
    sets = [key.split("/")[1] for key in run.series if _is_of_texts(key)]
    return [Line(f"stats/{name}/{statistic}", "held-out" if name == "heldout" else name) for name in sets]


def advantage_plots(run: RunFolder) -> list[Plot]:
    """How strongly each reward speaks, and how many of its groups say nothing; of each task by itself, where there are tasks."""
    plots: list[Plot] = []
    for task in run.tasks or [""]:
        own, told = (f"{task}/", f", {task}") if task else ("", "")
        plots += _per_reward(run, f"mean |advantage| per reward{told}", f"{own}adv/{{}}/abs_mean", zero=True)
        flat = f"{own}adv/{{}}/zero_group_share"
        plots += _per_reward(run, f"groups without signal{told}", flat, unit=True, note=_FLAT_GROUPS)
        lines = [Line("adv/abs_mean", "mean |adv|"), Line("adv/std", "std"), Line("adv/clip_share", "clipped share")]
        lines = [Line(f"{own}{line.key}", line.label) for line in lines]
        plots += _chart(run, f"advantage, all rewards together{told}", lines, zero=True)
    shares = [Line(f"{task}/loss_share", task) for task in run.tasks]
    return plots + (_chart(run, "share of the pull", shares, unit=True, note=_SHARE) if len(shares) > 1 else [])


def update_plots(run: RunFolder) -> list[Plot]:
    """Ratio, clipping, KL, gradient norm, learning rate, loss."""
    plots = [plot for task in run.tasks or [""] for plot in _ratio_plot(run, task)]
    for title, plain in (
        ("clip share", [Line("clip_share", "clip share")]),
        ("KL to the starting weights", [Line("kl", "KL")]),
        ("gradient norm", [Line("grad_norm", "before clipping")]),
        ("importance of older samples", [Line("importance/mean", "mean"), Line("importance/max", "largest")]),
        ("rollout servers and trainer apart", [Line("drift/mean", "mean"), Line("drift/max", "largest")]),
        ("DiffusionNFT: error of the branches", [Line("nft/positive", "positive"), Line("nft/negative", "negative")]),
        ("DiffusionNFT: drift", [Line("nft/drift", "drift")]),
        ("AWM: drift", [Line("loss/kl_old", "drift")]),
        ("DPO: accuracy", [Line("dpo/accuracy", "accuracy")]),
        ("supervised loss", [Line("loss/sft", "loss")]),
        ("loss on held-out rows", [Line("heldout/loss", "loss")]),
        ("packs: errors", [Line("loss/ce", "texts"), Line("loss/mse", "images")]),
        ("packs: errors on held-out rows", [Line("heldout/ce", "texts"), Line("heldout/mse", "images")]),
        ("packs: how full", [Line("packed/fill", "share")]),
        ("learning rate", [Line("lr", "lr")]),
        ("policy loss", [Line("loss/policy", "loss")]),
    ):
        lines = _by_task(run, plain)
        if any(value for line in lines for value in run.points(line.key)[1] if not math.isnan(value)):
            plots += _chart(run, title, lines, zero=title != "policy loss")
    return plots


def _by_task(run: RunFolder, lines: Sequence[Line]) -> list[Line]:
    """The lines as they are, and those of each task."""
    labels = {line: line.label for line in lines} if len(lines) > 1 else dict.fromkeys(lines, "")
    of_tasks = [
        Line(f"{task}/{line.key}", f"{task} {label}".strip()) for line, label in labels.items() for task in run.tasks
    ]
    return [*lines, *of_tasks]


def time_plots(run: RunFolder) -> list[Plot]:
    """Where a step's time goes, and what of it is waiting for rewards."""
    plots = _phases_plot(run, "time per step, seconds", "time/total", PHASES)
    plots += _phases_plot(run, "rollout, seconds", "time/rollout", SAMPLING_PHASES)
    plots += _chart(
        run,
        "share of a step spent waiting",
        [Line("reward_wait_share", "reward_wait_share")],
        zero=True,
        note="For rewards, after the last sample was drawn (reward_wait_share).",
    )
    plots += _chart(
        run,
        "waiting for rewards, seconds",
        [
            Line("time/reward_wait", "waited"),
            Line("wait/last_latency_s", "last answer took"),
            Line("wait/excess_s", "excess"),
        ],
        zero=True,
        note=_worst_excess(run),
    )
    return plots


def hardware_plots(run: RunFolder) -> list[Plot]:
    """How well the device is used and how full it is; empty where neither is known."""
    lines = [Line("perf/mfu_rollout", "rollout"), Line("perf/mfu_update", "update")]
    plots = _chart(run, "model FLOPs utilization", lines, zero=True, note="Of the dense 16-bit peak.")
    lines = [Line("memory/peak_gib", "peak"), Line("memory/allocated_gib", "after the step")]
    return plots + _chart(run, "GPU memory, GiB", lines, zero=True)


def failure_plots(run: RunFolder) -> list[Plot]:
    """Per reward its failed scores by code, in a step."""
    plots: list[Plot] = []
    for name, codes in run.failures().items():
        lines = [Line(keys.failed(name, code), code) for code in codes]
        for start in range(0, len(lines), _PER_PLOT):
            part = lines[start : start + _PER_PLOT]
            codes_shown = ", ".join(line.label for line in part)
            plots += _chart(run, f"{name}: {codes_shown} per step", part, zero=True, counts=True)
    return plots


def latency_plots(run: RunFolder) -> list[Plot]:
    """Per reward p50 and p95 of the time from submitting a micro-batch to its answer."""
    plots: list[Plot] = []
    for name in run.rewards():
        lines = [Line(keys.latency(name, quantile), quantile) for quantile in ("p50", "p95")]
        plots += _chart(run, f"{name}: latency, ms", lines, zero=True)
    return plots


_VALID = "In training. A score that failed is masked, never a number."
_FLAT_GROUPS = "Share of groups whose valid scores are all equal: such a group teaches nothing about that reward."


def _dataset_plots(run: RunFolder, name: str) -> list[Plot]:
    """A reward's training means by data set, where a step has several."""
    lines = [Line(keys.dataset_mean(dataset, name), dataset) for dataset in run.datasets()]
    parts = [lines[start : start + _PER_PLOT] for start in range(0, len(lines), _PER_PLOT)]
    return [plot for part in parts for plot in _chart(run, f"{name} by data set", part, unit=True)]


def _shade(axes: Axes, read: Read, key: str, color: str) -> list[float]:
    """From the least to the largest of what each point stands for, so that no spike is lost. Returns the ends."""
    (steps, low), (_, high) = read(key, _least), read(key, _largest)
    if low == high:
        return []
    axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    for end in (low, high):  # without an outline a single spike would be too pale to see
        axes.plot(steps, end, color=color, alpha=0.5, linewidth=0.6)
    return [*low, *high]


def _chart(
    run: RunFolder,
    title: str,
    lines: Sequence[Line],
    *,
    zero: bool = False,
    unit: bool = False,
    counts: bool = False,
    note: str = "",
) -> list[Plot]:
    """One plot of those `lines` that have numbers; no plot when none has. `counts`: a row without the key means 0."""
    read = run.counts if counts else run.points
    found = [(line, points) for line in lines if _numbers(points := read(line.key, None))]
    plots: list[Plot] = []
    if found:
        alt = f"{title} over steps. " + " ".join(_ends(line.label, points) for line, points in found)
        with drawing(title, plots, alt=alt, note=note) as axes:
            values = [value for _, points in found for value in points[1]]
            for number, (line, points) in enumerate(found):
                label = line.label if len(lines) > 1 else None
                axes.plot(*points, label=label, **(_look(number, points) if len(found) > 1 else {"color": SERIES[0]}))
                values += _shade(axes, read, line.key, SERIES[number % len(SERIES)])
            _limits(axes, values, zero=zero, unit=unit)
    return plots


def _per_reward(
    run: RunFolder, title: str, key: str, *, zero: bool = False, unit: bool = False, note: str = ""
) -> list[Plot]:
    """A chart with a line per reward (its name goes into `key`), in portions of `_PER_PLOT`."""
    lines = [Line(key.format(name), name) for name in run.rewards() if _numbers(run.points(key.format(name)))]
    plots: list[Plot] = []
    for start in range(0, len(lines), _PER_PLOT):
        part = lines[start : start + _PER_PLOT]
        heading = title if len(lines) > 1 else f"{title}: {part[0].label}"
        plots += _chart(run, heading, part, zero=zero, unit=unit, note=note)
    return plots


def _ratio_plot(run: RunFolder, task: str) -> list[Plot]:
    """Ratios lie within 1e-4 of 1, so what is drawn is the distance from 1; of a task, where there are tasks."""
    plots: list[Plot] = []
    own, told = (f"{task}/", f", {task}") if task else ("", "")
    steps, middle = run.points(f"{own}ratio/mean")
    if not _numbers((steps, middle)):
        return plots
    low, high = run.points(f"{own}ratio/min", _least)[1], run.points(f"{own}ratio/max", _largest)[1]
    clip = run.setting("objective", "clip_range")
    alt = f"Probability ratio minus 1{told} over steps. {_ends('mean ratio', (steps, middle))}"
    note = f"Clipped beyond ±{clip:g}. " if isinstance(clip, int | float) else ""
    if run.setting("optim", "updates_per_rollout") == 1:
        note += "With one update per set of rollouts it is exactly 1, or something is broken. "
    errors = list(_present(run.points(f"{own}ratio/replay_error", _largest)[1]))
    if errors:
        same = (
            "are exactly the sampled ones"
            if max(errors) == 0
            else f"differ from the sampled by up to {max(errors):.2g}"
        )
        note += f"Before an update, replayed log-probabilities {same}."
    with drawing(f"ratio − 1{told}", plots, alt=alt, note=note) as axes:
        if len(low) == len(high) == len(steps):
            band = ([value - 1 for value in low], [value - 1 for value in high])
            axes.fill_between(steps, *band, color=SERIES[0], alpha=0.25, linewidth=0, label="min to max")
        axes.plot(steps, [value - 1 for value in middle], color=SERIES[0], label="mean")
    return plots


def _phases_plot(run: RunFolder, title: str, whole: str, phases: Sequence[str]) -> list[Plot]:
    """The phases of `whole` on top of each other, and what is left of it."""
    plots: list[Plot] = []
    steps, total = run.points(whole)
    parts = [run.points(f"time/{phase}")[1] for phase in phases]
    if not steps or any(len(part) != len(steps) for part in parts):
        return plots
    parts = [[0.0 if math.isnan(value) else value for value in part] for part in parts]
    rest = [max(0.0, t - sum(values)) for t, *values in zip(total, *parts, strict=True)]
    labels = [*phases, "other"] if max(rest) > 0.01 * max(total) else list(phases)
    shown = [*parts, rest][: len(labels)]
    means = ", ".join(f"{label} {sum(part) / len(part):.3g} s" for label, part in zip(labels, shown, strict=True))
    with drawing(title, plots, alt=f"Stacked: {title}; on average {means}.") as axes:
        colors = [SERIES[0], SERIES[1], SERIES[2], SERIES[3]][: len(labels)]
        axes.stackplot(steps, *shown, colors=colors, labels=labels, alpha=0.85, linewidth=0)
        axes.set_ylim(0, None)
    return plots


def _worst_excess(run: RunFolder) -> str:
    """The promise, measured: waiting beyond the last micro-batch's own latency, against the step's length."""
    shares = [
        (excess / total, excess, row["step"])
        for row in run.rows
        if (excess := _number(row, "wait/excess_s")) is not None and (total := _number(row, "time/total"))
    ]
    if not shares:
        return ""
    share, excess, step = max(shares)
    if excess == 0:
        return "Never waited longer than the last micro-batch's own answer took."
    return f"Excess is waiting beyond the last answer's own latency; at most {excess:.2g} s, {percent(share)} of step {step}."


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None


def _look(number: int, points: Points) -> dict[str, Any]:
    """Colour, dash and marker together tell lines apart; a line gets about eight markers."""
    return {
        "color": SERIES[number % len(SERIES)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 3.6,
        "markevery": max(1, len(points[0]) // 8),
    }


def _limits(axes: Axes, values: Sequence[float], *, zero: bool, unit: bool) -> None:
    if unit and values_in_unit_range(values):
        axes.set_ylim(-0.03, 1.05)
    elif zero and all(value >= 0 for value in values if not math.isnan(value)):
        top = max((value for value in values if not math.isnan(value)), default=0.0)
        axes.set_ylim(0, 1.08 * top if top > 0 else 1.0)


def _numbers(points: Points) -> bool:
    return any(not math.isnan(value) for value in points[1])


def _without_gaps(points: Points) -> Points:
    kept = [(step, value) for step, value in zip(*points, strict=True) if not math.isnan(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _ends(label: str, points: Points) -> str:
    """A curve in words, for those who cannot see it."""
    steps, values = _without_gaps(points)
    if not steps:
        return f"{label}: no number."
    return f"{label}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}."


def _present(values: Sequence[float]) -> Iterator[float]:
    return (value for value in values if not math.isnan(value))


def _largest(values: Sequence[float]) -> float:
    return max(_present(values), default=math.nan)


def _least(values: Sequence[float]) -> float:
    return min(_present(values), default=math.nan)
