"""The base class of all models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError, integer
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.remat import rematerialised
from aa_flax.models.shapes import (
    check_images,
    embedding_size,
    last_blocks,
    refuse_too_small,
    unbounded,
)
from aa_flax.models.torch_layout import Layers
from aa_flax.nn.layers import linear


class Classifier(nnx.Module):
    """A model that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    A family defines `named_blocks`; `forward_head` unless its last layer follows a global average
    pool; and `torch_layers` if its weights can be in torch files. The models of this package have
    these options:

        num_classes     number of logits; 0: no last layer
        filter_size     taps of every BlurPool, 1 to 7 in published models; None: the baseline
        pool            another pool instead: a name of `aa_flax.list_pools()` or a function
                        `stride -> module`
        dtype           type of the computation, e.g. `jnp.bfloat16`; parameters stay float32

    Attributes:
        name: name by which `create_model` built it, e.g. `resnet50_lpf4`.
        num_classes: number of logits; 0: no last layer, so that calling the model returns the
            pooled embedding `(N, features)`.
        filter_size: taps of its BlurPools; None: the baseline, or a model with another pool.
        is_antialiased: True if pools, BlurPools or others, apply its strides.
        image_channels: channels of its images.
        config: the images it expects, and the origin of its weights.
        last_layer: name of the layer that returns the logits.
        remat: recompute the activations of blocks in the backward pass and store only the input of
            each: less memory, for about a second forward pass (on CPU XLA merges the two, so
            neither memory nor time changes). May be set at any time before the model is split.

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> from flax import nnx
        >>> class Small(aa_flax.Classifier):
        ...     def __init__(self, *, num_classes=10, rngs):
        ...         super().__init__(num_classes=num_classes)
        ...         self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        ...         self.fc = nnx.Linear(8, num_classes, rngs=rngs)
        ...
        ...     def named_blocks(self):
        ...         yield "conv", self.conv
        >>> Small(rngs=nnx.Rngs(0))(jnp.ones((2, 32, 32, 3))).shape
        (2, 10)
    """

    name: str = ""
    num_classes: int | None = None
    filter_size: int | None = None
    is_antialiased: bool = False
    image_channels: int = 3
    config: ModelConfig = ModelConfig()
    last_layer: str = "fc"
    remat: bool = False
    _options: str = "{}"  # JSON, since static attributes of a module must be hashable
    _last_layer_init: ClassVar[Mapping[str, nnx.Initializer]] = {}  # torch's defaults

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # nnx.tabulate jits all public methods while it runs, and a generator is not a JAX value: a
        # forward pass calls these copies.
        cls._named_blocks = cls.named_blocks
        cls._feature_blocks = cls.feature_blocks

    def __init__(
        self, *, num_classes: int = 1000, filter_size: int | None = None, pool: object = None
    ):
        """Checks and stores the options of every model.

        Args:
            num_classes: number of logits, 0 or more.
            filter_size: taps of the BlurPools, 1 or more; None: no BlurPool.
            pool: another pool instead; None: no other pool.

        Raises:
            InputError: a number out of range.
        """
        self.num_classes = integer("num_classes", num_classes, least=0)
        if filter_size is not None:
            filter_size = integer("filter_size", filter_size, least=1)
        self.filter_size = filter_size
        self.is_antialiased = filter_size is not None or pool is not None

    @property
    def options(self) -> dict[str, Any]:
        """Options that make it another function than its name implies, as JSON.

        Tuples are lists, and a class or function (a pool's factory) is `module.name`. `filter_size`
        is part of the name; the number of classes, the type of the computation, initial values and
        dropout do not count.
        """
        return json.loads(self._options)

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self._options = json.dumps(options, sort_keys=True)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        """Yields the blocks by name, in order; their composition is `forward_features`."""
        raise NotImplementedError

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        """Yields the blocks of the trunk, for feature maps of several resolutions.

        By default those of `named_blocks`; a family overrides it if the last map at a resolution is
        inside of one of them, or if the last ones belong to the classifier.
        """
        return self._named_blocks()

    def level_ends(self) -> Sequence[str]:
        """Returns the names of the `feature_blocks` that end a level of the feature pyramid.

        By default the last block at each resolution, found by tracing.
        """
        return last_blocks(self)

    def torch_layers(self) -> Layers:
        """Yields the layers with their names in a torch file, in torch's order.

        A layer is a `BatchNorm`, an `nnx.Conv`, an `nnx.Linear`, or a kind that
        `aa_flax.models.torch_layout` defines.

        Raises:
            InputError: the family does not define it.
        """
        raise InputError(
            f"no torch layout is known for {type(self).__name__}: it defines no torch_layers"
        )

    def forward_features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """Returns the last feature map, before pooling and the last layer.

        Raises:
            InputError: anything but a batch of normalised images, images that are too small, or a
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
        """Applies a block to a map; `images` is the shape of the images, for errors."""
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
        """Returns the logits; by default, of the mean of the last feature map over positions.

        Args:
            features: output of `forward_features`.
            pre_logits: return the pooled embedding `(N, features)` instead.

        Raises:
            InputError: the family defines `__call__` and not its head.
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
        """Applies the last layer, unless the embedding is requested or there is no last layer."""
        if pre_logits or self.num_classes == 0:
            return embedding
        return getattr(self, self.last_layer)(embedding)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the last layer by a new one with random weights.

        Args:
            num_classes: number of logits; 0: no last layer, the model returns the pooled embedding.
            rngs: random keys; default `nnx.Rngs(0)`.

        Raises:
            InputError: an invalid number, or a family whose last layer has another name.
        """
        num_classes = integer("num_classes", num_classes, least=0)
        if not hasattr(self, self.last_layer):
            raise InputError(
                f"{type(self).__name__} has no layer {self.last_layer!r}; set in the class which "
                "one returns the logits: last_layer = NAME"
            )
        rngs = nnx.Rngs(0) if rngs is None else rngs
        dtypes = [m.dtype for _, m in nnx.iter_modules(self) if isinstance(m, nnx.Conv)]
        last = getattr(self, self.last_layer)
        size = last.in_features if isinstance(last, nnx.Linear) else embedding_size(self)
        dtype = dtypes[0] if dtypes else None
        new = self._new_last_layer(size, num_classes, dtype=dtype, rngs=rngs)
        setattr(self, self.last_layer, nnx.data(new))  # nnx.data, since the attribute may be None
        self.num_classes = num_classes
        self.config = replace(self.config, class_names=())

    def _new_last_layer(
        self, in_features: int, num_classes: int | None, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> nnx.Linear | None:
        """Makes the last layer with the family's initialisation; None for no classes."""
        if not num_classes:
            return None
        return linear(in_features, num_classes, **self._last_layer_init, dtype=dtype, rngs=rngs)
