"""Where weights come from: a stand-in for tests of evaluation, to be replaced."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aa_flax.create import create_model
from aa_flax.disk import local_path
from aa_flax.errors import InputError
from aa_flax.training.initialise import model_from_workdir
from aa_flax.weights.convert import sha256
from aa_flax.weights.pretrained import choose

PUBLISHED = ("pretrained", "finetuned", "scratch", "baseline")


@dataclass(frozen=True)
class Weights:
    name: str
    facts: dict[str, Any]
    path: Path | None = None

    def description(self) -> dict[str, Any]:
        return dict(self.facts)

    def load_model(self, *, dtype=None, num_classes=None, **options):
        if self.facts["kind"] == "run":
            assert self.path is not None
            return model_from_workdir(self.path)[0]
        pretrained = self.path or self.facts["training"]
        return create_model(
            self.name, pretrained=pretrained, dtype=dtype, num_classes=num_classes, **options
        )


def locate(source: str | Path | bool, *, model: str) -> Weights:
    if source is True or str(source) in PUBLISHED:
        training = None if source in (True, "pretrained") else str(source)
        released = choose(model, training)
        facts = {"kind": "released", "model": released.model, "training": released.training}
        return Weights(released.model, facts | {"file": released.filename})
    path = local_path(str(source), "--weights")
    if path.is_dir():
        found, text = model_from_workdir(path)
        facts = {"kind": "run", "file": str(path), "model": found.name, "epoch": text}
        return Weights(found.name, facts, path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    facts = {"kind": "file", "model": model, "file": str(path), "sha256": sha256(path)}
    return Weights(model, facts, path)


def describe(description) -> str:
    return " ".join(str(value) for value in description.values())
