"""The trainer: draws prompts, samples, has them scored over HTTP, computes advantages, updates, records."""
