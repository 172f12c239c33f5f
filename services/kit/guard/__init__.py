"""Who may ask, and for how much: tokens, rate limits, memory, host names, and the log of who asked."""
