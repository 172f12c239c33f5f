"""What sending an image costs: milliseconds to encode and to decode, and bytes, per encoding and size.

    python benchmarks/image_encoding.py

The reward client encodes on the trainer's machine and the service decodes on its own, for every image of every step;
this table is why the client's default is what it is. "noise" is uniform noise, the worst case of a compressor; "natural"
has the 1/f spectrum of photographs with a little sensor noise. Rows of the encodings in `wire.images` as they are used
are marked with *. Prints a table and writes the numbers to `--out`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wire.images import decode, encode
from wire.schema import MediaType

SIZES = ((48, 24), (512, 512), (1024, 1024))  # width, height
Encode = Callable[[Image.Image], bytes]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def natural(width: int, height: int) -> Image.Image:
    """Amplitude falls with 1/frequency, channels are correlated, the sensor adds a standard deviation of 2 levels."""
    rng = np.random.default_rng(1)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height))

    def plane() -> np.ndarray:
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) * amplitude
        values = np.fft.ifft2(spectrum).real
        return np.asarray((values - values.mean()) / values.std())

    luminance = plane()
    channels = [128 + 50 * luminance + 12 * plane() + rng.normal(0, 2, (height, width)) for _ in range(3)]
    return Image.fromarray(np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8))


def pillow(image_format: str, options: dict[str, Any], image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def encodings() -> list[tuple[str, MediaType, Encode]]:
    """Name, media type, function. The starred are what `wire.images.encode` does."""
    png: list[tuple[str, MediaType, Encode]] = [
        (f"PNG level {level}", "image/png", partial(pillow, "PNG", {"compress_level": level})) for level in (0, 3, 6, 9)
    ]
    webp = partial(pillow, "WEBP", {"lossless": True, "quality": 80, "method": 4})
    used: list[tuple[str, MediaType]] = [
        ("raw RGB8 *", "image/x-rgb8"),
        ("PNG level 1 *", "image/png"),
        ("WebP lossless, fastest *", "image/webp"),
        ("JPEG 95 *", "image/jpeg"),
    ]
    ours: list[tuple[str, MediaType, Encode]] = [
        (name, media, partial(encode, media_type=media)) for name, media in used
    ]
    return [*ours, *png, ("WebP lossless, Pillow's default", "image/webp", webp)]


def milliseconds(call: Callable[[], object], budget_s: float) -> float:
    """Median time of one call, over at least 3 calls."""
    call()
    times: list[float] = []
    until = time.perf_counter() + budget_s
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times) * 1000


def measure(budget_s: float) -> list[dict[str, Any]]:
    rows = []
    for width, height in SIZES:
        for kind, make in (("noise", noise), ("natural", natural)):
            image = make(width, height)
            for name, media_type, to_bytes in encodings():
                data = to_bytes(image)
                back = partial(decode, data, media_type, width=width, height=height)
                same = back().convert("RGB").tobytes() == image.tobytes()
                rows.append(
                    {
                        "size": f"{height}x{width}",
                        "image": kind,
                        "encoding": name,
                        "lossless": same,
                        "encode_ms": round(milliseconds(partial(to_bytes, image), budget_s), 3),
                        "decode_ms": round(milliseconds(back, budget_s), 3),
                        "bytes": len(data),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=0.3, help="seconds spent on each number")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/image_encoding.json"))
    arguments = parser.parse_args()
    rows = measure(arguments.budget_s)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("| size | image | encoding | lossless | encode ms | decode ms | bytes |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
