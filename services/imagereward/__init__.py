"""ImageReward: a BLIP that reads prompt and image together, and a head trained on people's choices."""
