"""Lists the commands: python -m aa_flax."""

import sys

from aa_flax.errors import unknown

COMMANDS = {
    "aa_flax.train": "trains a model, or resumes a run",
    "aa_flax.eval": "evaluates models: accuracy, consistency under shifts, and more",
    "aa_flax.report": "writes tables and figures of results, and an HTML page",
    "aa_flax.convert": "converts weights between files of PyTorch and safetensors",
    "aa_flax.export": "writes a model as ONNX or StableHLO",
    "aa_flax.data.imagenet_val": "sorts ImageNet's validation images into folders of classes",
}


def main() -> None:
    """Prints every command with a line about it."""
    words = [word for word in sys.argv[1:] if word not in ("--help", "-h")]
    if words:
        sys.exit(f"error: {unknown('command', f'aa_flax {words[0]}', list(COMMANDS))}")
    print("Commands; each takes --help:")
    for name, line in COMMANDS.items():
        print(f"  python -m {name:<{max(map(len, COMMANDS))}}  {line}")


if __name__ == "__main__":
    main()
