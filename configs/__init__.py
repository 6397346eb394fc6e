"""One file a recipe: `--config configs/NAME.py`, and `--config.KEY=VALUE` changes a part of it."""
