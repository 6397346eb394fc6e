"""Writes tests/models/golden_logits.json from models of the original and torchvision.

python -m tests.make_golden_logits
"""

import json

import numpy as np
import torch

from aa_flax.models.registry import base_names, has_reference
from benchmarks.reference import reference_model
from tests.golden import LOGITS, NUM_CLASSES, golden_image, golden_weights


def golden_logits(name: str) -> list[float]:
    model = reference_model(name, num_classes=NUM_CLASSES)
    state_dict = model.state_dict()
    fixed = ("filt", "num_batches_tracked")
    shapes = {k: tuple(v.shape) for k, v in state_dict.items() if k.rpartition(".")[2] not in fixed}
    weights = {name: torch.tensor(array) for name, array in golden_weights(shapes).items()}
    model.load_state_dict({**state_dict, **weights})
    image = torch.tensor(np.moveaxis(golden_image(), -1, 1).copy())
    with torch.no_grad():
        return [float(f"{logit:.7g}") for logit in model(image)[0]]


def main() -> None:
    bases = filter(has_reference, base_names())
    names = [name for base in bases for name in (base, f"{base}_lpf4")]
    logits = {name: golden_logits(name) for name in names}
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in logits.items()]
    LOGITS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
