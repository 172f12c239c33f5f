"""Rewards of your own: `rewards serve FILE.py` serves the functions and the reward model of a Python file.

from services.own import reward         # a function: docs/tutorials/reward_function.md
from services.own import RewardModel    # a network: docs/tutorials/reward_model.md
"""

from services.kit.functions.file import reward
from services.own.model import RewardModel

__all__ = ["RewardModel", "reward"]
