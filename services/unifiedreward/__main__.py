"""python -m services.unifiedreward [--family think] [--judge-url http://127.0.0.1:8000] ...; --help names the rest."""

from services.common.run import serve
from services.common.settings import load_settings
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings

if __name__ == "__main__":
    settings = load_settings(UnifiedRewardSettings, prog="python -m services.unifiedreward")
    serve(lambda: UnifiedRewardScorer(settings), settings, "unifiedreward")
