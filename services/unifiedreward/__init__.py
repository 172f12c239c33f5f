"""The UnifiedReward family as rewards: a gateway before a judge model that vLLM serves."""
