"""What a run writes down: rows of metrics, progress, images, reporters, and the last steps of a run that crashed."""
