"""What every net of this package offers."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError, integer
from aa_flax.layers import linear
from aa_flax.models.images import check_images, refuse_too_small, unbounded
from aa_flax.models.levels import last_blocks
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.rematerialise import rematerialised
from aa_flax.models.torch_layout import Layers


class Classifier(nnx.Module):
    """A net that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    A family defines `named_blocks`; `forward_head` unless its last layer sees the mean of the last
    feature map; and `torch_layers` if its weights are to be had from torch files, or written to
    them.

    Attributes:
        name: the name `create_model` built it by, e.g. `resnet50_lpf4`.
        num_classes: number of logits; 0: no classifier, and calling the net gives the pooled
            embedding `(N, features)` instead.
        filter_size: taps of its BlurPools; None: the baseline, or a net with another pool.
        is_antialiased: whether pools carry its strides, BlurPools or others.
        image_channels: channels of the images it takes.
        config: what images it expects, and where its weights come from.
        last_layer: name of the layer that gives the logits.
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
    config: ModelConfig = ModelConfig()
    last_layer: str = "fc"
    remat: bool = False
    _options: str = "{}"  # as text, since what a module keeps besides variables must be hashable

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # nnx.tabulate jits all public methods while it runs, and a generator is no JAX value: what
        # is called in a forward pass is taken from here.
        cls._named_blocks = cls.named_blocks
        cls._feature_blocks = cls.feature_blocks

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
        self.num_classes = integer("num_classes", num_classes, least=0)
        if filter_size is not None:
            filter_size = integer("filter_size", filter_size, least=1)
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
        """The blocks in order, by name: one after the other they compute `forward_features`."""
        raise NotImplementedError

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        """The blocks of its trunk, for feature maps of several resolutions.

        By default those of `named_blocks`; a family has others where the map of a resolution stands
        within one of them, or where the last ones serve the classifier alone.
        """
        return self._named_blocks()

    def level_ends(self) -> Sequence[str]:
        """Names of the `feature_blocks` whose maps are levels of a feature pyramid.

        By default the last block at each resolution, found by tracing.
        """
        return last_blocks(self)

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

    def forward_features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """The last feature map, before it is pooled and classified.

        Raises:
            InputError: what is no batch of normalised images, or images that are too small, or of a
                size that export leaves open without a bound.
        """
        check_images(x, channels=self.image_channels)
        shape = x.shape
        for name, block in self._named_blocks():
            x = self._run_block(name, block, x, shape)
        return x

    def _run_block(
        self, name: str, block: Callable, x: Float[Array, "N H W C"], images: tuple
    ) -> Float[Array, "N h w c"]:
        """What a block makes of a map; `images` is the shape of the images, for errors."""
        try:
            return (rematerialised(block) if self.remat else block)(x)
        except ValueError as error:
            refuse_too_small(self, name, images, error)
            raise
        except jax.errors.InconclusiveDimensionOperation as error:
            raise unbounded(self, images) from error

    def forward_head(
        self, features: Float[Array, "N h w c"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        """The logits of a last feature map; by default its mean over positions, classified.

        Args:
            features: what `forward_features` gave.
            pre_logits: the pooled embedding `(N, features)` instead.

        Raises:
            InputError: the family defines `__call__` alone, so that its head is not known.
        """
        family = type(self)
        overridden = family.__call__ is not Classifier.__call__
        if overridden and family.forward_head is Classifier.forward_head:
            raise InputError(
                f"{family.__name__} defines __call__ and no forward_head; define forward_head"
                "(features, pre_logits) instead, and __call__ follows from it"
            )
        return self._classified(features.mean((1, 2)), pre_logits)

    def _classified(
        self, embedding: Float[Array, "N features"], pre_logits: bool
    ) -> Float[Array, "N classes"]:
        """The logits of a pooled embedding, or itself where it is asked for or there are none."""
        if pre_logits or self.num_classes == 0:
            return embedding
        return getattr(self, self.last_layer)(embedding)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs | None = None) -> None:
        """Gives the net a new last layer, random as in a new net; all else stays as it is.

        Args:
            num_classes: number of logits; 0: no last layer, the net gives the pooled embedding.
            rngs: random keys; default `nnx.Rngs(0)`.

        Raises:
            InputError: no such number, or a family whose last layer is not known.
        """
        num_classes = integer("num_classes", num_classes, least=0)
        if not hasattr(self, self.last_layer):
            raise InputError(
                f"{type(self).__name__} has no layer {self.last_layer!r}; say in the class which "
                "one gives the logits: last_layer = NAME"
            )
        rngs = nnx.Rngs(0) if rngs is None else rngs
        dtypes = [m.dtype for _, m in nnx.iter_modules(self) if isinstance(m, nnx.Conv)]
        new = self._new_last_layer(
            self._embedding_size(), num_classes, dtype=dtypes[0] if dtypes else None, rngs=rngs
        )
        setattr(self, self.last_layer, nnx.data(new))  # which may take the place of None
        self.num_classes = num_classes
        self.config = replace(self.config, class_names=())

    def _embedding_size(self) -> int:
        """Channels of the pooled embedding."""
        last = getattr(self, self.last_layer)
        if isinstance(last, nnx.Linear):
            return last.in_features
        graphdef, state = nnx.split(self)
        size = self.config.input_size
        images = jax.ShapeDtypeStruct((2, size, size, self.image_channels), jnp.float32)
        return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images).shape[-1]

    def _new_last_layer(
        self, in_features: int, num_classes: int | None, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> nnx.Linear | None:
        """The layer that gives the logits, as the family initialises it; None: of no classes."""
        return linear(in_features, num_classes, dtype=dtype, rngs=rngs) if num_classes else None
