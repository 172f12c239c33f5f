"""File formats of packed training: each gives the rows of a file as plans (`trainer.data.sequences`)."""
