"""What led to a crash: the last steps of a run, whole, and what a person reads of them."""
