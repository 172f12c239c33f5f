"""One self-contained page that shows what a run did: images, curves, times, failures, configuration."""

from trainer.report.page import build_report

__all__ = ["build_report"]
