"""What a run reads: prompt files, data sets, and the order in which prompts are drawn."""
