"""python -m services.ocr [--engine rapidocr] [--mode page] [--workers N] [--port 18082]; --help names the rest."""

from services.kit.run import serve
from services.kit.settings import load_settings
from services.ocr.settings import OcrSettings, make_scorer

if __name__ == "__main__":
    settings = load_settings(OcrSettings, prog="python -m services.ocr")
    serve(lambda: make_scorer(settings), settings, "ocr")
