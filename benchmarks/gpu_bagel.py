"""Speed and memory of a step on a long pack at the geometries of BAGEL and NEO, of reduced depth, on one GPU, with random weights.

    python benchmarks/gpu_bagel.py                              # both models, 4 layers, a pack of 50,000 tokens, bfloat16
    python benchmarks/gpu_bagel.py --model mot --layers 8 --checkpointing
    python benchmarks/gpu_bagel.py --device cpu --tiny          # does the script run? The numbers say nothing

BAGEL's rows are edits with a thought: source and target of 1024 x 1024 pixels as 4,096 latents each, the source seen in 1,444 patches, and a
learnt text. NEO's are questions about an image of 16 x 16 tokens with a learnt answer. A pack is filled with as many rows as go in, and
trained on by the trainer's own Updater with AdamW; medians over the rounds, after one that is not counted. For each model it is said whether
that fits, how long a step takes, how many tokens that is a second, and the peak of memory beside what the doctor's forecast says of it.

Attention by the compiled sparse kernel (flex) is compared with the dense mask in bfloat16 at the model's heads: what comes out, and the
gradients of queries, keys and values, as the largest difference by the largest number; then both losses of the whole network. On a shorter
pack, whose mask fits. It exits with 1 where one differs by more than 1e-2, or where the pack does not fit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.first_gpu.rates import matrix_rate, seconds
from benchmarks.waiting_service import write_results
from tests.support import tiny_bagel
from tests.support.pack_rows import packed
from tests.support.tiny_neo import word_tokenizer
from trainer.config import DistributedConfig, OptimConfig
from trainer.config.mot import MotConfig
from trainer.config.neo import NeoConfig
from trainer.data.sequences import ImageItem, Resize, SequencePlan, TextItem
from trainer.engine import build_engine
from trainer.objectives.packed import SupervisedPacks
from trainer.policies.base import Laid, Laying, ReadsPacks
from trainer.policies.unified.attention import Layout, attend
from trainer.policies.unified.mot.flux_vae import FLUX_FILE
from trainer.policies.unified.mot.geometry import Geometry, LanguageGeometry, VisionGeometry
from trainer.policies.unified.mot.loading import load_codec
from trainer.policies.unified.mot.memory import pack_bytes as mot_bytes
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.network import MotNetwork, initialize
from trainer.policies.unified.mot.pack import layout_of
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.policies.unified.mot.words import Words
from trainer.policies.unified.neo.geometry import NeoGeometry, to_fields
from trainer.policies.unified.neo.memory import pack_bytes as neo_bytes
from trainer.policies.unified.neo.model import NeoModel
from trainer.policies.unified.neo.network import NeoNetwork
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.policies.unified.neo.processor import NeoProcessor
from trainer.policies.unified.neo.rows import packed as neo_packed
from trainer.policies.unified.neo.tokenizer import END, IMAGE, load_tokenizer
from trainer.policies.unified.pack_memory import PackTokens
from trainer.processes.distributed import World
from trainer.update.updater import Updater

TOLERANCE = 1e-2  # in bfloat16
# BAGEL-7B-MoT: Qwen2.5-7B, SigLIP so400m/14 at 980 pixels without its last layer, FLUX's latents in patches of 2 x 2.
BAGEL = LanguageGeometry(3584, 28, 28, 4, 18944, 152064)
SIGLIP = VisionGeometry(1152, 26, 16, 4304, 14, 980)
SMALL_BAGEL, SMALL_SIGLIP = LanguageGeometry(64, 2, 4, 2, 96, 300), VisionGeometry(32, 1, 2, 48, 14, 56)
# NEO-2B: Qwen3-1.7B with 12 new layers before its own.
NEO = NeoGeometry(2048, 6144, 40, 16, 8, 128, 151936, 1e-6, 1e6, 1e4, 1024, 16, 2, 1e4, extra_layers=12)
SMALL_NEO = NeoGeometry(64, 96, 2, 4, 2, 16, 300, 1e-6, 1e6, 1e4, 32, 8, 2, 1e4, extra_layers=1)
THOUGHT = 400  # letters of a learnt text, a token each


@dataclass(frozen=True)
class Bench:
    """A model with what is measured of it.

    Attributes:
        row: a row with all images as the model takes them, and one with small images, for the dense mask.
        layout: of rows.
        heads: of queries, of keys, numbers of a key, numbers of a value.
        forecast: bytes of a step on a pack, by the doctor's own count.
    """

    policy: ReadsPacks
    model: Any
    row: Callable[[int, bool], Laid]
    layout: Callable[[Sequence[Any]], Layout]
    heads: tuple[int, int, int, int]
    forecast: Callable[[PackTokens], float]
    frozen: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def mot_bench(args: argparse.Namespace, device: torch.device, folder: Path) -> Bench:
    """A Mixture-of-Transformers, its weights made on the device, with FLUX's autoencoder at its published size."""
    language, vision = (SMALL_BAGEL, SMALL_SIGLIP) if args.tiny else (BAGEL, SIGLIP)
    places = 4 if args.tiny else 64
    language, vision = _reduced(language, args.layers), _reduced(vision, args.layers)
    widths, blocks = (tiny_bagel.VAE_WIDTHS, 1) if args.tiny else (tiny_bagel.PUBLISHED_VAE_WIDTHS, 2)
    save_file(tiny_bagel.drawn(tiny_bagel.vae_shapes(blocks, widths), 2), folder / FLUX_FILE)
    codec = load_codec(folder, device, torch.bfloat16)
    config = MotConfig(
        type="mot", pretrained=str(folder), max_latent_size=places, gradient_checkpointing=args.checkpointing
    )
    geometry = Geometry(language, vision, codec.channels * codec.latent_patch**2, places)
    with device:
        network = MotNetwork(geometry)
        initialize(network)
    model = MotModel(network, codec, Words.fresh(()), config, device, about="Random weights of BAGEL's geometry.")
    policy = MotPolicy(model, keep_reference=False)
    picture = _picture(folder, 64 if args.tiny else 1024)
    small = Resize(16, 64 if args.tiny else 256, 64 if args.tiny else 256)
    small_seen = Resize(14, 56 if args.tiny else 252, 56 if args.tiny else 252)

    def row(number: int, is_small: bool) -> Laid:
        of = {"clean": small, "seen": small_seen, "drawn": small} if is_small else {}
        items = (
            TextItem("make it red"),
            ImageItem(picture, "clean", resize=of.get("clean")),
            ImageItem(picture, "seen", resize=of.get("seen")),
            TextItem("a" * (16 if args.tiny else THOUGHT), learnt=True, then_image=True),
            ImageItem(picture, "drawn", resize=of.get("drawn")),
        )
        return policy.lay(SequencePlan(f"row {number}", items), Laying(number))

    return Bench(
        policy,
        model,
        row,
        lambda rows: layout_of(rows, device),
        (language.num_attention_heads, language.num_key_value_heads, language.head_dim, language.head_dim),
        lambda pack: mot_bytes(geometry, config, pack, on_cpu=device.type == "cpu"),
        frozen=2.0 * sum(each.numel() for each in codec._vae.vae.parameters()),  # type: ignore[attr-defined]
        facts={"model": "mot", "layers": language.num_hidden_layers, "vision_layers": vision.num_hidden_layers},
    )


def neo_bench(args: argparse.Namespace, device: torch.device, folder: Path) -> Bench:
    """A native model, its weights made on the device."""
    whole = SMALL_NEO if args.tiny else NEO
    geometry = _reduced(whole, args.layers)
    word_tokenizer().save_pretrained(folder)
    tokenizer = load_tokenizer(folder, "policy.pretrained")
    side = geometry.stride
    config = NeoConfig(
        type="neo",
        pretrained=str(folder),
        min_pixels=side**2,
        max_pixels=(16 * side) ** 2,
        gradient_checkpointing=args.checkpointing,
    )
    ids = {"image_id": tokenizer.convert_tokens_to_ids(IMAGE), "end_id": tokenizer.convert_tokens_to_ids(END)}
    torch.manual_seed(0)
    with device:
        network = NeoNetwork(geometry, **ids)
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.02)
    network.recomputes = args.checkpointing
    processor = NeoProcessor(geometry, tokenizer, config)
    fields = to_fields(geometry, {}, "float32")
    model = NeoModel(
        network.to(device), processor, config, device, fields=fields, about="Random weights of NEO's geometry."
    )
    policy = NeoPolicy(model, keep_reference=False)
    large, little = _picture(folder, 16 * side), _picture(folder, 4 * side)

    def row(number: int, is_small: bool) -> Laid:
        shown, said = ImageItem(little if is_small else large, "seen"), "red " * 64
        items = (shown, TextItem("what color is the disc", role="user"), TextItem(said, learnt=True, role="assistant"))
        return policy.lay(SequencePlan(f"row {number}", items), Laying(number))

    return Bench(
        policy,
        model,
        row,
        lambda rows: neo_packed([each.row for each in rows], device)[1],
        (geometry.num_heads, geometry.num_kv_heads, 2 * geometry.head_dim, geometry.head_dim),
        lambda pack: neo_bytes(geometry, config, pack, on_cpu=device.type == "cpu"),
        facts={"model": "neo", "layers": geometry.num_layers},
    )


def _reduced(geometry: Any, layers: int | None) -> Any:
    """With so many layers; new ones of a native model in proportion."""
    if layers is None:
        return geometry
    if isinstance(geometry, NeoGeometry):
        extra = geometry.extra_layers or 0
        return replace(geometry, num_layers=layers, extra_layers=round(layers * extra / geometry.num_layers))
    return replace(geometry, num_hidden_layers=min(layers, geometry.num_hidden_layers))


def _picture(folder: Path, side: int) -> str:
    path = folder / f"{side}.png"
    Image.effect_noise((side, side), 64).convert("RGB").save(path)
    return str(path)


def filled(bench: Bench, tokens: int, *, is_small: bool) -> list[Laid]:
    """As many rows as go into so many tokens, at least one."""
    rows = [bench.row(0, is_small)]
    while sum(row.length for row in rows) + rows[0].length <= tokens:
        rows.append(bench.row(len(rows), is_small))
    return rows


@dataclass(frozen=True)
class OnePack:
    """The pack of every step."""

    rows: Sequence[Laid]
    left_out: tuple[str, ...] = ()

    @property
    def keys(self) -> list[tuple[int, int]]:
        return [(0, place) for place in range(len(self.rows))]

    def packs(self) -> list[OnePack]:
        return [self]


def train(bench: Bench, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Steps on one long pack, and their peak of memory beside the forecast."""
    rows = filled(bench, args.tokens, is_small=False)
    seen = sum(len(each) for row in rows for each in _patches_of(row, bench))
    pack = PackTokens(sum(row.length for row in rows), sum(sum(row.learnt) for row in rows), seen)
    world = World(rank=0, size=1, device=device)
    optim = OptimConfig(lr=1e-6, schedule="constant")
    trainable = bench.policy.trainable
    engine = build_engine(trainable, optim, DistributedConfig(), world)
    objective = SupervisedPacks(bench.policy, packed([{"name": "all"}]), OnePack(rows), ["all"])
    updater = Updater(objective, engine, optim, world, max_steps=1_000_000)
    trained = sum(each.numel() for each in trainable.parameters() if each.requires_grad)
    positions = 4.0 * sum(each.numel() for each in trainable.parameters() if not each.requires_grad)
    # Weights, gradients and two moments.
    held = 16.0 * trained + positions + bench.frozen
    told = held + bench.forecast(pack)
    facts: dict[str, Any] = {
        "parameters": sum(each.numel() for each in trainable.parameters()),
        "rows": len(rows),
        "pack_tokens": pack.tokens,
        "held_gib": held / 2**30,
        "forecast_gib": told / 2**30,
    }
    times = []
    try:
        for number in range(args.rounds + 1):
            took, row = seconds(device, lambda n=number: updater.step(None, n))
            if number:
                times.append(took)
    except torch.OutOfMemoryError as error:
        return {**facts, "fits": False, "why": str(error).splitlines()[0]}
    took = statistics.median(times)
    found = {**facts, "fits": True, "step_s": took, "tokens_per_s": pack.tokens / took, "loss_ce": row["loss/ce"]}
    if device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(device))
        found |= {"peak_gib": peak / 2**30, "peak_by_forecast": peak / told}
    return found


def _patches_of(row: Any, bench: Bench) -> list[range]:
    """Of each image that goes through a vision encoder."""
    side = bench.model.ways.seen_patch if hasattr(bench.model, "ways") else 0
    images = getattr(row, "seen", []) if side else []
    return [range(each.shape[0] * each.shape[1] // side**2) for each in images]


def compare(bench: Bench, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The sparse kernel against the dense mask, which a CPU leaves out."""
    rows = filled(bench, args.compare_tokens, is_small=True)
    if device.type != "cuda":
        return {"flex_left_out": "flex attention has a compiled kernel and gradients on a GPU alone"}
    layout = bench.layout(rows)
    queries, keys, width, narrow = bench.heads
    count = len(layout)
    torch.manual_seed(0)
    shapes = ((queries, count, width), (keys, count, width), (keys, count, narrow))
    given = [torch.randn(shape, device=device).bfloat16().requires_grad_() for shape in shapes]
    back = torch.randn(queries, count, narrow, device=device).bfloat16()
    found: dict[str, list[Tensor]] = {}
    for way in ("dense", "flex"):
        out = attend(*given, layout, way, narrow**-0.5)  # type: ignore[arg-type]
        found[way] = [out.detach(), *torch.autograd.grad(out, given, back)]
    names = ("out", "grad_q", "grad_k", "grad_v")
    apart = {
        f"flex_{name}": float((dense - flex).abs().max() / dense.abs().max())
        for name, dense, flex in zip(names, *found.values(), strict=True)
    }
    facts = {"compared_tokens": count, "compared_rows": len(rows), **apart}
    losses = {way: _losses(bench, rows, way) for way in ("dense", "flex")}
    for name, dense in losses["dense"].items():
        facts[f"flex_loss_{name}"] = abs(losses["flex"][name] - dense) / max(abs(dense), 1e-6)
    return facts


@torch.no_grad()
def _losses(bench: Bench, rows: Sequence[Laid], way: str) -> dict[str, float]:
    """Of the whole network, attended in one way."""
    model = bench.model
    before = model.config if isinstance(model, MotModel) else model.way
    if isinstance(model, MotModel):
        model.config = model.config.model_copy(update={"attention": way})
    else:
        model.way = way
    try:
        out = bench.policy.read(rows)
    finally:
        if isinstance(model, MotModel):
            model.config = before
        else:
            model.way = before
    found = {"ce": float(out.cross_entropy_T.float().mean())}
    return found | ({"mse": float(out.squared_error_L.float().mean())} if len(out.squared_error_L) else {})


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="both", choices=("mot", "neo", "both"))
    parser.add_argument("--tokens", type=int, default=50_000, help="Most tokens of the pack.")
    parser.add_argument("--compare-tokens", type=int, default=6_000, help="Of the pack that flex is compared on.")
    parser.add_argument("--layers", type=int, default=4, help="Of the decoder, and of the vision encoder.")
    parser.add_argument("--checkpointing", action="store_true", help="Gradient checkpointing.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="Small geometries.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/gpu_bagel.json"))
    args = parser.parse_args(words)
    device = torch.device(args.device)
    rate = matrix_rate(device, 256 if args.tiny else 8192)
    rows, well = [], True
    for make in {"mot": [mot_bench], "neo": [neo_bench], "both": [mot_bench, neo_bench]}[args.model]:
        with tempfile.TemporaryDirectory() as folder:
            bench = make(args, device, Path(folder))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            compared = compare(bench, args, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            row = {**bench.facts, **train(bench, args, device), **compared, "matrix_tflops": rate / 1e12}
        apart = [value for key, value in compared.items() if isinstance(value, float) and key.startswith("flex_")]
        well &= row["fits"] and max(apart, default=0.0) <= TOLERANCE
        rows.append({"hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", **row})
        del bench
    for row in rows:
        print(f"\n| {row['model']} | value |\n|---|---|")
        for key, value in row.items():
            print(f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |")
    write_results(args.out, "gpu_bagel", rows)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
