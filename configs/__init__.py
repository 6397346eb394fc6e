"""Recipes, one per file: `--config NAME`, and `--config.KEY=VALUE` changes a value.

The package `aa_flax.configs`: your own recipe imports another from there and changes it.
"""
