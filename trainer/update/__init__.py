"""One optimizer step: losses of the objective, their metrics, and moving averages of the weights."""
