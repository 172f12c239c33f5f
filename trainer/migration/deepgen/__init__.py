"""What a DeepGen-RL user brings: data-set files, environment variables, a command line. Read, checked, translated."""
