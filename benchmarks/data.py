"""Our loader compared with torchvision's: docs/benchmarks/loader.md.

    python benchmarks/data.py [--images 1536] [--repeats 5] [--workers 2]
    python benchmarks/data.py --memory [--images 100000]

The first reads photographs of ImageNet's usual size from files, for evaluation (Resize 256,
CenterCrop 224) and training (RandomResizedCrop 224, flip), alternating
our loader with torch's DataLoader over torchvision's ImageFolder and transforms. It prints images
per second, the median of the repeats, and the median of their ratios; then the time of each step on
one core. Our loader returns uint8 images, which the device normalises; torchvision's transforms
return normalised floats. The second reads one epoch of small photographs and prints the peak memory
as it grows.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from photos import photos_data, write_photos
from reference import torchvision
from torch.utils.data import DataLoader, Dataset

from aa_flax.data import pixels
from aa_flax.data.batches import evaluation_batches, training_batches
from aa_flax.data.folder import ImageFolder
from aa_flax.data.pixels import Example, decode

BATCH = 64
PHOTOS = 256  # files, repeated as often as needed


class Repeated(Dataset):
    """A data set of `count` images, which repeats a source or a data set of torchvision."""

    def __init__(self, images, count: int):
        self.images = images
        self.count = count
        self.num_classes = len(getattr(images, "class_names", ()))
        self.class_names: Sequence[str] = getattr(images, "class_names", ())

    def name(self, index: int) -> str:
        return self.images.name(index % len(self.images))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return self.images[index % len(self.images)]


def ours(folder: Path, split: str, count: int, workers: int) -> Iterable:
    data = photos_data(folder, num_workers=workers)
    source = Repeated(ImageFolder(str(folder), "val"), count)
    if split == "training":
        return islice(training_batches(source, BATCH, data, seed=0), count // BATCH)
    return evaluation_batches(source, BATCH, data, crop=224)


def theirs(folder: Path, split: str, count: int, workers: int) -> Iterable:
    steps = torchvision.transforms
    normalise = steps.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    crop = {
        "evaluation": [steps.Resize(256), steps.CenterCrop(224)],
        "training": [steps.RandomResizedCrop(224), steps.RandomHorizontalFlip()],
    }[split]
    transform = steps.Compose([*crop, steps.ToTensor(), normalise])
    images = torchvision.datasets.ImageFolder(folder / "val", transform)
    return DataLoader(
        Repeated(images, count),
        BATCH,
        shuffle=split == "training",
        num_workers=workers,
        multiprocessing_context="spawn",  # JAX's threads do not survive a fork
    )


def rate(batches: Iterable) -> float:
    """Returns images per second from the fourth batch on, when every worker has started."""
    iterator = iter(batches)
    for _ in range(4):
        next(iterator)
    start = time.perf_counter()
    count = sum(BATCH for _ in iterator)
    return count / (time.perf_counter() - start)


def compare(folder: Path, args: argparse.Namespace) -> None:
    print(
        f"\n{args.workers} workers, batches of {BATCH}, {args.images} images, {args.repeats} times"
    )
    print("\n| | ours, img/s | torchvision, img/s | ratio |\n|---|---|---|---|")
    for split in ("evaluation", "training"):
        rates = np.array(
            [
                [rate(make(folder, split, args.images, args.workers)) for make in (ours, theirs)]
                for _ in range(args.repeats)
            ]
        )
        us, them = np.median(rates, 0)
        ratio = np.median(rates[:, 0] / rates[:, 1])
        print(f"| {split} | {us:.0f} | {them:.0f} | {ratio:.2f} |", flush=True)


def shares(folder: Path) -> None:
    """Prints each step's milliseconds per image on one core, in our loader, and its fraction."""
    files = [path.read_bytes() for path in sorted((folder / "val").rglob("*.jpg"))]
    rng = np.random.default_rng(0)
    steps: dict[str, tuple[Callable, Callable]] = {
        "evaluation": (
            lambda image: pixels.resize_short_side(image, 256),
            lambda image: np.asarray(image.crop(pixels.center_box(image.width, image.height, 224))),
        ),
        "training": (lambda image: pixels.random_resized_crop(image, 224, rng), np.asarray),
    }
    print("\n| ms an image | decoding | resizing | copying |\n|---|---|---|---|")
    for split, (resize, copy) in steps.items():
        times = np.zeros(3)
        for first in range(0, len(files), BATCH):
            marks = [time.process_time()]
            images = [decode(file, "") for file in files[first : first + BATCH]]
            marks.append(time.process_time())
            images = [resize(image) for image in images]
            marks.append(time.process_time())
            np.stack([copy(image) for image in images])
            marks.append(time.process_time())
            times += np.diff(marks)
        cells = [f"{1e3 * t / len(files):.2f} ({100 * t / times.sum():.0f} %)" for t in times]
        print(f"| {split} | {' | '.join(cells)} |")


def memory(folder: Path, count: int) -> None:
    """Prints the peak resident memory after each tenth of a training epoch."""
    data = photos_data(folder, resize_size=32, image_size=32, crop_size=32)
    source = Repeated(ImageFolder(str(folder), "val"), count)
    steps = count // BATCH
    print(f"\n| of {count} images | peak, MiB |\n|---|---|")
    batches = training_batches(source, BATCH, data, seed=0)
    for step, _ in enumerate(islice(batches, steps), 1):
        if step * 10 // steps > (step - 1) * 10 // steps:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {100 * step / steps:.0f} % | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    args.images = args.images or (100_000 if args.memory else 1536)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.memory:
            write_photos(folder / "val", 200, sides=(48, 80))
            memory(folder, args.images)
        else:
            write_photos(folder / "val", PHOTOS, sides=(440, 600), quality=(95, 98))
            sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
            print(f"torch {torch.__version__}, {PHOTOS} files of {np.mean(sizes) / 1000:.0f} kB")
            compare(folder, args)
            shares(folder)


if __name__ == "__main__":
    main()
