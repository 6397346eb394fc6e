"""Writes pictures for `eval.py --images`, `--clip` and `--tiles` from photographs in packages.

    python examples/own_pictures.py FOLDER

FOLDER gets `photos/`, nine photographs that come with scikit-image and scikit-learn; `clip/`, 100
frames of a camera that drifts over one of them, a fraction of a pixel a frame; `large.png`, one of
1411 pixels cut to 896 x 1120; `digits/`, 40 of scikit-learn's handwritten digits, held out from
training, on a ground of 48 pixels; and `digit_clip/`, 100 frames of a drifting one.
Nothing is downloaded.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from aa_flax.data.digits import Digits

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "moon")
FRAMES, SIZE = 100, 256  # of a clip
DIGIT, MOVED = 48, 0  # pixels of a digit's ground; which one drifts


def photographs() -> dict[str, Image.Image]:
    """Returns the photographs by name."""
    found = {name: getattr(skimage.data, name)() for name in PHOTOGRAPHS}
    china, flower = load_sample_images().images
    found |= {"china": china, "flower": flower}
    return {name: Image.fromarray(pixels).convert("RGB") for name, pixels in found.items()}


def drifting(image: Image.Image, frames: int, size: int, reach: float) -> list[Image.Image]:
    """Yields a window of `size` pixels on a slow curve about the middle, `reach` pixels wide.

    It moves by fractions of a pixel (bicubic), as the view of a camera does.
    """
    found = []
    for i in range(frames):
        angle = 2 * np.pi * i / frames
        left = (image.width - size) / 2 + reach * np.sin(angle)
        top = (image.height - size) / 2 + reach / 2 * np.sin(2 * angle)
        box = (left, top, left + size, top + size)
        found.append(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return found


def write(folder: Path, images: dict[str, Image.Image]) -> None:
    """Writes each image as a PNG file under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png")


def main() -> None:
    """Writes the pictures; the module's docstring describes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    photos = photographs()
    write(folder / "photos", photos)
    frames = drifting(photos["astronaut"], FRAMES, SIZE, reach=12)
    write(folder / "clip", {f"frame{i}": frame for i, frame in enumerate(frames)})
    large = Image.fromarray(skimage.data.retina()).crop((140, 250, 1260, 1146))
    write(folder, {"large": large})
    digits = Digits("val", DIGIT)
    some = {f"digit{i}": Image.fromarray(digits[i]["image"]) for i in range(40)}
    write(folder / "digits", some)
    frames = drifting(Image.fromarray(Digits("val", 72)[MOVED]["image"]), FRAMES, DIGIT, reach=4)
    write(folder / "digit_clip", {f"frame{i}": frame for i, frame in enumerate(frames)})
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
