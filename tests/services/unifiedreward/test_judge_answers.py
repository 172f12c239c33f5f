"""Every answer format and the ways it breaks: what is clearly said is read, anything else is a parse error."""

from __future__ import annotations

import json

import pytest

from services.unifiedreward.parsing.common import ParseError
from services.unifiedreward.parsing.flex import read_flex
from services.unifiedreward.parsing.numbers import (
    read_aspects,
    read_edit_quality,
    read_edit_success,
    read_final_score,
    read_pair_scores,
)
from services.unifiedreward.parsing.verdicts import read_edit_rank, read_edit_scores, read_rank, read_think

FIRST, SECOND, TIE = 1.0, 0.0, 0.5

THOUGHT = """<think>
1. Semantic consistency: 
    Image 1 (9/10) - all there; 
    Image 2 (7/10) - no lake
2. Aesthetics: 
    Image 1 (8/10) - calm; 
    Image 2 (8/10) - calm
Total score:
Image 1: 9+8=17
Image 2: 7+8=15
</think>
"""


def case(name, answer, expected):
    return pytest.param(answer, expected, id=name)


def check(read, answer, expected):
    """`expected` is the first image's share, or a part of the reason why there is none."""
    if isinstance(expected, str):
        with pytest.raises(ParseError, match=expected):
            read(answer)
    else:
        assert read(answer).share == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("as published", THOUGHT + "<answer>Image 1 is better</answer>", FIRST),
        case("the other", THOUGHT + "<answer>Image 2 is better</answer>", SECOND),
        case("white space and case", THOUGHT + "\n <ANSWER>\n  image 2  IS better.\n</Answer> \n", SECOND),
        case("in a code fence", f"```\n{THOUGHT}<answer>Image 1 is better</answer>\n```", FIRST),
        case("bold", THOUGHT + "<answer>**Image 1 is better**</answer>", FIRST),
        case("quoted", THOUGHT + "<answer>'Image 2 is better'</answer>", SECOND),
        case("no reasoning, a server took it away", "<answer>Image 1 is better</answer>", FIRST),
        case("reasoning without its opening tag", "hm </think><answer>Image 2 is better</answer>", SECOND),
        case("reasoning never closed", "<think> hm\n<answer>Image 2 is better</answer>", "no complete"),
        case("an afterthought", "<answer>Image 2 is better</answer><think>or not", SECOND),
        case("full-width", "＜answer＞Ｉｍａｇｅ　２ ｉｓ ｂｅｔｔｅｒ。＜／answer＞", SECOND),
        case("an answer tag inside the reasoning", "<think><answer>Image 1 is better</answer></think>", "no complete"),
        case(
            "the tag of the reasoning does not count",
            "<think>so <answer>Image 1 is better</answer>? no</think><answer>Image 2 is better</answer>",
            SECOND,
        ),
        case("llava's longer sentence", "<answer>Image 2 is better than Image 1.</answer>", SECOND),
        case("only the image", "<answer>Image 1</answer>", FIRST),
        case("an explicit tie", "<answer>Both images are equally good</answer>", TIE),
        case(
            "two answers that agree", "<answer>Image 1 is better</answer><answer>Image 1 is better</answer>", "2 <ans"
        ),
        case(
            "two answers", "<answer>Image 1 is better</answer>\n<answer>Image 2 is better</answer>", "2 <answer> tags"
        ),
        case("both in one answer", "<answer>Image 1 is better Image 2 is better</answer>", "names both images"),
        case("the template's own list", "<answer>Image 1 is better / Image 2 is better</answer>", "names both images"),
        case("no answer tag", THOUGHT + "Image 1 is better", "no complete <answer> tag"),
        case("answer tag never closed", THOUGHT + "<answer>Image 1 is better", "no complete <answer> tag"),
        case("empty answer tag", "<answer> </answer>", "names no better image"),
        case("names no image", "<answer>the left one</answer>", "'the left one'"),
        case("a third image", "<answer>Image 3 is better</answer>", "names no better image"),
        case("the image's number cut out of a longer one", "<answer>Image 12 is better</answer>", "names no better"),
        case("worse is not better", "<answer>Image 1 is worse</answer>", "names no better image"),
        case("better than itself", "<answer>Image 1 is better than Image 1</answer>", "better than itself"),
        case("a negation", "<answer>Image 1 is not better</answer>", "names no better image"),
        case("praise that goes on", "<answer>Image 1 is better in colour only</answer>", "names no better image"),
        case("empty", "", "no complete <answer> tag"),
    ],
)
def test_think(answer, expected):
    check(read_think, answer, expected)


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        ("<answer>Image 1 is better</answer>", ()),
        ("<answer>Image 2 is better</answer>", ("totals_disagree",)),
        ("<answer>Both images are equally good</answer>", ()),
    ],
)
def test_totals_that_contradict_the_answer_are_flagged_and_no_veto(answer, flags):
    assert read_think(THOUGHT + answer).flags == flags
    assert read_think(THOUGHT.replace("=17", "=15") + answer).flags == ()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("one", "Image 1 is better.", FIRST),
        case("two", "Image 2 is better.", SECOND),
        case("tie", "Both images are equally good.", TIE),
        case("llava", "Image 1 is better than Image 2.", FIRST),
        case("after reasons", "Image 1 lacks the dog. Its sky is odd.\n\nConclusion: Image 2 is better.", SECOND),
        case("said twice alike", "Image 2 is better. The dog is right, so overall image 2 is better.", SECOND),
        case("in one respect is no verdict", "Image 1 is better lit. Overall, Image 2 is better.", SECOND),
        case("bold with a quote", 'My verdict: **"Image 2 is better."**', SECOND),
        case("said and taken back", "I would not say that Image 1 is better. Image 2 is better.", SECOND),
        case("denied only", "It isn't clear whether Image 1 is better.", "does not say"),
        case("both", "Image 1 is better. Image 2 is better.", "its opposite"),
        case("a winner and a tie", "Image 1 is better. Both images are equally good.", "its opposite"),
        case("nothing", "These are two fine pictures.", "does not say"),
        case("only in the reasoning", "<think>Image 1 is better.</think> Done.", "does not say"),
        case("reasoning never closed", "<think>Image 1 is better.", "does not say"),
        case("full-width full stops", "Image 1 has no dog。Image 2 is better。", SECOND),
        case("empty", "", "does not say"),
    ],
)
def test_rank_in_free_text(answer, expected):
    check(read_rank, answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("one", "The roof is red now.\nEdited image 1 is better", FIRST),
        case("capitals and a full stop", "Edited Image 2 is better.", SECOND),
        case("than the other", "Edited Image 2 is better than Edited Image 1.", SECOND),
        case("in an answer tag", "<think>hm</think><answer>Edited image 2 is better</answer>", SECOND),
        case("tie", "Both edited images are equally good.", TIE),
        case("both", "Edited image 1 is better.\nEdited image 2 is better.", "its opposite"),
        case("nothing", "The edits were made.", "does not say"),
    ],
)
def test_edit_rank(answer, expected):
    check(read_edit_rank, answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("labelled", "Edited image 1: 2.35\nEdited image 2: 1.90", FIRST),
        case("negative", "Edited Image 1: -1.25\nEdited Image 2: -0.5", SECOND),
        case("one negative", "Image 1 score: -2.0, Image 2 score: 0.25", SECOND),
        case("whole numbers", "Image 1: 3\nImage 2: 5", SECOND),
        case("scientific", "Image 1: 1e-3\nImage 2: -2.5e-4", FIRST),
        case("bare pair", "[-0.75, 1.5]", SECOND),
        case("full-width colons", "Edited image 1：2.35\nEdited image 2：－１.90", FIRST),
        case("reasoning never closed", "<think>Image 1: 2\nImage 2: 1", "no score for image 1 and 2"),
        case("bare lines", "1.5\n-0.75\n", FIRST),
        case("bold, in words", "**Edited Image 1's score** is 1.5 and **Edited Image 2's score** is -3", FIRST),
        case("equal", "Image 1: 2.0\nImage 2: 2", TIE),
        case("one missing", "Image 1: 2.0", "no score for image 2"),
        case("two for one image", "Image 1: 2.0\nImage 2: 1.0\nImage 1: 3.0", "two scores, 2 and 3"),
        case("nan", "Image 1: nan\nImage 2: 1.0", "not a finite number"),
        case("too large for a number", "Image 1: 1e999\nImage 2: 1.0", "not a finite number"),
        case("none", "Both edits follow the instruction.", "no score for image 1 and 2"),
    ],
)
def test_edit_scores(answer, expected):
    check(read_edit_scores, answer, expected)


def flex(winner="Image 1", winners=("Image 1", "Image 2", "Image 1"), names=None, score_2=3, **more):
    names = names or ["A. Semantic Alignment & Accuracy", "B. Image Quality & Realism", "C. Aesthetics & Artistry"]
    dims = [{"name": "x", "reason_1": "{a}", "reason_2": 'says "b", ]', "score_1": 7, "score_2": score_2}]
    categories = [
        {"name": name, "dims": dims, "cat_reason": "", "cat_winner": won}
        for name, won in zip(names, winners, strict=False)
    ]
    return {"prompt": "p", "categories": categories, "reason": "r", "winner": winner, **more}


BODY = json.dumps(flex(), indent=2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("bare object", BODY, FIRST),
        case("fenced", f"```json\n{BODY}\n```", FIRST),
        case("fence never closed", f"```json\n{BODY}\n", FIRST),
        case("fence of the template continued", f"{BODY}\n```\n", FIRST),
        case("after reasoning with braces", f"<think>{{so}} [1]</think>\n{BODY}", FIRST),
        case("words around it", f"Here is the result:\n{BODY}\nI hope this helps.", FIRST),
        case("comma before the end", BODY.rstrip().removesuffix("}") + ",}", FIRST),
        case("second wins", json.dumps(flex("image 2")), SECOND),
        case("full-width signs", BODY.replace(":", "：").replace(",", "，").replace("Image 1", "Image １"), FIRST),
        case("full-width quotes in a string", json.dumps(flex(reason="＂a＂"), ensure_ascii=False), FIRST),
        case("reasoning never closed", "<think>" + BODY, "no JSON object"),
        case("wins in words", json.dumps(flex(" Image 2 is better. ")), SECOND),
        case("tie", json.dumps(flex("Tie")), TIE),
        case("winner copied from the template", json.dumps(flex("Image 1/2")), "'Image 1/2', which names no image"),
        case("winner names both", json.dumps(flex("Image 1 and Image 2")), "names no image"),
        case("winner is a number", json.dumps(flex(1)), "names no image"),
        case("no winner", json.dumps({"categories": []}), "None, which names no image"),
        case("a list", json.dumps([flex()]), "a JSON list, not an object"),
        case("cut off", BODY[: len(BODY) // 2], "broken"),
        case("two objects", BODY + "\n" + BODY, "more than one JSON object"),
        case("NaN inside", BODY.replace("7", "NaN"), "the number NaN"),
        case("no JSON", "Image 1 is better", "no JSON object"),
        case("categories missing", json.dumps({"winner": "Image 1"}), "`categories` is None"),
        case("categories are words", json.dumps(flex(categories=["A"])), "category 1 is 'A'"),
        case("a category twice", json.dumps(flex(names=["A. x", "A. y", "C"])), "category A appears twice"),
        case("a number of five thousand digits", BODY.replace("7", "7" * 5000), "broken"),
        case("nested too deeply", '{"winner":' * 100_000, "broken"),
        case("empty", "", "no JSON object"),
    ],
)
def test_flex(answer, expected):
    check(read_flex, answer, expected)


@pytest.mark.parametrize(
    "names",
    [
        ["A. Semantic Alignment", "B. Quality", "C. Art"],
        ["A", "B", "C"],
        ["A：Semantic", "Ｂ：Quality", "Category Ｃ"],
        ["**A: Semantic**", "B) Quality", "Category C - Art"],
        ["Alignment", "Better quality", "Aesthetics"],
        ["A. Semantic", "Quality", "C"],
        [None, 2, ""],
    ],
)
def test_flex_categories_are_known_by_letter_or_place(names):
    assert read_flex(json.dumps(flex(names=names))).parts == {"A": 1, "B": 0, "C": 1}


def test_flex_categories_may_come_in_any_order_and_further_ones_do_not_count():
    names, winners = ["C. x", "A. y", "B. z", "D. w"], ["Image 1", "Image 2", "Tie", "Image 1"]
    assert read_flex(json.dumps(flex(names=names, winners=winners))).parts == {"A": 0, "B": 0.5, "C": 1}


def test_flex_leaves_out_a_category_without_a_winner_and_flags_sums():
    found = read_flex(json.dumps(flex(winners=["Image 1/2", "Image 2", None], score_2=4)))
    assert (found.parts, found.flags) == ({"B": 0}, ("scores_do_not_sum",))
    assert read_flex(BODY).flags == ()


ACS = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 4\nStyle Score (1-5): 3.5"
VALUES = {"alignment": 2.694700002670288, "coherence": 4.0, "style": 3.5}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("as published", ACS, VALUES),
        case("with the words first", 'Word-wise Scores: [["a", 0.1], ["[No_mistakes]", 0.9]]\n\n' + ACS, VALUES),
        case("fenced, bold, spaced", "```\n**" + ACS.replace(":", ":** ").replace("\n", "\n\n**") + "\n```", VALUES),
        case("lower case without the range", ACS.lower().replace(" (1-5)", ""), VALUES),
        case("out of five", ACS.replace(": 4", ": 4/5"), VALUES),
        case("full-width", ACS.translate({ord(":"): "：", ord("("): "（", ord(")"): "）", ord("4"): "４"}), VALUES),
        case("reasoning never closed", "<think>" + ACS, "no alignment score"),
        case("scientific", ACS.replace("3.5", "3.5e0"), VALUES),
        case("on one line", ACS.replace("\n", ", "), VALUES),
        case("said twice alike", ACS + "\n" + ACS, VALUES),
        case("nan", ACS.replace("3.5", "nan"), "style score is 'nan', not a finite"),
        case("zero", ACS.replace("3.5", "0"), "style score is 0, outside 1 to 5"),
        case("six", ACS.replace("3.5", "6"), "style score is 6, outside 1 to 5"),
        case("negative", ACS.replace("3.5", "-3.5"), "style score is -3.5, outside"),
        case("ten to the ninth", ACS.replace("3.5", "3e9"), "outside 1 to 5"),
        case("a word", ACS.replace("3.5", "good"), "'good', not a number"),
        case("the template's letter", ACS.replace("3.5", "Z"), "'Z', not a number"),
        case("one missing", ACS.replace("Style", "Beauty"), "no style score"),
        case("decimal comma", ACS.replace("3.5", "3,5"), "style score is '3,5', not a number"),
        case("a comma after it", ACS.replace("3.5", "3.5, which is good"), VALUES),
        case("two values", ACS + "\nStyle Score (1-5): 2", "two different values of the style score"),
        case("another model's words", "A cat sits on a mat.", "no alignment score"),
    ],
)
def test_aspects(answer, expected):
    check_numbers(read_aspects, answer, expected)


def check_numbers(read, answer, expected):
    if isinstance(expected, str):
        with pytest.raises(ParseError, match=expected):
            read(answer)
    else:
        assert read(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("as published", "dog (animal): 1\nhat (object): 0\nFinal Score: 3.25", {"final": 3.25}),
        case("on the next line", "dog (animal): 1\nFinal Score:\n 4", {"final": 4.0}),
        case("missing", "dog (animal): 1", "no final score"),
        case("out of range", "Final Score: 0", "outside 1 to 5"),
    ],
)
def test_final_score(answer, expected):
    check_numbers(read_final_score, answer, expected)


def shares(*pairs):
    names = ("Alignment", "Coherence", "Style")
    return "\n\n".join(
        f"{name} Score:\n Image 1: {a}\n Image 2: {b}" for name, (a, b) in zip(names, pairs, strict=False)
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case(
            "as published", shares((0.75, 0.25), (0.5, 0.5), (1, 0)), {"alignment": 0.75, "coherence": 0.5, "style": 1}
        ),
        case(
            "full-width colons",
            shares((0.75, 0.25), (0.5, 0.5), (1, 0)).replace(":", "："),
            {"alignment": 0.75, "coherence": 0.5, "style": 1},
        ),
        case("rounded", shares((0.34, 0.68), (0.5, 0.5), (0, 1.0)), {"alignment": 1 / 3, "coherence": 0.5, "style": 0}),
        case("sum is not 1", shares((0.9, 0.9), (0.5, 0.5), (0.5, 0.5)), "have the sum 1.8, not 1"),
        case("above 1", shares((7, 3), (0.5, 0.5), (0.5, 0.5)), "alignment score is 7, outside 0 to 1"),
        case("negative", shares((-0.1, 1.1), (0.5, 0.5), (0.5, 0.5)), "outside 0 to 1"),
        case("nan", shares((0.5, 0.5), ("nan", 0.5), (0.5, 0.5)), "coherence score is 'nan'"),
        case("block missing", shares((0.5, 0.5), (0.5, 0.5)), "no style score of both images"),
        case("image missing", shares((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)).rpartition("\n")[0], "no style score of both"),
    ],
)
def test_pair_scores(answer, expected):
    check_numbers(lambda text: pytest.approx(read_pair_scores(text).parts), answer, expected)


def test_the_share_of_pair_scores_is_the_mean_over_the_aspects():
    assert read_pair_scores(shares((0.75, 0.25), (0.25, 0.75), (0.8, 0.2))).share == pytest.approx(0.6)
    assert read_pair_scores(shares((0.5, 0.5), (0.5, 0.5), (0.5, 0.5))).tie
    rounded = read_pair_scores(shares((0.95, 0.05), (0.35, 0.65), (0.20, 0.80)))
    assert sum(rounded.parts.values()) / 3 != 0.5 and rounded.tie, "a tie but for the rounding of sums"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        case("as published", '{"reasoning": "fine", "score": [20, 25]}', (20.0, 25.0)),
        case("comma of the published example", '{\n\n"reasoning" : "a, b, ]",\n"score" : [20, 12.5],\n}', (20.0, 12.5)),
        case("fenced", '```json\n{"reasoning": "", "score": [0, 0]}\n```', (0.0, 0.0)),
        case("three numbers", '{"score": [1, 2, 3]}', "not a list of two numbers"),
        case("one number", '{"score": 20}', "not a list of two numbers"),
        case("words", '{"score": ["20", 2]}', "success score is '20', not a number"),
        case("true", '{"score": [true, 2]}', "success score is True"),
        case("too high", '{"score": [26, 2]}', "success score is 26, outside 0 to 25"),
        case("negative", '{"score": [2, -1]}', "minimality score is -1, outside"),
        case("infinite", '{"score": [2, 1e999]}', "not a finite number"),
        case("list for an object", "[20, 25]", "a JSON list"),
        case("no score", '{"reasoning": "x"}', "`score` is None"),
    ],
)
def test_edit_points(answer, expected):
    wanted = expected if isinstance(expected, str) else dict(zip(("success", "minimality"), expected, strict=True))
    check_numbers(read_edit_success, answer, wanted)


def test_the_quality_of_an_edit_has_names_of_its_own():
    assert read_edit_quality('{"score": [3, 4]}') == {"naturalness": 3, "cleanness": 4}


READERS = (
    read_think,
    read_rank,
    read_edit_rank,
    read_edit_scores,
    read_flex,
    read_aspects,
    read_final_score,
    read_pair_scores,
    read_edit_success,
)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", ["Image 1 " * 20_000, "{" * 50_000, " " * 200_000, "1+" * 50_000, '"\\' * 50_000])
def test_long_nonsense_is_refused_in_no_time(read, text):
    with pytest.raises(ParseError):
        read(text)
