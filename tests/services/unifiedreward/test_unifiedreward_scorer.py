"""The scorer against a scripted judge: what the judge is shown, and what becomes of each kind of answer."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Score
from services.kit.testing.scripted_judge import Reply, brightness
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.judges import judging
from wire.schema import ErrorCode

pytestmark = pytest.mark.anyio

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "reference" / "reward_templates"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def scorer_of():
    made = []

    def make(judge, **settings):
        url = judge if isinstance(judge, str) else judge.url
        fields = {"judge_url": url, "model": "judge", "image_format": "png", **settings}
        made.append(UnifiedRewardScorer(UnifiedRewardSettings(**fields)))
        return made[-1]

    yield make
    for scorer in made:
        await scorer.close()


def grey(level, size=8):
    return Image.new("RGB", (size, size), (level,) * 3)


def group(*levels, prompt="a lamp", source=None):
    sources = () if source is None else (source,)
    return [
        Item(id=f"i{n}", prompt=prompt, images=(grey(level),), source_images=sources, group_id="g")
        for n, level in enumerate(levels)
    ]


def soon(seconds=20.0):
    return time.monotonic() + seconds


def levels(question):
    return [image.getpixel((0, 0))[0] for image in question.images]


def brighter_wins(question):
    first, second = brightness(question.images[-2:])
    return Reply(f"<answer>Image {1 if first > second else 2} is better</answer>")


async def test_each_pair_is_shown_in_the_stated_order_with_the_caption(scorer_of):
    with judging(brighter_wins) as judge:
        scorer = scorer_of(judge, order="lower-first")
        results = await scorer.score("think_pairwise", group(10, 20, 30, 40, prompt='a "{lamp}" <b>'), soon())
    assert sorted(map(levels, judge.questions)) == [list(pair) for pair in itertools.combinations((10, 20, 30, 40), 2)]
    assert all('a "{lamp}" <b>' in question.text for question in judge.questions)
    assert [result.value for result in results] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    first = results[0].details["comparisons"]
    assert [(each["opponent"], each["shown"], each["outcome"]) for each in first] == [
        (1, "first", "lost"),
        (2, "first", "lost"),
        (3, "first", "lost"),
    ]


async def test_details_state_the_order_the_judge_saw(scorer_of):
    with judging(brighter_wins) as judge:
        results = await scorer_of(judge).score("think_pairwise", group(*range(10, 60, 10)), soon())
    seen = {tuple(levels(question)) for question in judge.questions}
    for place, result in enumerate(results):
        for each in result.details["comparisons"]:
            pair = (10 * (place + 1), 10 * (each["opponent"] + 1))
            assert (pair if each["shown"] == "first" else pair[::-1]) in seen
            assert each["outcome"] == ("won" if pair[0] > pair[1] else "lost")


@pytest.mark.parametrize("count", range(2, 17))
async def test_win_rates_of_whole_groups_with_ties_and_failures(count, scorer_of):
    """The judge fails or ties by the sum of the two levels; the expected rates are counted here from that rule."""
    codes = {3: ErrorCode.PARSE_ERROR, 5: ErrorCode.TRUNCATED, 6: ErrorCode.UPSTREAM}

    def rule(a, b):
        return codes.get((a + b) % 7) or ("tie" if (a + b) % 5 == 0 else "ok")

    def behave(question):
        said = rule(*levels(question))
        return {
            ErrorCode.PARSE_ERROR: Reply("<answer>hm</answer>"),
            ErrorCode.TRUNCATED: Reply("<answer>Image 1 is better</answer>", finish_reason="length"),
            ErrorCode.UPSTREAM: Reply("no", status=400),
            "tie": Reply("<answer>Both images are equally good</answer>"),
        }.get(said) or brighter_wins(question)

    shown = [2 * n + 1 + n // 3 for n in range(count)]
    with judging(behave) as judge:
        results = await scorer_of(judge, order="swap" if count % 2 else "single").score(
            "think_pairwise", group(*shown), soon()
        )
    times = 2 if count % 2 else 1
    for own, result in zip(shown, results, strict=True):
        outcomes = [(other, rule(own, other)) for other in shown if other != own]
        valid = [other for other, outcome in outcomes if outcome in ("ok", "tie")]
        if not valid:
            counts = [outcome for _, outcome in outcomes]
            assert isinstance(result, Failure) and counts.count(result.code) == max(map(counts.count, counts))
            continue
        wins = sum(own > other for other in valid if rule(own, other) == "ok")
        ties = sum(rule(own, other) == "tie" for other in valid)
        assert result.value == pytest.approx((wins + ties / 2) / len(valid), abs=1e-12)
        parts = result.components
        assert (parts["wins"], parts["ties"]) == (wins * times, ties * times)
        assert (parts["n_valid"], parts["n_asked"]) == (len(valid) * times, (count - 1) * times)
        for code in codes.values():
            assert parts.get(f"n_{code.value}", 0) == times * sum(outcome == code for _, outcome in outcomes)
        assert result.cacheable == all(rule(a, b) in ("ok", "tie") for a, b in itertools.combinations(shown, 2))


def counted(scorer, name):
    return {
        tuple(sample.labels.values()): sample.value
        for collector in scorer.collectors
        for metric in collector.collect()
        for sample in metric.samples
        if sample.name == name
    }


async def test_a_judge_that_favours_a_place_shows_in_the_metric_and_in_flips_and_not_in_the_scores(scorer_of):
    with judging("<answer>Image 1 is better</answer>") as judge:
        scorer = scorer_of(judge, order="swap")
        results = await scorer.score("think_pairwise", group(10, 20, 30), soon())
        assert counted(scorer, "reward_judge_wins_total") == {("think_pairwise", "first"): 6.0}
    assert [result.value for result in results] == [0.5] * 3
    assert [result.components["position_flips"] for result in results] == [2.0] * 3
    with judging("<answer>Image 2 is better</answer>") as judge:
        scorer = scorer_of(judge)
        results = await scorer.score("think_pairwise", group(*range(10, 120, 10)), soon())
        assert counted(scorer, "reward_judge_wins_total") == {("think_pairwise", "second"): 55.0}
    assert [result.value for result in results] == [0.5] * 11, "eleven images, each first as often as second"


async def test_what_is_not_back_by_the_deadline_is_a_timeout_and_the_rest_still_counts(scorer_of):
    def behave(question):
        reply = brighter_wins(question)
        return Reply(reply.text, delay_s=30 if levels(question).count(40) else 0)

    with judging(behave) as judge:
        scorer = scorer_of(judge)
        deadline = soon(1.0)
        results = await scorer.score("think_pairwise", group(10, 20, 30, 40), deadline)
        assert time.monotonic() < deadline, "in time to reach the caller"
        assert counted(scorer, "reward_judge_calls_total")[("think_pairwise", "timeout")] == 3
    assert [result.value for result in results[:3]] == [0, 0.5, 1]
    assert results[0].components["n_timeout"] == 1 and not results[0].cacheable
    assert isinstance(results[3], Failure) and results[3].code is ErrorCode.TIMEOUT


async def test_an_image_needs_as_many_decided_comparisons_as_are_set(scorer_of):
    def behave(question):
        return Reply("?") if 10 in levels(question) and 40 in levels(question) else brighter_wins(question)

    with judging(behave) as judge:
        results = await scorer_of(judge, min_valid=3).score("think_pairwise", group(10, 20, 30, 40), soon())
    assert [isinstance(result, Score) for result in results] == [False, True, True, False]
    assert results[0].code is ErrorCode.PARSE_ERROR
    assert "2 of 3 comparisons were decided, 3 are needed" in results[0].message


async def test_a_small_group_needs_all_of_its_comparisons(scorer_of):
    with judging(brighter_wins) as judge:
        scorer = scorer_of(judge, min_valid=5)
        results = await scorer.score("think_pairwise", group(10, 20, 30), soon())
        [(_, warm)] = scorer.warmup()
        assert len(await scorer.score("think_pairwise", warm, soon())) == 2
    assert [result.value for result in results] == [0, 0.5, 1]


async def test_an_image_without_an_opponent_has_no_score_and_the_others_have(scorer_of):
    with judging(brighter_wins) as judge:
        scorer = scorer_of(judge, pairs="swiss", opponents=1)
        results = await scorer.score("think_pairwise", group(10, 20, 30), soon())
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.code for failure in failures] == [ErrorCode.NOT_APPLICABLE] and "opponents" in failures[0].message
    assert sorted(result.value for result in results if isinstance(result, Score)) == [0, 1]


async def test_groups_that_cannot_be_compared(scorer_of):
    with judging(brighter_wins) as judge:
        scorer = scorer_of(judge, kinds="think_pairwise,edit_pair")
        [alone] = await scorer.score("think_pairwise", group(10), soon())
        assert alone.code is ErrorCode.NOT_APPLICABLE
        mixed = await scorer.score("think_pairwise", [group(10)[0], group(20, prompt="a dog")[0]], soon())
        assert {result.code for result in mixed} == {ErrorCode.BAD_INPUT} and "these have 2" in mixed[0].message
        two = Item(id="two", prompt="a lamp", images=(grey(1), grey(2)), group_id="g")
        results = await scorer.score("think_pairwise", [two, *group(10, 20)], soon())
        assert results[0].code is ErrorCode.BAD_INPUT and [each.value for each in results[1:]] == [0, 1]
        no_source = await scorer.score("edit_pair", group(10, 20), soon())
        assert all("beside its source" in result.message for result in no_source)
        other = [*group(10, source=grey(7)), *group(20, source=grey(9))]
        assert all("edits of one source" in result.message for result in await scorer.score("edit_pair", other, soon()))


async def test_edits_are_shown_after_their_source(scorer_of):
    with judging(lambda question: Reply("Edited image 2 is better")) as judge:
        scorer = scorer_of(judge, family="edit", order="lower-first")
        results = await scorer.score("edit_pair", group(10, 20, source=grey(99)), soon())
    assert [levels(question) for question in judge.questions] == [[99, 10, 20]]
    assert [result.value for result in results] == [0, 1]


async def test_edit_points_ask_for_instruction_and_quality_and_need_both(scorer_of):
    def behave(question):
        both = len(question.images) == 2
        return Reply(json.dumps({"reasoning": "", "score": [20, 24] if both else [10, 6]}))

    with judging(behave) as judge:
        scorer = scorer_of(judge, family="edit")
        items = group(10, source=grey(99))
        [result] = await scorer.score("edit_pointwise", items, soon())
    assert sorted(map(levels, judge.questions)) == [[10], [99, 10]], "quality is judged without the source"
    assert result.components == {"success": 20, "minimality": 24, "naturalness": 10, "cleanness": 6}
    assert result.value == 15
    schemas = [question.body["response_format"]["json_schema"]["schema"] for question in judge.questions]
    assert all(schema["required"] == ["reasoning", "score"] for schema in schemas)
    with judging(lambda question: Reply("[1]") if len(question.images) == 1 else behave(question)) as judge:
        [failed] = await scorer_of(judge, family="edit").score("edit_pointwise", items, soon())
    assert failed.code is ErrorCode.PARSE_ERROR


async def test_pointwise_is_the_mean_of_the_three(scorer_of):
    with judging("Alignment Score (1-5): 2\nCoherence Score (1-5): 4\nStyle Score (1-5): 4.5") as judge:
        scorer = scorer_of(judge, family="v2")
        assert list(scorer.rewards) == ["pointwise", "pair_score"]
        [result] = await scorer.score("pointwise", group(10), soon())
    assert result.value == 3.5 and result.components == {"alignment": 2, "coherence": 4, "style": 4.5}
    info = scorer.rewards["pointwise"]
    assert (info.range, info.grouped) == ((1, 5), False)


async def test_pair_scores_are_mean_shares_by_image_whatever_its_place(scorer_of):
    def behave(question):
        shares = [level / sum(levels(question)) for level in levels(question)]
        block = f"Score:\n Image 1: {shares[0]}\n Image 2: {shares[1]}\n"
        return Reply("\n".join(f"{name} {block}" for name in ("Alignment", "Coherence", "Style")))

    with judging(behave) as judge:
        results = await scorer_of(judge, family="v2").score("pair_score", group(10, 30, 60), soon())
    assert [result.value for result in results] == pytest.approx(
        [(10 / 40 + 10 / 70) / 2, (30 / 40 + 30 / 90) / 2, (60 / 70 + 60 / 90) / 2]
    )
    assert results[0].components["style"] == pytest.approx(results[0].value)
    assert [result.components["wins"] for result in results] == [0, 1, 2]


async def test_flex_weighs_the_categories_and_is_held_to_its_schema(scorer_of):
    """The brighter image wins overall and in A; the darker one in B and C."""

    def behave(question):
        first, second = levels(question)
        bright, dark = ("Image 1", "Image 2") if first > second else ("Image 2", "Image 1")
        categories = [
            {"name": f"{name}.", "dims": [], "cat_reason": "", "cat_winner": won}
            for name, won in (("A", bright), ("B", dark), ("C", dark))
        ]
        return Reply(json.dumps({"prompt": "", "categories": categories, "reason": "", "winner": bright}))

    with judging(behave) as judge:
        results = await scorer_of(judge, family="flex").score("flex", group(10, 20), soon())
        assert judge.questions[0].body["response_format"]["json_schema"]["schema"]["properties"]["winner"]
        free = await scorer_of(judge, family="flex", structured="off", flex_dim_weight=0).score(
            "flex", group(10, 20), soon()
        )
        assert "response_format" not in judge.questions[-1].body
    assert [result.value for result in results] == pytest.approx([0.7 * 1.4 / 2.4, 0.3 + 0.7 / 2.4])
    assert [result.value for result in free] == [0, 1]
    assert results[1].components["A"] == 1 and results[1].components["C"] == 0


@pytest.mark.parametrize(("pairs", "asked"), [("all", 28), ("random", 16), ("swiss", 16)])
async def test_fewer_comparisons_are_the_same_ones_for_the_same_group(pairs, asked, scorer_of):
    shown = []
    for _ in range(2):
        with judging(brighter_wins) as judge:
            results = await scorer_of(judge, pairs=pairs).score("think_pairwise", group(*range(10, 90, 10)), soon())
        shown.append(sorted(map(levels, judge.questions)))
        assert results[7].value == 1
    assert shown[0] == shown[1] and len(shown[0]) == asked


async def test_the_warm_up_finds_a_model_of_another_kind(scorer_of):
    with judging("A cat sits on a mat.") as judge:
        scorer = scorer_of(judge)
        await scorer.load()
        [(reward, items)] = scorer.warmup()
        assert {result.code for result in await scorer.score(reward, items, soon())} == {ErrorCode.PARSE_ERROR}
    with judging(brighter_wins) as judge:
        scorer = scorer_of(judge)
        [(reward, items)] = scorer.warmup()
        assert all(isinstance(result, Score) for result in await scorer.score(reward, items, soon()))
        assert scorer_of(judge, check_model=False).warmup() == []


FILES = {
    "think_qwen3vl_pair_t2i": "think_pairwise",
    "think_qwen25vl_pair_t2i": "think_pairwise",
    "ur1_pair_rank_t2i": "pair_rank",
    "flex_pair_t2i": "flex",
    "ur2_pair_score_t2i": "pair_score",
    "ur2_point_ACS_t2i": "pointwise",
    "ur1_point_t2i": "pointwise",
    "ur1_point_ACS_wordwise_t2i": "pointwise",
    "edit_pair_rank": "edit_pair",
    "edit_pair_score": "edit_pair",
    "edit_point_if": "edit_pointwise_instruction",
    "edit_point_quality": "edit_pointwise_quality",
}
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published texts are not beside the project")


@needs_published
@pytest.mark.parametrize(("name", "question"), FILES.items())
async def test_published_texts_are_sent_to_the_byte_and_known_by_their_hash(name, question, scorer_of):
    """The manifest's hash is compared, and the text that arrives with the file's bytes around the caption."""
    kind = question.partition("_instruction")[0].partition("_quality")[0]
    [row] = [
        line.split("\t") for line in (PUBLISHED / "MANIFEST.tsv").read_text().splitlines() if line.startswith(name)
    ]
    data = (PUBLISHED / f"{name}.txt").read_bytes()
    caption = 'ein "{roter}" Hut「帽」\\n <<PROMP>>  '
    with judging("?") as judge:
        scorer = scorer_of(judge, kinds=kind, template=f"{question}={PUBLISHED / name}.txt")
        await scorer.score(kind, group(10, 20, prompt=caption, source=grey(5)), soon())
    before, mark, after = data.partition(b"<<PROMPT>>")
    expected = before + (caption.encode() if mark else b"") + after
    texts = [asked.body["messages"][0]["content"][-1]["text"].encode() for asked in judge.questions]
    assert expected in texts
    info = scorer.rewards[kind]
    assert name in info.revision
    assert kind == "edit_pointwise" or info.template_sha256 == row[-1]


@needs_published
@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("think_pairwise", "ur2_point_ACS_t2i", "which asks for pointwise, not for think_pairwise"),
        ("flex", "flex_pair_video", "which is about videos"),
        ("pointwise", "unigenbench_judge_zh_raw_format_template", "has no <<PROMPT>>"),
    ],
)
def test_a_text_of_another_kind_is_refused(kind, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        UnifiedRewardScorer(UnifiedRewardSettings(kinds=kind, template=f"{kind}={PUBLISHED / name}.txt"))


@needs_published
def test_published_json_formats_are_held_to_a_schema_only_when_told():
    def revision(structured):
        template = f"flex={PUBLISHED}/flex_pair_t2i.txt"
        settings = UnifiedRewardSettings(family="flex", template=template, structured=structured)
        return UnifiedRewardScorer(settings).rewards["flex"].revision

    assert '"structured":false' in revision("auto") and '"structured":true' in revision("on")


def test_templates_of_ones_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("Which is better? <<PROMPT>>")
    info = UnifiedRewardScorer(UnifiedRewardSettings(template=f"think_pairwise={file}")).rewards["think_pairwise"]
    assert '"template":"custom"' in info.revision
    with pytest.raises(ValueError, match="there are: think_pairwise"):
        UnifiedRewardScorer(UnifiedRewardSettings(template=f"flex={file}"))
    with pytest.raises(ValueError, match="must be KIND=FILE"):
        UnifiedRewardScorer(UnifiedRewardSettings(template=str(file)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"order": "swap"}),
        ({}, {"image_format": "jpeg"}),
        ({}, {"model": "other"}),
        ({}, {"pairs": "swiss"}),
        ({"pairs": "swiss"}, {"pairs": "swiss", "opponents": 5}),
        ({}, {"extra_body": '{"seed": 1}'}),
        ({"kinds": "flex"}, {"kinds": "flex", "structured": "off"}),
        ({"kinds": "flex"}, {"kinds": "flex", "flex_category_weights": "1,1,1"}),
    ],
)
def test_all_that_changes_scores_changes_the_revision(one, other):
    def revision(**settings):
        settings = {"image_format": "png", **settings}
        [info] = UnifiedRewardScorer(UnifiedRewardSettings(**settings)).rewards.values()
        return info.revision

    assert revision(**one) == revision(**one) != revision(**other)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"flex_overall_weight": 0, "flex_dim_weight": 0}, "both 0: raise one"),
        ({"flex_category_weights": "0,0,0"}, "all 0 and flex_dim_weight is not"),
        ({"kinds": "think"}, "Input should be"),
        ({"opponents": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        UnifiedRewardSettings(**wrong)
