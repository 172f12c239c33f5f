"""`python -m services.eval [serve|run|compare|table] ...`; each command's --help names its flags."""

from services.common.run import serve
from services.common.settings import load_settings
from services.eval.settings import EvalSettings, make_scorer

if __name__ == "__main__":
    settings = load_settings(EvalSettings, prog="python -m services.eval")
    serve(lambda: make_scorer(settings), settings, "eval")
