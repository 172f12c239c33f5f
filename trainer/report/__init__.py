"""One self-contained page that shows what a run did: images, curves, times, failures, configuration."""

from trainer.report.page import away_from_its_folder, build_report

__all__ = ["away_from_its_folder", "build_report"]
