"""Texts in letters that the engine cannot write: not applicable, with the reason, from the model's own list."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from services.kit.scorer import Failure, Item, Score
from services.ocr.alphabet import Alphabet, script_of
from services.ocr.engines import EngineOptions, EngineUnavailableError, build_engine
from services.ocr.engines.rapid import _recognition_model
from services.ocr.engines.tesseract import _character_set
from services.ocr.scorer import OcrScorer
from wire.schema import ErrorCode

REWARDS = ["multi", "flow_grpo", "strict"]
UNWRITABLE = {
    "привет": "Cyrillic",
    "안녕하세요": "Hangul",
    "مرحبا": "Arabic",
    "שלום": "Hebrew",
    "नमस्ते": "Devanagari",
    "สวัสดี": "Thai",
    "Καλημέρα": "Greek",
    "Phở": "Latin",
}
WRITABLE = [
    "OPEN",
    "Café Zürich",
    "Crème brûlée",
    "Łódź",
    "Erdős",
    "欢迎光临",
    "ようこそ",
    "10 €",
    "½ off",
    "I ❤\ufe0f NY",
    "x²",
]


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    made = OcrScorer("rapidocr", EngineOptions(mode="line"))
    made.load()
    return made


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("text", UNWRITABLE)
def test_a_script_the_engine_cannot_write_is_not_applicable(scorer: OcrScorer, reward: str, text: str) -> None:
    [result] = scorer.score(reward, [Item(id="a", prompt="", images=(Image.new("RGB", (96, 48)),), targets=(text,))])
    assert isinstance(result, Failure) and result.code is ErrorCode.NOT_APPLICABLE
    assert UNWRITABLE[text] in result.message and repr(text) in result.message and "--rec-model" in result.message
    assert "it writes Han, Latin, Katakana, Hiragana, Greek" in result.message


@pytest.mark.parametrize("text", ["Привет, OPEN", "OPEN 안녕"])
def test_one_letter_that_cannot_be_written_is_enough(scorer: OcrScorer, text: str) -> None:
    [result] = scorer.score("multi", [Item(id="a", prompt=f'a sign "{text}"', images=(Image.new("RGB", (96, 48)),))])
    assert isinstance(result, Failure) and result.code is ErrorCode.NOT_APPLICABLE


@pytest.mark.parametrize("reward", ["multi", "strict"])
@pytest.mark.parametrize(
    ("text", "left_out"),
    [("OPEN \U0001f984", ["\U0001f984"]), ("\U0001f973OPEN \U0001f9be\U0001f3fd", None), ("OPEN", [])],
)
def test_symbols_that_the_engine_cannot_write_cost_nothing(
    scorer: OcrScorer, reward: str, text: str, left_out: list[str] | None
) -> None:
    """Newer emoji and skin tones: no picture could have them read, so they are left out and said. The older ones are in the
    model's list, and stay."""
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), "OPEN", font=ImageFont.load_default(32), fill="black", anchor="mm")
    [result] = scorer.score(reward, [Item(id="a", prompt="", images=(image,), targets=(text,))])
    assert isinstance(result, Score) and result.value == 1.0 and result.components["exact"] == 1.0
    expected = ["\U0001f973", "\U0001f9be", "\U0001f3fd"] if left_out is None else left_out
    assert result.details.get("not_compared", []) == expected and result.details["targets"] == [text]


def test_a_text_of_such_symbols_alone_is_not_applicable(scorer: OcrScorer) -> None:
    alone = Item(id="a", prompt="", images=(Image.new("RGB", (96, 48)),), targets=("\U0001f984\U0001f973",))
    both = Item(id="b", prompt="", images=(Image.new("RGB", (96, 48)),), targets=("\U0001f984", "OPEN"))
    refused, scored = scorer.score("multi", [alone, both])
    assert isinstance(refused, Failure) and refused.code is ErrorCode.NOT_APPLICABLE
    assert "cannot write \U0001f984 \U0001f973" in refused.message and "holds nothing else" in refused.message
    assert isinstance(scored, Score) and scored.components["similarity_0"] == 0.0


def test_only_texts_that_are_scored_count(scorer: OcrScorer) -> None:
    """flow_grpo looks for the first text alone."""
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), "OPEN", font=ImageFont.load_default(32), fill="black", anchor="mm")
    both = Item(id="a", prompt="", images=(image,), targets=("OPEN", "привет"))
    results = [scorer.score(reward, [both])[0] for reward in REWARDS]
    assert [type(result) for result in results] == [Failure, Score, Failure]


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("text", WRITABLE)
def test_what_the_engine_can_write_is_scored(scorer: OcrScorer, reward: str, text: str) -> None:
    [result] = scorer.score(reward, [Item(id="a", prompt="", images=(Image.new("RGB", (96, 48)),), targets=(text,))])
    assert isinstance(result, Score) and result.value == 0.0


def test_what_it_says_of_itself(scorer: OcrScorer) -> None:
    scripts = scorer.about["scripts"]
    assert isinstance(scripts, dict) and list(scripts) == ["Han", "Latin", "Katakana", "Hiragana", "Greek"]
    assert str(scorer.about["characters"]).startswith("20-7e ")


def test_an_alphabet_by_hand() -> None:
    alphabet = Alphabet(["A", "b", "é", "１", "中", " "])
    assert alphabet.missing("Ab1é中 e\u0301!?-–", fold_case=False) == []
    assert alphabet.missing("aB2", fold_case=False) == ["a", "B", "2"]
    assert alphabet.missing("aB2É", fold_case=True) == ["2"]
    assert alphabet.ranges() == "20 31 41 62 e9 4e2d"
    assert Alphabet("abcdx").ranges() == "61-64 78" and Alphabet([]).ranges() == ""
    assert alphabet.scripts() == {}, "a few letters are no script"
    assert [script_of(c) for c in "aЖ한中ガ1!"] == ["Latin", "Cyrillic", "Hangul", "Han", "Katakana", None, None]


def test_every_engine_reads_its_own_list(tmp_path: Path) -> None:
    assert {"A", "z", "é", "中"} <= (build_engine("rapidocr", EngineOptions()).characters or set())
    assert {"A", "z", "0", "中"} <= (build_engine("ddddocr", EngineOptions(mode="line")).characters or set())
    assert _character_set(tmp_path / "none.traineddata") == frozenset()
    (tmp_path / "cut.traineddata").write_bytes(b"\x18\x00\x00\x00\x01")
    assert _character_set(tmp_path / "cut.traineddata") == frozenset()


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")
def test_tesseracts_list_is_that_of_its_languages() -> None:
    found = build_engine("tesseract", EngineOptions(language="eng")).characters
    assert found is not None and {"A", "z", "é"} <= found and "ж" not in found
    assert build_engine("tesseract", EngineOptions(language="eng+tlh")).characters is None


def test_another_recognition_model_can_be_served(tmp_path: Path) -> None:
    own, said = _recognition_model(None)
    assert said == ""
    other = tmp_path / "cyrillic_rec.onnx"
    shutil.copy(own, other)
    engine = build_engine("rapidocr", EngineOptions(mode="line", rec_model=str(other)))
    assert " rec=cyrillic_rec.onnx@" in engine.revision
    assert engine.characters == build_engine("rapidocr", EngineOptions()).characters
    engine.load()
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), "OPEN", font=ImageFont.load_default(32), fill="black", anchor="mm")
    [[line]] = engine.read([image])
    assert line.text == "OPEN"
    with pytest.raises(EngineUnavailableError, match=r"--rec-model .*no such file"):
        build_engine("rapidocr", EngineOptions(rec_model=str(tmp_path / "none.onnx")))


def test_a_model_without_a_list_is_refused_and_nothing_is_downloaded() -> None:
    detector = next(Path(str(_recognition_model(None)[0])).parent.glob("*_det_*.onnx"))
    engine = build_engine("rapidocr", EngineOptions(rec_model=str(detector)))
    with pytest.raises(EngineUnavailableError, match="no list of characters"):
        engine.load()
