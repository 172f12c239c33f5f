"""DeepGen-RL's name for writing a checkpoint as the SFT project reads it: `python -m trainer export --to deepgen_pt`.

    python scripts/rlckpt_to_sftckpt.py --rl_checkpoint outputs/mine --output weights.pth

Takes a run or a checkpoint of ours, or a checkpoint folder (or .safetensors file) of DeepGen-RL's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def convert(source: Path, output: Path) -> None:
    """Raises UserError: no checkpoint there, or `output` exists."""
    from trainer.config import ConfigError

    if output.exists():
        raise ConfigError(f"--output {output} exists; give another name, so that nothing is overwritten")
    if not source.exists():
        raise ConfigError(f"--rl_checkpoint: nothing at {source.absolute()}")
    weights = source / "model.safetensors" if source.is_dir() else source
    if weights.suffix == ".safetensors" and weights.is_file():
        import torch
        from safetensors.torch import load_file

        output.parent.mkdir(parents=True, exist_ok=True)
        torch.save(load_file(weights), output)
        return
    from trainer.export import export_run

    folder = output.with_name(f"{output.name}.folder")
    export_run(source, folder, to="deepgen_pt")
    (folder / "model.pt").rename(output)
    shutil.rmtree(folder)


def main() -> int:
    from trainer.config.base import UserError

    parser = argparse.ArgumentParser(description="Write an RL checkpoint as one .pth file of tensors.")
    parser.add_argument("--rl_checkpoint", "-i", required=True, type=Path, help="A run, a checkpoint, or .safetensors.")
    parser.add_argument("--output", "-o", required=True, type=Path, help="The .pth file.")
    parser.add_argument("--quiet", "-q", action="store_true", help="Say nothing.")
    args = parser.parse_args()
    output = args.output if args.output.suffix == ".pth" else args.output.with_name(f"{args.output.name}.pth")
    try:
        convert(args.rl_checkpoint, output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not args.quiet:
        print(f"Wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
