"""The consistency protocol over photographs: ours, and the same loop in torch, in turn.

    python benchmarks/shift.py [--model resnet18_lpf4] [--crop 112] [--batch 26] [--repeats 5]

Both read the same 208 JPEG files, take the centre (crop + 32 pixels) of the resized image, and per
pass classify two crops at offsets 0..31; two passes. Torch runs the original's net, channels last,
behind torchvision's transforms and a DataLoader. Images per second over the whole protocol,
medians; the ratio is the median of the ratios of neighbouring runs. A first run of each is not
counted: ours compiles in it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from photos import photos_data, write_photos
from reference import reference_net, torchvision

from aa_flax import create_model, load_torch_state_dict
from aa_flax.data.loader import evaluation_batches
from aa_flax.data.sources import make_source
from aa_flax.evaluation.consistency import consistency
from aa_flax.evaluation.observe import observe
from aa_flax.evaluation.views import ShiftedPairs
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import data_mesh

COUNT, RANGE, PASSES = 208, 32, 2


def ours(model: Classifier, folder: Path, crop: int, batch: int) -> float:
    data = photos_data(folder.parent, resize_size=crop + RANGE, num_workers=2)
    batches = evaluation_batches(make_source(data, "val"), batch, data, crop=crop + RANGE)
    pairs = {"shift": ShiftedPairs(crop, RANGE, passes=PASSES)}
    return consistency(observe(model, batches, pairs, mesh=data_mesh())["shift"])["consistency"]


@torch.no_grad()
def theirs(net: torch.nn.Module, folder: Path, crop: int, batch: int) -> float:
    steps = torchvision.transforms
    normalise = steps.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    size = crop + RANGE
    transform = steps.Compose(
        [steps.Resize(size), steps.CenterCrop(size), steps.ToTensor(), normalise]
    )
    images = torchvision.datasets.ImageFolder(folder, transform)
    rng = np.random.default_rng(0)
    agreements = []
    for x, _ in torch.utils.data.DataLoader(images, batch):
        x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(PASSES):
            top, left = rng.integers(0, RANGE, (2, 2))
            first, second = (
                net(x[:, :, i : i + crop, j : j + crop]).argmax(1)
                for i, j in zip(top, left, strict=True)
            )
            agreements.append((first == second).float().mean().item())
    return 100 * float(np.mean(agreements))


def seconds(run: Callable[[], float]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18_lpf4")
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--batch", type=int, default=26)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    net = reference_net(args.model)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = load_torch_state_dict(create_model(args.model), net.state_dict())
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_photos(Path(temporary) / "val", COUNT)
        runs = [
            lambda: ours(model, folder, args.crop, args.batch),
            lambda: theirs(net, folder, args.crop, args.batch),
        ]
        for run in runs:
            run()
        times = np.array([[seconds(run) for run in runs] for _ in range(args.repeats)])
    rates = COUNT / np.median(times, 0)
    print(f"{jax.devices()[0].device_kind}; jax {jax.__version__}, torch {torch.__version__}")
    print(f"{args.model}, crops of {args.crop}, batches of {args.batch}, {args.repeats} times\n")
    print("| ours, img/s | torch, img/s | ratio |\n|---|---|---|")
    ratio = np.median(times[:, 1] / times[:, 0])
    print(f"| {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
