"""CPU time of a text for each built-in reward of texts of the rules service, in this process, on one thread.

.venv/bin/python benchmarks/text_rewards.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from services.kit.scorer import Item, Score
from services.rules.scorer import RulesScorer

TEXTS = 5000
COMPLETION = (
    f"<think>{'the red disc is left of the bar, so it is two. ' * 20}</think><answer>B</answer>"  # 1,000 characters
)
LIMITS = {"target_length": 200, "max_length": 300, "overlong_buffer": 50, "completion_ids": list(range(256))}
TARGETS = {"number": "8", "exact_answer": "red disc"}
REWARDS = ("option_letter", "number", "exact_answer", "answer", "think_format", "answer_format", "tag_count")
REWARDS += ("length", "overlong", "json_valid")


def main() -> None:
    scorer = RulesScorer()
    for reward in REWARDS:
        targets = (TARGETS.get(reward, "B"),)
        items = [Item("a", "which?", completion=COMPLETION, targets=targets, metadata=LIMITS)] * TEXTS  # type: ignore[arg-type]
        started = time.process_time()
        results = scorer.score(reward, items)
        took_s = time.process_time() - started
        assert all(isinstance(result, Score) for result in results)
        print(f"{reward:14} {1e6 * took_s / TEXTS:6.1f} microseconds a text")


if __name__ == "__main__":
    main()
