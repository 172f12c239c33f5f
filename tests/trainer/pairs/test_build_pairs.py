"""The builder of pairs: which images it pairs, what it leaves over, and what it refuses."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.pair_rows import QUESTION, rows_section
from tests.support.text_rows import png, write_jsonl
from trainer.__main__ import main
from trainer.data.pairs.building.clusters import k_means
from trainer.data.pairs.building.features import load_features, normalised
from trainer.data.pairs.file import read_pairs
from trainer.data.prompts import DataError

Angles = dict[str, float]  # an image's feature is the unit vector at this angle, in degrees


def image(folder: Path, name: str) -> str:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / f"{name}.png").write_bytes(png((sum(map(ord, name)) % 256, 0, 0)))
    return f"images/{name}.png"


def vectors(angles: Sequence[float]) -> np.ndarray:
    radians = np.deg2rad(angles)
    return 3 * np.stack([np.cos(radians), np.sin(radians)], 1)  # lengths do not matter


def sources(
    folder: Path, captions: Angles, questions: Angles, *, complete: Sequence[str] = (), shuffle: int | None = None
) -> list[str]:
    """Both files with their features; `complete` names captioned images that have a question, too. Returns flags."""
    for kind, angles in (("captions", captions), ("questions", questions)):
        names = list(angles)
        if shuffle is not None:
            random.Random(shuffle).shuffle(names)
        rows = []
        for name in names:
            row: dict[str, Any] = {"image_path": image(folder, name), "tag": kind}
            if kind == "captions":
                row["prompt"] = f"a picture of {name}"
            if kind == "questions" or name in complete:
                row |= {"question": QUESTION, "answer": "B"}
            rows.append(row)
        write_jsonl(folder / f"{kind}.jsonl", rows)
        np.save(folder / f"{kind}.npy", vectors([angles[name] for name in names]))
    return [
        *("--captions", str(folder / "captions.jsonl"), "--captions-features", str(folder / "captions.npy")),
        *("--questions", str(folder / "questions.jsonl"), "--questions-features", str(folder / "questions.npy")),
    ]


def build(folder: Path, flags: Sequence[str], *more: str) -> list[dict[str, Any]]:
    output = folder / f"built{len(list(folder.glob('built*')))}" / "pairs.jsonl"
    assert main(["build-pairs", *flags, "--output", str(output), *more]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def names(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(Path(r["generate_ann"]["image_path"]).stem, Path(r["understand_ann"]["image_path"]).stem) for r in rows]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_most_similar_pairs_come_first_and_no_image_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """c1 is nearest to q1, but c2 is nearer still; c1 gets what is left above the threshold, c3 nothing."""
    flags = sources(tmp_path, {"c1": 0, "c2": 20, "c3": 90}, {"q1": 18, "q2": -40, "q3": 200})
    rows = build(tmp_path, flags)
    assert names(rows) == [("c2", "q1"), ("c1", "q2")]
    assert [r["similarity"] for r in rows] == pytest.approx([np.cos(np.deg2rad(2)), np.cos(np.deg2rad(40))], abs=1e-6)
    assert rows[0]["generate_ann"] == {"image_path": "../images/c2.png", "prompt": "a picture of c2", "tag": "captions"}
    assert rows[0]["understand_ann"]["answer"] == "B"
    said = capsys.readouterr().out
    assert "pairs: 2, of which 0 aligned and 2 retrieved (similarity at least 0.6)" in said
    assert "unused: 1 images with captions" in said and "unused: 1 images with questions" in said
    assert "  0.75-0.80       1 ####" in said and "  0.95-1.00       1 ####" in said


def test_only_the_nearest_of_an_image_are_looked_at(tmp_path: Path) -> None:
    flags = sources(tmp_path, {"c1": 0, "c2": 2}, {"q1": 0.9, "q2": 10})
    assert names(build(tmp_path, flags)) == [("c1", "q1"), ("c2", "q2")]
    assert names(build(tmp_path, flags, "--neighbours", "1")) == [("c1", "q1")]


def test_equal_similarities_go_by_the_order_of_paths_and_not_of_rows(tmp_path: Path) -> None:
    captions, questions = {f"c{n}": 0.0 for n in range(6)}, {f"q{n}": 0.0 for n in range(6)}
    found = [
        names(build(tmp_path / str(seed), sources(tmp_path / str(seed), captions, questions, shuffle=seed)))
        for seed in range(3)
    ]
    assert found[0] == [(f"c{n}", f"q{n}") for n in range(6)] and found == found[:1] * 3


def test_different_images_with_the_same_features_are_retrieved_and_not_aligned(tmp_path: Path) -> None:
    flags = sources(tmp_path, {"c1": 0.0, "c2": 30.0}, {"q1": 0.0, "q2": 30.01})
    rows = build(tmp_path, flags)
    assert names(rows) == [("c1", "q1"), ("c2", "q2")] and [r["similarity"] for r in rows] == [0.999999, 0.999999]
    built = next(tmp_path.glob("built*")) / "pairs.jsonl"
    file = read_pairs(rows_section(), path=str(built), field="data", dataset="d", image_dir=None, threshold=0.0)
    assert "2 pairs, 0 aligned, 2 retrieved" in file.notes[0]


def test_the_medoid_of_a_cluster_is_a_pair_with_itself_where_it_has_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Around 0: m is nearest the centroid and has both. Around 90: n is nearest and lacks a question, o has both. Around 180:
    nobody has both, p is nearest."""
    captions = {"l": -4.0, "m": 0.5, "n": 90.0, "o": 93.0, "k": 87.5, "p": 180.0, "r": 186.0}
    flags = sources(tmp_path, captions, {"q": 4.0, "s": 175.0}, complete=["m", "o"])
    rows = build(tmp_path, flags, "--aligned", "3", "--threshold", "0.9", "--to-complete", "todo/needs.jsonl")
    said = capsys.readouterr().out
    assert sorted(names(rows)[:2]) == [("m", "m"), ("o", "o")]
    assert rows[0]["similarity"] == 1.0 and set(rows[0]["understand_ann"]) == set(rows[0]["generate_ann"])
    assert sorted(names(rows)[2:]) == [("l", "q"), ("p", "s")]
    assert "pairs: 4, of which 2 aligned and 2 retrieved" in said
    assert "in 1 clusters the image nearest the centroid lacks a caption or a question" in said
    assert "1 clusters make no aligned pair" in said and "images/p.png needs a question with its answer" in said
    (needs,) = [json.loads(line) for line in Path("todo/needs.jsonl").read_text().splitlines()]
    assert needs["needs"] == "a question with its answer" and needs["prompt"] == "a picture of p"


def test_an_image_in_both_files_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = sources(tmp_path, {"a": 0.0, "c": 90.0}, {"a": 0.0, "q": 91.0})
    rows = build(tmp_path, flags, "--aligned", "2", "--threshold", "0.9")
    assert names(rows) == [("a", "a"), ("c", "q")]
    assert rows[0]["generate_ann"]["question"] == QUESTION and rows[0]["understand_ann"]["prompt"] == "a picture of a"
    assert "images: 3, of which 1 have a caption and a question" in capsys.readouterr().out
    # Without clusters it is no neighbour of itself.
    assert ("a", "a") not in names(build(tmp_path, flags, "--threshold", "0"))


def test_random_pairs_are_the_same_captions_and_questions_dealt_again(tmp_path: Path) -> None:
    captions, questions = {f"c{n}": 10.0 * n for n in range(8)}, {f"q{n}": 10.0 * n + 1 for n in range(8)}
    flags = sources(tmp_path, captions, questions, complete=["c0", "c1", "c2", "c3"])
    nearest = build(tmp_path, flags, "--aligned", "3")
    dealt = build(tmp_path, flags, "--aligned", "3", "--pairing", "random")
    for side in (0, 1):
        assert sorted(n[side] for n in names(nearest)) == sorted(n[side] for n in names(dealt))
    assert names(nearest) != names(dealt) and all(drawn != asked for drawn, asked in names(dealt))
    assert names(dealt) == names(build(tmp_path, flags, "--aligned", "3", "--pairing", "random"))
    assert names(dealt) != names(build(tmp_path, flags, "--aligned", "3", "--pairing", "random", "--seed", "1"))
    angle = {**captions, **questions}
    for row, (drawn, asked) in zip(dealt, names(dealt), strict=True):
        cosine = np.cos(np.deg2rad(angle[drawn] - angle[asked]))
        assert row["similarity"] == pytest.approx(max(0.0, cosine), abs=1e-6)


def test_what_is_built_is_read(tmp_path: Path) -> None:
    captions, questions = {f"c{n}": 7.0 * n for n in range(30)}, {f"q{n}": 7.3 * n for n in range(30)}
    flags = sources(tmp_path, captions, questions, complete=["c3", "c4", "c20"])
    rows = build(tmp_path, flags, "--aligned", "4")
    path = tmp_path / "built0" / "pairs.jsonl"
    found = read_pairs(rows_section(), path=str(path), field="f", dataset="d", threshold=0.6).train.prompts
    assert len(found) == len(rows) > 20
    used = [name for pair in set(names(rows)) for name in set(pair)]
    assert len(used) == len(set(used)), "no image twice"
    again = build(tmp_path, flags, "--aligned", "4")
    assert again == rows


def test_more_rows_about_an_image_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = sources(tmp_path, {"c": 0}, {"q": 1})
    row = json.loads(Path("questions.jsonl").read_text())
    write_jsonl(Path("questions.jsonl"), [row, {**row, "answer": "A"}])
    np.save("questions.npy", vectors([1, 1]))
    assert build(tmp_path, flags)[0]["understand_ann"]["answer"] == "B"
    assert "1 more captions and questions about an image that has one" in capsys.readouterr().out


def test_bad_rows_are_named_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = sources(tmp_path, {"c": 0}, {"q": 1, "r": 2, "s": 3})
    rows = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    rows[0]["answer"], rows[1]["image_path"] = "E", "images/none.png"
    write_jsonl(Path("questions.jsonl"), rows)
    assert main(["build-pairs", *flags, "--output", "refused.jsonl"]) != 0
    said = capsys.readouterr().err
    assert "2 of 3 rows cannot be used; correct them, or give --bad-rows leave_out" in said
    assert "questions.jsonl:1: answer: 'E' is none of the question's options A, B" in said
    assert not Path("refused.jsonl").exists()
    assert names(build(tmp_path, flags, "--bad-rows", "leave_out")) == [("c", "s")]
    said = capsys.readouterr().out
    assert "questions: 1 of 3 rows" in said and "left out: " in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image_path": "images/c.png"}, "captions.jsonl:1: prompt: missing; a captioned image has a text in"),
        ({"prompt": "x"}, "captions.jsonl:1: image_path: missing; a row is about an image"),
    ],
)
def test_a_row_without_what_its_file_is_for_is_named(
    tmp_path: Path, row: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = sources(tmp_path, {"c": 0}, {"q": 1})
    write_jsonl(Path("captions.jsonl"), [row])
    assert main(["build-pairs", *flags, "--output", "pairs.jsonl"]) != 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--threshold", "1.2"], "--threshold 1.2 must be from 0 to 1"),
        (["--neighbours", "0"], "--neighbours 0 must be at least 1"),
        (["--aligned", "3"], "--aligned 3 is more than the 2 images there are; lower it"),
        (["--output", "captions.jsonl"], "--output captions.jsonl is there already"),
        (["--threshold", "1"], "no pair is made: lower --threshold 1 or raise --aligned 0"),
        (["--pairing", "random"], "--pairing random needs at least 2 pairs to exchange, and there are 1"),
        (["--captions", "none.jsonl"], "none.jsonl; did you mean captions.jsonl?"),
        (["--captions-features", "none.npy"], "--captions-features: no file at"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = sources(tmp_path, {"c": 0}, {"q": 1})
    assert main(["build-pairs", *flags, "--output", "pairs.jsonl", *more]) != 0
    assert words in capsys.readouterr().err
    assert not Path("pairs.jsonl").exists()


def test_features_of_two_widths_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = sources(tmp_path, {"c": 0}, {"q": 1})
    np.save("questions.npy", np.ones((1, 3)))
    assert main(["build-pairs", *flags, "--output", "pairs.jsonl"]) != 0
    assert "2 numbers for captions and 3 numbers for questions" in capsys.readouterr().err


def test_a_missing_feature_file_is_said_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-pairs", "--captions", "a.jsonl", "--questions", "b.jsonl", "--output", "c.jsonl"]) != 0
    assert "--captions-features is missing; give a file of features, or a --vision-model" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_features_are_read_from_both_formats_and_made_unit_vectors(tmp_path: Path, kind: str) -> None:
    table = np.array([[3, 4], [0, 2], [1, 0]], dtype=kind)
    np.save(tmp_path / "f.npy", table)
    save_file({"any": table}, tmp_path / "f.safetensors")
    for name in ("f.npy", "f.safetensors"):
        found = load_features("--f", tmp_path / name, 3, [0, 2])
        assert found.dtype == np.float32 and found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [1, 0]]


class _Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones((2, 2)), "has 2 rows, but the file that it is of has 3; give a row of features for each"),
        (np.ones((3, 2, 2)), r"has the shape \(3, 2, 2\); features are"),
        (np.ones((3, 2), dtype=np.int64), "has numbers of type int64; save them as one of float16, float32, float64"),
        (np.array([[1, 0], [0, 0], [1, 1.0]]), "row 2 of those that are used is all zero"),
        (np.array([[1, 0], [1, 0], [np.nan, 1.0]]), "row 3 of those that are used has numbers that are not finite"),
        (np.array([[1, 0], [1, 0], [np.inf, 1.0]]), "row 3 of those that are used has numbers that are not finite"),
        (np.array([_Trap()] * 3, dtype=object), "is no array of numbers in NumPy's format"),
        (b"no array at all", "is no array of numbers in NumPy's format"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_used_are_named_and_nothing_is_run(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "f.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        load_features("--f", path, 3, [0, 1, 2])
    assert not Path("touched").exists()


def test_other_files_of_features_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(_Trap()))
    (tmp_path / "f.safetensors").write_bytes(b"nothing")
    save_file({"a": np.ones((3, 2)), "b": np.ones((3, 2))}, tmp_path / "two.safetensors")
    np.savez(tmp_path / "z", a=np.ones((3, 2)))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    for name, words in (
        ("f.pkl", r"ends in neither of \.npy, \.safetensors"),
        ("f.safetensors", "is not in the format of safetensors"),
        ("two.safetensors", "holds a, b; save one tensor"),
        ("z.npy", "holds several arrays"),
    ):
        with pytest.raises(DataError, match=words):
            load_features("--f", tmp_path / name, 3, [0])
    assert not Path("touched").exists()


def test_k_means_finds_clusters_and_their_means_and_loses_none() -> None:
    points = normalised("", vectors([0, 1, 2, 120, 122, 240]).astype(np.float32))
    labels, centroids = k_means(points, 3, seed=5)
    assert sorted(map(len, (np.flatnonzero(labels == k) for k in range(3)))) == [1, 2, 3]
    for k in range(3):
        assert centroids[k] == pytest.approx(points[labels == k].mean(0), abs=1e-6)
    same = normalised("", np.ones((5, 2), dtype=np.float32))
    labels, _ = k_means(same, 3, seed=0)  # fewer different points than clusters
    assert len(labels) == 5 and set(labels) <= {0, 1, 2}


def test_features_come_from_a_vision_model_of_a_folder_and_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil

    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")).eval()
    model.save_pretrained("model")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    processor.save_pretrained("model")
    flags = sources(tmp_path, {"c": 0, "d": 0}, {"q": 1})
    Path("captions.npy").unlink()
    Path("questions.npy").unlink()
    rows = [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()]
    write_jsonl(Path("captions.jsonl"), [rows[0], {"prompt": "no image"}, rows[1]])
    more = ("--vision-model", "model", "--batch-size", "2", "--bad-rows", "leave_out", "--threshold", "0")
    built = build(tmp_path, flags, *more)
    kept = np.load("captions.npy", allow_pickle=False)
    pixels = torch.from_numpy(np.zeros((1, 3, 8, 8), dtype=np.float32))
    pixels[0] = torch.tensor([sum(map(ord, "d")) / 255, 0, 0])[:, None, None] * 2 - 1
    with torch.inference_mode():
        wanted = model(pixels).pooler_output.flatten().numpy()
    assert kept.shape == (3, 8) and kept[2] == pytest.approx(wanted, abs=1e-5) and not kept[1].any()
    Path("model/config.json").unlink()
    assert build(tmp_path, flags, *more) == built, "from the kept files"
    Path("captions.npy").unlink()
    assert main(["build-pairs", *flags, *more, "--output", "no.jsonl"]) != 0
    assert "--vision-model model: no config.json there" in capsys.readouterr().err


def test_a_model_of_images_and_texts_gives_its_features_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import CLIPModel

    from tests.support.tiny_clip import MEAN, STD, write_clip
    from trainer.data.pairs.building.vision import compute_features

    write_clip(tmp_path / "clip", 0)
    path = tmp_path / image(tmp_path, "x")
    found = compute_features(tmp_path / "clip", [str(path)] * 3, device="cpu", batch_size=2, title="x")
    with torch.inference_mode():
        pixels = (torch.tensor([sum(map(ord, "x")) / 255, 0, 0]) - torch.tensor(MEAN)) / torch.tensor(STD)
        whole = pixels[:, None, None].expand(1, 3, 32, 32)
        model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
        wanted = model.visual_projection(model.vision_model(whole).pooler_output)[0]
    assert found.shape == (3, len(wanted)) and found[2] == pytest.approx(wanted.numpy(), abs=1e-5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="--device cuda: there is no CUDA device here"):
        compute_features(tmp_path / "clip", [str(path)], device="cuda", batch_size=1, title="x")
