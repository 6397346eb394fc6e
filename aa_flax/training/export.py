from pathlib import Path
from aa_flax.models.classifier import Classifier
def write_weights(model: Classifier, path: Path, description: str) -> None:
    pass
