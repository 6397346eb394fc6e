"""Draws the pictures of docs/explanation.md with this package's own operations.

    python docs/pictures.py [--output docs/pictures]

Takes a few seconds and needs the extra `plots`. Nothing is trained or downloaded.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from sklearn.datasets import load_sample_images

from aa_flax.data.digits import Digits
from aa_flax.evaluation.equivariance import cosine_distance
from aa_flax.evaluation.plots import pyplot
from aa_flax.evaluation.shifts import shift_band_limited
from aa_flax.ops import blur_pool, max_pool
from aa_flax.ops.blur import binomial_taps

PLAIN, BLURRED, DENSE = "#c44e52", "#4c72b0", "#999999"
SIGNAL = np.array([0, 0, 1, 1] * 4, np.float32)  # the signal of Zhang (2019), fig. 4


def draw_signal(output: Path) -> None:
    """Draws max pooling of a signal and of the same signal moved by one, with and without blur."""
    figure, axes = pyplot().subplots(2, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for row, shift, name in zip(axes, (0, 1), ("signal", "moved by one"), strict=True):
        signal = jnp.asarray(np.roll(SIGNAL, shift))[None, :, None]
        maximum = max_pool(jnp.concatenate([signal, signal[:, :1]], 1), 2, stride=1)
        blurred = blur_pool(maximum, 3, stride=2, padding="circular")
        pooled = {"max pool, stride 2": (maximum[:, ::2], PLAIN)}
        pooled["max, blur [1 2 1]/4, stride 2"] = (blurred, BLURRED)
        row[0].bar(range(len(SIGNAL)), signal[0, :, 0], color=DENSE)
        row[0].set_ylabel(name)
        for axis, (title, (values, colour)) in zip(row[1:], pooled.items(), strict=True):
            axis.bar(range(values.shape[1]), values[0, :, 0], color=colour)
            axis.set_title(title if shift == 0 else "")
        row[0].set_title("input" if shift == 0 else "")
        row[0].set_xticks(range(0, 16, 4))
    save(figure, output / "signal.png")


def draw_filters(output: Path) -> None:
    """Draws the frequency response of the binomial filters, and the band that stride 2 aliases."""
    figure, axis = pyplot().subplots(figsize=(6.4, 3.4), layout="constrained")
    frequency = np.linspace(0, 0.5, 200)  # cycles a pixel
    for taps in range(1, 8):
        wave = np.exp(-2j * np.pi * np.outer(frequency, np.arange(taps)))
        colour = pyplot().cm.viridis((taps - 1) / 6.5)
        axis.plot(frequency, abs(wave @ binomial_taps(taps)), color=colour, label=f"{taps}")
    axis.axvspan(0.25, 0.5, color=PLAIN, alpha=0.12)
    axis.text(0.375, 0.92, "aliased by stride 2", ha="center", color=PLAIN)
    axis.set(xlabel="frequency (cycles per pixel)", ylabel="fraction kept", xlim=(0, 0.5))
    axis.legend(title="taps", ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, output / "filters.png")


def edges(images: jax.Array) -> jax.Array:
    """Applies a typical layer: a 3x3 convolution that detects edges, and ReLU."""
    kernel = jnp.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], jnp.float32)
    kernels = jnp.stack([kernel, kernel.T, -kernel, -kernel.T], -1)[:, :, None]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(padded, kernels, (1, 1), "VALID", dimension_numbers=numbers)
    return jax.nn.relu(y)


def plain(images: jax.Array) -> jax.Array:
    """Detects edges and keeps one value in sixteen, with stride 4."""
    return edges(images)[:, ::4, ::4]


def blurred(images: jax.Array, taps: int = 7) -> jax.Array:
    """Detects edges and subsamples them after a binomial filter."""
    return blur_pool(edges(images), taps, stride=4, padding="circular")


def draw_feature(output: Path) -> None:
    """Draws one channel of a strided layer as the digit moves right, pixel by pixel."""
    image = jnp.asarray(Digits("val", 48)[8]["image"], jnp.float32)[None, ..., :1] / 255
    layers = {"stride 4": plain, "blur, stride 4": blurred}
    figure, axes = pyplot().subplots(3, 4, figsize=(7, 5.2), layout="constrained")
    for shift, column in enumerate(axes.T):
        moved = jnp.roll(image, shift, 2)
        column[0].imshow(moved[0, :, :, 0], cmap="gray")
        column[0].set_title(f"moved by {shift}" if shift else "a digit")
        for axis, layer in zip(column[1:], layers.values(), strict=True):
            axis.imshow(layer(moved)[0, :, :, 0], cmap="magma", vmin=0, vmax=2)
    for axis, name in zip(axes[:, 0], ("", *layers), strict=True):
        axis.set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, output / "feature.png")


def photographs() -> jax.Array:
    """Returns parts of scikit-learn's two photographs in grey, `(15, 64, 64, 1)` from 0 to 1."""
    pixels = np.stack(load_sample_images().images).mean(-1, keepdims=True)[:, :384, :640]
    halved = pixels.reshape(2, 192, 2, 320, 2, 1).mean((2, 4))
    parts = halved.reshape(2, 3, 64, 5, 64, 1).swapaxes(2, 3).reshape(-1, 64, 64, 1)
    return jnp.asarray(parts[::2] / 255, jnp.float32)


def deviations(layer: Callable[[jax.Array], jax.Array], images: jax.Array) -> np.ndarray:
    """Returns the cosine distance of moved features and features of moved images, by offset."""
    still = layer(images)
    stride = images.shape[1] // still.shape[1]
    found = np.zeros((stride, stride))
    for offset in np.ndindex(found.shape):
        shifts = jnp.broadcast_to(jnp.array(offset) / stride, (len(images), 2))
        moved = layer(jnp.roll(images, offset, (1, 2)))
        found[offset] = cosine_distance(shift_band_limited(still, shifts), moved).mean()
    return found


def draw_equivariance(output: Path) -> None:
    """Draws the deviation of the strided layer from equivariance, by filter and offset."""
    images, sizes = photographs(), range(1, 8)
    maps = [deviations(lambda x, taps=taps: blurred(x, taps), images) for taps in sizes]
    figure, axes = pyplot().subplots(1, len(maps), figsize=(10, 2.1), layout="constrained")
    for axis, taps, found in zip(axes, sizes, maps, strict=True):
        drawn = axis.imshow(found, cmap="RdYlBu_r", vmin=0, vmax=max(m.max() for m in maps))
        axis.set(xticks=[0, 3], yticks=[0, 3], title=f"{taps} taps" if taps > 1 else "1 tap: plain")
        axis.set_xlabel(f"mean {found.mean():.3f}")
    figure.colorbar(drawn, ax=axes, label="cosine distance")
    save(figure, output / "equivariance.png")


def save(figure, path: Path) -> None:
    """Saves a figure without metadata, so that equal figures give identical files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot().close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "pictures")
    output = parser.parse_args().output
    for draw in (draw_signal, draw_filters, draw_feature, draw_equivariance):
        draw(output)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
