"""Training steps a second and memory, ours beside the PyTorch original's, in one run.

    python benchmarks/training.py [--model resnet50_lpf4] [--batch 256] [--size 224] [--steps 20]

Each variant runs in a process of its own, one after the other: whole updates (forward, backward,
SGD with momentum and weight decay) on a batch of random bytes that is already on the device. Prints
a Markdown table of images a second (the median step) and the highest memory: of the device on a
GPU, of the process on CPU. On a GPU, float32 means TF32 in convolutions, the default of both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

VARIANTS = ("torch float32", "torch bfloat16", "float32", "bfloat16", "float32 remat")
VARIANTS += ("bfloat16 remat",)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4


def ours(name: str, images: np.ndarray, labels: np.ndarray, options: list[str]):
    """One update as a function that waits for its end, and the peak memory in bytes, if known."""
    import jax
    import optax

    from aa_flax import create_model
    from aa_flax.data.transforms import normalise
    from aa_flax.sharding import data_mesh, put_batch
    from aa_flax.training.state import init_state, make_train_step

    model = create_model(name, dtype=options[0])
    model.remat = "remat" in options
    mesh = data_mesh(jax.devices()[:1])
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM)
    )
    step = make_train_step(
        model,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(LEARNING_RATE),
        mesh=mesh,
    )
    state = [init_state(model, optimizer, mesh)]
    batch = put_batch({"image": images, "label": labels}, mesh)

    def update():
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)

    def peak() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return update, peak, f"jax {jax.__version__} on {jax.devices()[0].device_kind}"


def torchs(name: str, images: np.ndarray, labels: np.ndarray, options: list[str]):
    """Like `ours`, with the original's net in PyTorch."""
    import torch
    from reference import reference_net

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    net = reference_net(name).train().to(device).to(memory_format=layout)  # pyright: ignore
    sgd = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
    y = torch.tensor(labels, device=device).long()
    mean = torch.tensor((0.485, 0.456, 0.406), device=device)[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225), device=device)[:, None, None]

    def update():
        with torch.autocast(device, torch.bfloat16, enabled=options[0] == "bfloat16"):
            logits = net(((x / 255 - mean) / std).contiguous(memory_format=layout))
            loss = torch.nn.functional.cross_entropy(logits.float(), y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    return update, peak, f"torch {torch.__version__} on {device}"


def measure(args: argparse.Namespace) -> dict:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8)
    labels = rng.integers(0, 1000, args.batch).astype(np.int32)
    first, *rest = args.variant.split()
    make: Callable = torchs if first == "torch" else ours
    update, peak, where = make(
        args.model, images, labels, rest if first == "torch" else [first, *rest]
    )
    update()  # compiles
    update()
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        update()
        times.append(time.perf_counter() - began)
    memory = peak() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rate": args.batch / float(np.median(times)), "memory": memory, "where": where}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50_lpf4")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--variant", choices=VARIANTS, help="this one alone, as JSON")
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    rows, places = [], dict[str, None]()
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        places[found["where"]] = None
        rows.append(f"| {variant} | {found['rate']:.1f} | {found['memory'] / 2**20:.0f} |")
    print(f"{args.model}, batch {args.batch}, {args.size} pixels; {'; '.join(places)}\n")
    print("| variant | images/s | peak memory, MiB |\n|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
