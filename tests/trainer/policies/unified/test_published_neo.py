"""What the native model expects of a row of texts and images, computed a second time from its tensors alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.support.published_neo import logits, split
from trainer.data.sequences import ImageItem, SequencePlan, TextItem
from trainer.policies.base import Laying
from trainer.policies.unified.neo.policy import NeoPolicy


def test_errors_of_rows_with_images_are_those_of_the_published_network(neo: NeoPolicy, tmp_path: Path) -> None:
    """Two rows in a pack: two images of unlike sides between texts, and texts alone; no pixel is like another."""
    random, paths = np.random.default_rng(0), []
    for number, (width, height) in enumerate([(48, 32), (32, 64)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    shown = [ImageItem(str(path), "seen") for path in paths]
    answer = TextItem("red disc", learnt=True, role="assistant")
    plans = [
        (TextItem("what", role="user"), shown[0], TextItem("color is the"), shown[1], TextItem("left"), answer),
        (TextItem("how many", role="user"), TextItem("two", learnt=True, role="assistant")),
    ]
    rows = [neo.lay(SequencePlan(f"row {n}", items), Laying(0)) for n, items in enumerate(plans)]
    geometry, state = neo.model.network.geometry, dict(neo.model.network.state_dict())
    wanted = []
    for row, images in zip(rows, (paths, []), strict=True):
        ids = row.row.ids_T.tolist()
        found = logits(
            state,
            split(ids, neo.model.processor.image_id, [Image.open(path) for path in images]),
            patch=geometry.patch_size,
            heads=geometry.num_heads,
            shared_heads=geometry.num_kv_heads,
            theta=geometry.rope_theta,
            theta_hw=geometry.rope_theta_hw,
            theta_vision=geometry.rope_theta_vision,
            eps=geometry.rms_norm_eps,
        )
        assert len(found) == len(ids)
        expected = torch.log_softmax(found, -1)
        wanted += [-expected[place - 1, ids[place]] for place in row.learnt_T.nonzero()[:, 0].tolist()]
    with torch.no_grad():
        errors = neo.read(rows).cross_entropy_T
    torch.testing.assert_close(errors, torch.stack(wanted), rtol=0, atol=2e-5)
