"""What every net of this package offers."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.arguments import whole_number
from aa_flax.errors import InputError
from aa_flax.models.images import check_images, refuse_too_small, unbounded
from aa_flax.models.rematerialise import rematerialised
from aa_flax.models.torch_layout import Layers


class Classifier(nnx.Module):
    """A net that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    A family defines `named_blocks` and `__call__`, and `torch_layers` if its weights are to be had
    from torch files, or written to them.

    Attributes:
        name: the name `create_model` built it by, e.g. `resnet50_lpf4`.
        num_classes: number of logits; 0: no classifier, and calling the net gives the pooled
            embedding `(N, features)` instead.
        filter_size: taps of its BlurPools; None: the baseline, or a net with another pool.
        is_antialiased: whether pools carry its strides, BlurPools or others.
        image_channels: channels of the images it takes.
        remat: compute the blocks again in the backward pass instead of keeping their insides: less
            memory, for about a second forward pass (on CPU XLA merges the two again: neither
            memory nor time changes). What is kept is each block's input. May be set at any time
            before the model is split.
    """

    name: str = ""
    num_classes: int | None = None
    filter_size: int | None = None
    is_antialiased: bool = False
    image_channels: int = 3
    remat: bool = False
    _options: str = "{}"  # as text, since what a module keeps besides variables must be hashable

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # nnx.tabulate jits all public methods while it runs, and a generator is no JAX value:
        # `features` takes the blocks from here.
        cls._named_blocks = cls.named_blocks

    def __init__(
        self, *, num_classes: int = 1000, filter_size: int | None = None, pool: object = None
    ):
        """Checks and keeps what every net is told.

        Args:
            num_classes: number of logits, 0 or more.
            filter_size: taps of the BlurPools, 1 or more; None: no BlurPool.
            pool: whatever the net was told to subsample by instead; None: nothing.

        Raises:
            InputError: a number that is none of these.
        """
        self.num_classes = whole_number("num_classes", num_classes, least=0)
        if filter_size is not None:
            filter_size = whole_number("filter_size", filter_size, least=1)
        self.filter_size = filter_size
        self.is_antialiased = filter_size is not None or pool is not None

    @property
    def options(self) -> dict[str, Any]:
        """Options it was built with that make it another function than its name alone says.

        As JSON has them: lists for tuples, and `module.name` of a class or function (a pool's
        factory). `filter_size` is part of the name; sizes of the output, the type of the
        computation, initial values and dropout are no options in this sense.
        """
        return json.loads(self._options)

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self._options = json.dumps(options, sort_keys=True)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        """The blocks in order, by name: one after the other they compute `features`."""
        raise NotImplementedError

    def torch_layers(self) -> Layers:
        """Its layers under their names in a torch file, in torch's order.

        Kinds are `BatchNorm`, `nnx.Conv`, `nnx.Linear`, and those of
        `aa_flax.models.torch_layout`.

        Raises:
            InputError: the family defines none.
        """
        raise InputError(
            f"no torch layout is known for {type(self).__name__}: it defines no torch_layers"
        )

    def features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """The last feature map, before it is pooled and classified.

        Raises:
            InputError: what is no batch of normalised images, or images that are too small, or of a
                size that export leaves open without a bound.
        """
        check_images(x, channels=self.image_channels)
        shape = x.shape
        for name, block in self._named_blocks():
            try:
                x = (rematerialised(block) if self.remat else block)(x)
            except ValueError as error:
                refuse_too_small(self, name, shape, error)
                raise
            except jax.errors.InconclusiveDimensionOperation as error:
                raise unbounded(self, shape) from error
        return x

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        raise NotImplementedError
