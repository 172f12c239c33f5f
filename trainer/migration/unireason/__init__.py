"""UniReason's training program as recipes of ours: its flags, its script, its two stages."""
