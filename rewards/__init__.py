"""The command `rewards`: one name for the trainer's and the services' programs, each imported only when it is called."""

__version__ = "0.1.0"  # the one place it is written; tests hold pyproject, images, CHANGELOG and CITATION to it
