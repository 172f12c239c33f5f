"""NEO's training program as recipes of ours: its flags, its scripts, its three stages."""
