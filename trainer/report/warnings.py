"""What a reader must know before believing the curves: scorers that changed, rewards and gradients that fell silent."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.report.run_folder import RunFolder

_MOST = 20


def warnings(run: RunFolder) -> list[str]:
    """Sentences, the changes of scorers first; of many silences the last ones."""
    return [*_changes(run), *_silences(run)]


def _changes(run: RunFolder) -> list[str]:
    found = []
    for change in run.scorer_changes:
        before, after = change.get("before"), change.get("after")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            told = ", ".join(f"{name} {before[name]}, now {after.get(name)}" for name in before)
            found.append(
                f"Since step {change.get('step')} the reward {change.get('reward')} comes from another scorer: {told}. Scores "
                "from before cannot be compared with those after."
            )
    return found


def _silences(run: RunFolder) -> list[str]:
    sentences = [f"{silence.sentence[:1].upper()}{silence.sentence[1:]}." for silence in run.rows.watch.found]
    left = len(sentences) - _MOST
    return sentences if left <= 0 else [f"{left} earlier ones are left out.", *sentences[left:]]
