"""Antialiased subsampling for any JAX function: `aa_flax.antialias`."""

from aa_flax.transform.antialias import antialias
from aa_flax.transform.profile import Profile, ProfileRow
from aa_flax.transform.sites import Report, Row, Site

__all__ = ["Profile", "ProfileRow", "Report", "Row", "Site", "antialias"]
