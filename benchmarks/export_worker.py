"""The process of `export.py` for one variant of a model on CPU; see `worker.py`.

The variants are an ONNX file in onnxruntime, and the original in eager torch.
"""

from typing import Any

import numpy as np
from worker import Work, device_in_words, serve, versions


def prepare(task: dict[str, Any]) -> Work:
    size = task["size"]
    images = np.random.default_rng(0).standard_normal((task["batch"], size, size, 3), np.float32)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if task["variant"] == "eager":
        return Work(_eager(task["model"], channels_first), lambda result: None)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Other processes alternate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(task["file"], options, ["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    kind = np.uint8 if taken.type == "tensor(uint8)" else np.float32
    given = {taken.name: (images if task["variant"] == "ours" else channels_first).astype(kind)}
    return Work(lambda: session.run(None, given), lambda result: None)


def _eager(name: str, images: np.ndarray):
    import torch
    from reference import reference_model

    model, x = reference_model(name), torch.tensor(images)

    @torch.no_grad()
    def run() -> Any:
        return model(x)

    return run


def identity() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"versions": versions(onnxruntime, onnx), "device": device_in_words("cpu")}


if __name__ == "__main__":
    serve(prepare, identity)
