"""Our ONNX files compared with those that torch exports of the original, and with eager torch.

    python benchmarks/export.py [--models resnet18_lpf4 ...] [--batch 8] [--rounds 7]

Both files have the same random weights and run in onnxruntime; eager torch runs the original. Each
runs in a separate process; they alternate, every other round in reverse. Prints a Markdown table of
times over ours: the median over the rounds, and in brackets the minimum and the maximum; above 1,
ours is faster.
"""

import argparse
import tempfile
from pathlib import Path
from sys import executable
from typing import Any

import models
from models_table import ratio

VARIANTS = ("ours", "torch_onnx", "eager")
models.SCRIPTS["export"] = Path(__file__).with_name("export_worker.py")


def write_files(name: str, size: int, folder: Path) -> dict[str, str]:
    """Writes the two files of a model with the same weights, and returns them by variant."""
    import torch
    from reference import reference_model

    import aa_flax

    reference = reference_model(name)
    model = aa_flax.load_torch_state_dict(aa_flax.create_model(name), reference.state_dict())
    ours, theirs = str(folder / "ours.onnx"), str(folder / "torch.onnx")
    aa_flax.export(model, ours, size=size)
    torch.onnx.export(
        reference,
        (torch.zeros(1, 3, size, size),),
        theirs,
        input_names=["images"],
        dynamic_axes={"images": {0: "batch"}},
        dynamo=False,  # the other exporter needs onnxscript
    )
    return {"ours": ours, "torch_onnx": theirs, "eager": ""}


def alternating_times(
    tasks: dict[str, dict[str, Any]], rounds: int, turn: float
) -> list[list[float]]:
    """Returns the milliseconds of a pass for each task and round, in separate processes."""
    workers = [models.Worker("export", label, executable) for label in tasks]
    for worker in workers:
        worker.ask(tasks[worker.variant])
    models.alternate(workers, rounds, turn)
    for worker in workers:
        worker.close()
        if worker.error:
            raise RuntimeError(f"{worker.variant}: {worker.error}")
    return [worker.times for worker in workers]


def measure(name: str, args: argparse.Namespace) -> list[list[float]]:
    """Returns the milliseconds of a pass for each variant and round."""
    task = {"model": name, "batch": args.batch, "size": args.size}
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(name, args.size, Path(folder))
        tasks = {v: {**task, "variant": v, "file": files[v]} for v in VARIANTS}
        return alternating_times(tasks, args.rounds, args.turn)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18_lpf4", "mobilenet_v2_lpf4"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.5, help="minimum seconds of each turn")
    args = parser.parse_args()
    about = models.Worker("export", "", executable)
    print(about.ask({"identity": True}))
    about.close()
    print("| model | ours, ms | torch's file / ours | eager torch / ours |\n|---|---|---|---|")
    for name in args.models:
        ours, *others = measure(name, args)
        median = ratio(ours, [1.0] * args.rounds).median
        ratios = (str(ratio(theirs, ours)) for theirs in others)
        print(f"| `{name}` | {median:.0f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
