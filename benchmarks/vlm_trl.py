"""TRL's GRPOTrainer on the small VLM's quickstart; `benchmarks/vlm_step.py` runs it in TRL's own environment.

The same base, questions, rewards, number of answers and optimizer as configs/vlm_quickstart.yaml. Rewards are the rules service's
own functions, called in this process.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.kit.scorer import Item, Score  # noqa: E402
from services.rules import answers, forms  # noqa: E402

PROMPTS, GROUP, LONGEST = 16, 12, 20


def questions(path: Path) -> list[dict[str, Any]]:
    """Rows as TRL takes them: the image beside a conversation of one turn."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        image = Image.open(io.BytesIO(base64.b64decode(row["image"].partition(",")[2]))).convert("RGB")
        rows.append(
            {"prompt": [{"role": "user", "content": row["question"]}], "image": image, "answer": str(row["answer"])}
        )
    return rows


def reward(name: str, rule: Callable[[Item], Any]) -> Callable[..., list[float | None]]:
    """A reward of the rules service as a function of TRL."""

    def score(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float | None]:
        scores = []
        for completion, target in zip(completions, answer, strict=True):
            result = rule(Item("", "", completion=completion[0]["content"], targets=(target,)))
            scores.append(result.value if isinstance(result, Score) else None)
        return scores

    score.__name__ = name
    return score


def train(base: Path, data: Path, steps: int, seed: int, lr: float, snapshots: Sequence[int], out: Path) -> None:
    """Train; write weights at the steps `snapshots`, and CPU seconds and tokens of every step as JSON."""
    import datasets
    import transformers
    import trl

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_model" not in name and "connector" not in name)
    kept: dict[str, Any] = {"cpu": [], "paused": 0.0, "generate_s": 0.0, "tokens": 0}
    _count_generation(model, kept)

    class Stamps(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            kept["cpu"].append(time.process_time() - kept["paused"])
            if state.global_step in snapshots:
                begun = time.process_time()
                torch.save(model.state_dict(), out / f"step{state.global_step}.pt")
                kept["paused"] += time.process_time() - begun

    settings = trl.GRPOConfig(
        output_dir=str(out / "trl"),
        max_steps=steps,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        learning_rate=lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        loss_type="bnpo",
        multi_objective_aggregation="normalize_then_sum",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[reward("accuracy", answers.answer), reward("format", forms.answer_format)],
        args=settings,
        train_dataset=datasets.Dataset.from_list(questions(data)),
        processing_class=transformers.AutoProcessor.from_pretrained(base),
        callbacks=[Stamps()],
    )
    kept["begun"] = time.process_time()
    trainer.train()
    (out / "run.json").write_text(json.dumps(kept))


def _count_generation(model: Any, kept: dict[str, Any]) -> None:
    """Let the model's `generate` add its CPU seconds and the tokens that it writes up to each row's end."""
    generate, ends = model.generate, torch.tensor(model.generation_config.eos_token_id).reshape(-1)

    def counted(*args: Any, **kwargs: Any) -> Any:
        begun = time.process_time()
        written = generate(*args, **kwargs)
        kept["generate_s"] += time.process_time() - begun
        given = kwargs["input_ids"].shape[1]
        is_end = torch.isin(written[:, given:], ends)
        kept["tokens"] += int(((is_end.int().cumsum(1) - is_end.int()) == 0).sum())
        return written

    model.generate = counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--snapshots", type=int, nargs="*", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train(args.base, args.data, args.steps, args.seed, args.lr, args.snapshots, args.out)


if __name__ == "__main__":
    main()
