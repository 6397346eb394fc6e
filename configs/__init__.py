"""One file a recipe: `--config NAME`, and `--config.KEY=VALUE` changes a part of it.

The package `aa_flax.configs`: a recipe of one's own imports another from there and changes it.
"""
