"""Any JAX function with its subsampling antialiased: `aa_flax.antialias`."""

from aa_flax.transform.antialias import antialias
from aa_flax.transform.places import Place
from aa_flax.transform.report import Report, Row

__all__ = ["Place", "Report", "Row", "antialias"]
