"""`python -m trainer runs FOLDER`: one page for all runs of an output folder, from their files alone."""
