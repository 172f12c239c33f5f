"""What a run does: each kind of program says what a step is; what they share is a session."""
