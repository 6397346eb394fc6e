"""Maps of equivariance as small pictures, a row a net, a column a block."""

import base64
import io
from collections.abc import Mapping
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.page.tables import breakable

# The eleven colours of ColorBrewer's RdYlBu, from blue to red.
COLOURS = (
    (49, 54, 149),
    (69, 117, 180),
    (116, 173, 209),
    (171, 217, 233),
    (224, 243, 248),
    (255, 255, 191),
    (254, 224, 144),
    (253, 174, 97),
    (244, 109, 67),
    (215, 48, 39),
    (165, 0, 38),
)
MOST = 0.5  # of the distance between two images: red, as in Zhang (2019), fig. 5


def maps_grid(nets: Mapping[str, EquivarianceMaps]) -> str:
    """All maps of nets that belong together, and the bar of their colours."""
    lines = [_row(name, maps) for name, maps in nets.items()]
    ramp = ", ".join(f"rgb{colour}" for colour in COLOURS)
    return (
        '<div class="wide maps" tabindex="0" role="region" aria-label="maps of equivariance">'
        f"<table>{''.join(lines)}</table></div>"
        f'<p class="bar"><span>0 %</span><span class="ramp" style="background:'
        f'linear-gradient(to right, {ramp})"></span><span>50 % and more</span></p>'
    )


def _row(name: str, maps: EquivarianceMaps) -> str:
    cells = []
    for block, stride, share in zip(maps.blocks, maps.strides, maps.relative, strict=True):
        mean, most = 100 * share.mean(), 100 * share.max()
        at = "logits" if block == "logits" else f"{block}, stride {stride}"
        about = escape(f"{name}, {at}: mean {mean:.1f} %, at most {most:.1f} %", quote=True)
        picture = f'<img src="{data_uri(colours_of(share))}" alt="{about}" title="{about}">'
        cells.append(f"<td><span>{escape(block)}</span>{picture}<span>{mean:.1f} %</span></td>")
    return f'<tr><th scope="row">{breakable(name)}</th>{"".join(cells)}</tr>'


def colours_of(share: Float[np.ndarray, "P P"]) -> UInt8[np.ndarray, "P P 3"]:
    """The colour of each share of the distance between two images; red from `MOST` on."""
    place = np.clip(share / MOST, 0, 1) * (len(COLOURS) - 1)
    table = np.array(COLOURS, float)
    channels = [np.interp(place, np.arange(len(table)), table[:, i]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def data_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
