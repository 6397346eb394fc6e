"""The process of `models.py` for PyTorch: models of the original and torchvision; see `worker.py`.

Needs torch, torchvision and antialiased-cnns, but not JAX.
"""

import re
import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from worker import Work, device_in_words, serve, versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
SHIFT_RANGE = 32  # pixels


def model_of(name: str) -> torch.nn.Module:
    """Returns torchvision's model, or for `..._lpf<k>` the original antialiased one."""
    if found := re.fullmatch(r"(.+)_lpf(\d)", name):
        originals = import_module("antialiased_cnns")
        model = getattr(originals, found[1])(filter_size=int(found[2]))
        if hasattr(model, "avgpool") and hasattr(model, "classifier"):
            # The original flattens by `view`, which does not accept channels_last maps.
            model.avgpool.register_forward_hook(lambda *call: call[-1].contiguous())
        return model
    # PyPI's torchvision has compiled operators for CUDA builds of torch only; models need none.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent"))
    return getattr(import_module("torchvision").models, name)()


class Model:
    """A model in one memory layout, eager or compiled, for images in that layout."""

    def __init__(self, task: dict[str, Any]):
        channels_last = task["variant"].endswith("channels_last")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.half = task["precision"] == "bfloat16"
        self.module = model_of(task["model"]).to(DEVICE).to(memory_format=self.layout)  # pyright: ignore
        compiles = task["variant"].startswith("compile")
        self.call: Callable = torch.compile(self.module) if compiles else self.module
        self.mean, self.std = (
            torch.tensor(values, device=DEVICE)[:, None, None] for values in (MEAN, STD)
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.half):
            return self.call(images)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        return ((images / 255 - self.mean) / self.std).contiguous(memory_format=self.layout)


def random_images(count: int, size: int) -> torch.Tensor:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
    return torch.tensor(images, device=DEVICE)


def forward(model: Model, task: dict[str, Any]) -> Callable[[], Any]:
    model.module.eval()
    images = model.normalised(random_images(task["batch"], task["size"]))

    @torch.no_grad()
    def run() -> torch.Tensor:
        return model(images)

    return run


def training(model: Model, task: dict[str, Any]) -> Callable[[], Any]:
    """Returns a training step: SGD with momentum and weight decay on uint8 images."""
    model.module.train()
    sgd = torch.optim.SGD(
        model.module.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    images = random_images(task["batch"], task["size"])
    labels = np.random.default_rng(1).integers(0, 1000, task["batch"])
    targets = torch.tensor(labels, device=DEVICE)

    def update() -> torch.Tensor:
        logits = model(model.normalised(images))
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        return loss

    return update


def shift(model: Model, task: dict[str, Any]) -> Callable[[], Any]:
    """Returns the consistency of two batches of images, with one pair of offsets for each batch."""
    model.module.eval()
    crop, batch = task["size"], task["batch"]
    images = random_images(2 * batch, crop + SHIFT_RANGE)
    rng = np.random.default_rng(0)

    @torch.no_grad()
    def run() -> float:
        agreed = []
        for part in images.split(batch):
            whole = model.normalised(part)
            first, second = (
                model(whole[..., i : i + crop, j : j + crop].contiguous(memory_format=model.layout))
                for i, j in rng.integers(0, SHIFT_RANGE, (2, 2))
            )
            agreed.append((first.argmax(1) == second.argmax(1)).float().mean())
        return 100 * torch.stack(agreed).mean().item()

    return run


MODES = {"forward": forward, "training": training, "consistency": shift}


def prepare(task: dict[str, Any]) -> Work:
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as in JAX
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = MODES[task["mode"]](Model(task), task)
    if DEVICE == "cpu":
        return Work(run, lambda result: None)
    return Work(run, lambda result: torch.cuda.synchronize(), torch.cuda.max_memory_allocated)


def identity() -> dict[str, str]:
    name = "cpu" if DEVICE == "cpu" else torch.cuda.get_device_name()
    return {"versions": versions(torch), "device": device_in_words(name)}


if __name__ == "__main__":
    serve(prepare, identity)
