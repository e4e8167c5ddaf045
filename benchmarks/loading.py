"""Speed of reading images from files, against that of training on them.

    python benchmarks/loading.py [--images 1000] [--workers 0 1 2] [--batch 64] [--skip-training]

Writes JPEG files of 500×375 pixels (gradients and noise, quality 90, about 110 kB, which is
ImageNet's average) into a temporary folder. Prints what an image takes in some ways to make a
training image of a file, in the loader, input alone, by the number of worker processes, and in
training ResNet-18: processor time of all processes, which other work on the machine disturbs little,
and images per second.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from isoflop.lab.data import load_dataset
from isoflop.lab.data.images.files import find_images
from isoflop.lab.data.images.views import RandomView
from isoflop.lab.recipes import get_recipe
from isoflop.model_specs import build_model

SIZE = 224
JITTER = (256, 480)


def write_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    for number in range(count):
        periods, phases = random.uniform(20, 80, (2, 3, 1, 1)), random.uniform(0, 6, (3, 1, 1))
        waves = 127 + 100 * np.sin(x / periods[0] + phases) * np.cos(y / periods[1])
        pixels = waves.transpose(1, 2, 0) + random.normal(0, 22, (375, 500, 3))
        for split in ("train", "val")[: 1 if number else 2]:
            place = folder / split / "n00000000"
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(place / f"{number}.JPEG", quality=90)


def by_pillow(data: bytes, index: int, draft: bool) -> np.ndarray:
    """Decode and resize with Pillow alone, in draft mode at half the size where that suffices."""
    random = np.random.default_rng([0, 0, index])
    shorter_side = int(random.integers(JITTER[0], JITTER[1] + 1))
    place = random.random(2)
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (shorter_side * image.width // image.height, shorter_side))
    return _crop(image.convert("RGB"), shorter_side, place)


def by_simplejpeg(data: bytes, index: int) -> np.ndarray:
    """Decode with simplejpeg, at any of its fractions that suffices, and resize with Pillow."""
    random = np.random.default_rng([0, 0, index])
    shorter_side = int(random.integers(JITTER[0], JITTER[1] + 1))
    place = random.random(2)
    pixels = simplejpeg.decode_jpeg(data, min_height=shorter_side)
    return _crop(Image.fromarray(pixels), shorter_side, place)


def _crop(image: Image.Image, shorter_side: int, place: np.ndarray) -> np.ndarray:
    side = SIZE * min(image.size) / shorter_side
    left, top = (float(p * (n - side)) for p, n in zip(place, image.size, strict=True))
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def processor_time() -> float:
    """Return the seconds of this process and of its children that have ended."""
    own, children = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def show(what: str, milliseconds: float, rate: float) -> None:
    print(f"{what:32} {milliseconds:8.2f} ms {rate:8.0f} images/s", flush=True)


def milliseconds(view: Callable[[bytes, int], object], files: list[bytes]) -> float:
    """Return the least processor time of an image, in milliseconds."""
    times = []
    for _ in range(5):
        start = time.process_time()
        for index, data in enumerate(files):
            view(data, index)
        times.append(time.process_time() - start)
    return 1000 * min(times) / len(files)


def finding(folder: Path) -> float:
    """Return the seconds of finding 128,000 files, a tenth of ImageNet, of which nothing is read."""
    for label in range(1000):
        place = folder / f"n{label:08d}"
        place.mkdir(parents=True)
        for number in range(128):
            (place / f"{number}.JPEG").touch()
    start = time.perf_counter()
    assert len(find_images(folder, "")) == 128_000
    return time.perf_counter() - start


def loading(folder: Path, workers: int, batch: int) -> tuple[float, float]:
    """Return milliseconds of processors per image, and images per second without the first batch."""
    recipe = get_recipe("imagenet").replace(num_classes=1)
    data = load_dataset("imagenet", folder).configured(recipe, workers)
    least, best = float("inf"), 0.0
    for epoch in range(3):
        used, count = processor_time(), 0
        batches = data.train_batches(batch, seed=0, epoch=epoch)
        first, _ = next(batches)
        start = time.perf_counter()
        for images, _ in batches:
            count += len(images)
        best = max(best, count / (time.perf_counter() - start))
        del batches
        least = min(least, 1000 * (processor_time() - used) / (count + len(first)))
    return least, best


def training(batch: int, mixed_precision: bool) -> tuple[float, float]:
    """Return milliseconds of processors per image, and images per second, of dense ResNet-18."""
    cpu = torch.device("cpu")
    device = torch.accelerator.current_accelerator(check_available=True) or cpu
    model = build_model("isoflop:resnet18")
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.875)
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    least, best = float("inf"), 0.0
    for _ in range(6):
        used, start = processor_time(), time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        best = max(best, batch / (time.perf_counter() - start))
        least = min(least, 1000 * (processor_time() - used) / batch)
    return least, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--skip-training", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, args.images)
        files = [path.read_bytes() for path in sorted((folder / "train").rglob("*.JPEG"))]
        print(f"{len(files)} files of {np.mean([len(f) for f in files]) / 1000:.0f} kB on average")
        ways = {
            "Pillow": lambda data, index: by_pillow(data, index, draft=False),
            "Pillow, draft mode": lambda data, index: by_pillow(data, index, draft=True),
            "simplejpeg, Pillow": by_simplejpeg,
            "simplejpeg, PyTorch (isoflop)": RandomView(size=SIZE, jitter=JITTER, seed=0, epoch=0),
        }
        for way, view in ways.items():
            time_ms = milliseconds(view, files[:100])
            show(way, time_ms, 1000 / time_ms)
        for workers in args.workers:
            show(f"loader, {workers} workers", *loading(folder, workers, args.batch))
        print(f"finding 128,000 files in 1000 folders: {finding(folder / 'empty'):.2f} s")
    if not args.skip_training:
        show("training ResNet-18, fp32", *training(args.batch, mixed_precision=False))
        show("training ResNet-18, bf16", *training(args.batch, mixed_precision=True))


if __name__ == "__main__":
    main()
