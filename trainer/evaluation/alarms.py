"""Signs of reward hacking: rules over the first and the present evaluation.

A policy that exploits a reward raises it while everything that reward does not measure gets worse. Each alarm says what
was seen, with both numbers; REMEDY says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from trainer.config import AlarmsConfig, RewardsConfig
from trainer.evaluation.artefacts.image_statistics import mean_statistics
from trainer.evaluation.outcomes import Alarm, Outcome, metric_name
from trainer.evaluation.text_alarms import text_alarms

REMEDY = (
    "Look at the samples; then lower that reward's weight, add one that would notice, raise objective.kl_beta, or go "
    "back to a checkpoint before it began."
)


_NEARLY = 0.75  # of the way to 0 or 1, between which all these statistics lie
_LEAST = 0.02  # a way shorter than that is no way


def find_alarms(
    row: Mapping[str, float],
    start: Sequence[Outcome],
    now: Sequence[Outcome],
    trained: Collection[str],
    config: AlarmsConfig,
    rewards: RewardsConfig,
    tasks: Mapping[str, str] = MappingProxyType({}),
) -> list[Alarm]:
    """What the evaluation `now`, with its `row` entries, shows against the one at the `start`.

    Args:
        trained: rewards with a weight in training; the others are held out.
        rewards: which columns say that a text has the right form, and that it is right.
        tasks: the task of each set by its name, of a policy with tasks.
    """
    alarms = [] if config.heldout_z is None else _falling(row, start, now, trained, config.heldout_z)
    if config.other_half:
        alarms += _other_half(row, now, tasks)
    for set_name in dict.fromkeys(outcome.set for outcome in now):
        before, after = (
            mean_statistics([outcome.statistics for outcome in each if outcome.set == set_name])
            for each in (start, now)
        )
        for name, limit, either_way in (
            ("saturation", config.saturation_z, True),
            ("edge_density", config.edge_density_z, True),
            ("diversity", config.diversity_z, False),
        ):
            if limit is not None and name in before and name in after:
                alarms += _drift(metric_name(set_name, name), before[name], after[name][0], limit, either_way)
    return alarms + text_alarms(row, start, now, rewards, config, tasks)


def _falling(
    row: Mapping[str, float], start: Sequence[Outcome], now: Sequence[Outcome], trained: Collection[str], limit: float
) -> list[Alarm]:
    """Held-out rewards whose whole interval of the paired gain is below 0, where a trained one's is above 0.

    In a large set the interval of a harmless change is below 0, too; so the fall must also be `limit` times the spread.
    """
    gains = _gains(row, now)
    rising = [(gain, metric_name(*name)) for name, (gain, low, _) in gains.items() if name[1] in trained and low > 0]
    if not rising:
        return []
    most, best = max(rising)
    return [
        Alarm(
            f"heldout/{metric_name(*name)}",
            f"{metric_name(*name)}, which training does not use, fell by {-gain:.3g} since the start (95 % interval "
            f"{-high:.3g} to {-low:.3g}) while {best} rose by {most:.3g}: training may be exploiting {best}.",
        )
        for name, (gain, low, high) in gains.items()
        if name[1] not in trained and high < 0 and -gain > limit * _spread(start, *name)
    ]


def _other_half(row: Mapping[str, float], now: Sequence[Outcome], tasks: Mapping[str, str]) -> list[Alarm]:
    """Rewards of one task whose whole interval of the paired gain is below 0 while one of another task is surely above: what the
    policy gains in one half it pays for in the other. One alarm a set and reward that falls, with the other half's largest rise.
    None where the same reward surely rises in another set of its task, such as of the same prompts by likelier tokens: that half
    changes, and does not pay.
    """
    gains = _gains(row, now)
    found = []
    for name, (gain, low, high) in gains.items():
        task = tasks.get(name[0], "")
        others = [
            (rise, metric_name(*other), tasks[other[0]])
            for other, (rise, rise_low, _) in gains.items()
            if rise_low > 0 and task and tasks.get(other[0], task) != task
        ]
        rises_too = any(
            rise_low > 0 and other[1] == name[1] and tasks.get(other[0], "") == task
            for other, (_, rise_low, _) in gains.items()
        )
        if high < 0 and others and not rises_too:
            rise, best, half = max(others)
            found.append(
                Alarm(
                    f"other_half/{metric_name(*name)}",
                    f"{metric_name(*name)} ({task}) fell by {-gain:.3g} since the start (95 % interval {-high:.3g} to {-low:.3g}) "
                    f"while {best} ({half}) rose by {rise:.3g}: what {half} gains, {task} pays for. Train both tasks, raise "
                    f"sampling.tasks.{task}.loss_weight, lower optim.lr, or raise objective.kl_beta.",
                )
            )
    return found


def _gains(row: Mapping[str, float], now: Sequence[Outcome]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Per (set, reward) the paired gain since the start with the ends of its interval, where there is one."""
    names = dict.fromkeys((outcome.set, reward) for outcome in now for reward in outcome.scores)
    return {
        (set_name, reward): (row[f"{key}/gain"], row[f"{key}/gain_low"], row[f"{key}/gain_high"])
        for set_name, reward in names
        if f"{(key := f'eval/{metric_name(set_name, reward)}')}/gain_low" in row
    }


def _spread(start: Sequence[Outcome], set_name: str, reward: str) -> float:
    """Standard deviation of a reward over the images at the start."""
    scores = [outcome.scores.get(reward) for outcome in start if outcome.set == set_name]
    return mean_statistics([{reward: score} for score in scores if score is not None])[reward][1]


def _drift(name: str, start: tuple[float, float], now: float, limit: float, either_way: bool) -> list[Alarm]:
    """The mean has moved by more than `limit` standard deviations over the first images, or is nearly at its end.

    Where images differ much, as photographs do, so many deviations are more than there is room for.
    """
    (mean, spread), rises = start, now > start[0]
    shift, room = abs(now - mean), 1 - mean if rises else mean
    drifted = shift > limit * spread or shift > max(_NEARLY * room, _LEAST)
    if spread == 0 or (rises and not either_way) or not drifted:
        return []
    return [
        Alarm(
            f"drift/{name}",
            f"the pictures' mean {name.rpartition('/')[2].replace('_', ' ')} went from {mean:.3g} to {now:.3g}, "
            f"{shift / spread:.1f} times the spread it had over pictures at the start (limit {limit:g}) and "
            f"{100 * shift / room:.0f} % of the way to {int(rises)} (limit {100 * _NEARLY:.0f} %): they no longer look as "
            "before.",
        )
    ]
