"""Chooses the sites that are worth a filter: most damage removed for the FLOPs that it costs."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import replace

from aa_flax.transform.decisions import Options, Place
from aa_flax.transform.profile import Profile
from aa_flax.transform.sites import Site


def within_budget(options: Options, plain: Profile, filtered: Profile, flops: float) -> Options:
    """Returns options that antialias the chosen sites alone.

    Sites are taken in the order of the damage that their filter removes for a FLOP, and skipped
    where they no longer fit. A filter that costs nothing, and removes something, is always taken.

    Args:
        options: with a budget, the additional FLOPs relative to `flops`.
        plain, filtered: the function's profile as it is, and with every site antialiased.
        flops: of the function.
    """
    removed: dict[Hashable, float] = defaultdict(float)
    costs: dict[Hashable, float] = defaultdict(float)
    for before, after in zip(plain, filtered, strict=True):
        if after.done and before.damage > after.damage:  # False where one was not measured
            removed[_identity(before.site)] += before.damage - after.damage
            costs[_identity(before.site)] += max(after.extra_flops, 0)
    chosen, left = set(), (options.budget or 0) * flops
    for site in sorted(removed, key=lambda site: costs[site] / removed[site]):
        if costs[site] <= left:
            chosen.add(site)
            left -= costs[site]

    def where(site: Site) -> bool | Place:
        asked = True if options.where is None else options.where(site)
        return asked if _identity(site) in chosen else False

    reason = f"the budget of {100 * (options.budget or 0):g} % does not pay for it"
    return replace(options, where=where, budget=None, refusal=reason)


def _identity(site: Site) -> Hashable:
    """Returns what a site has in common with itself for another batch, or images of another size.

    Sites in which all of it is equal are chosen together.
    """
    pairs = list(zip(site.shape, site.output_shape, strict=False))[1:]
    channels = tuple(size for size, out in pairs if size == out)
    return site.layer, site.primitive, site.strides, site.window, site.channels, channels
