"""Faster CPU kernels for operations of `aa_flax.ops`, chosen in `dispatch.py`."""
