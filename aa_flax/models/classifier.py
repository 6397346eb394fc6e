"""The base class of all models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
from flax import nnx
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

Blocks = Iterator[tuple[str, Callable]]


class Classifier(nnx.Module):
    """A model that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    A family defines `named_blocks`; `forward_head` unless its last layer follows a global average
    pool; and `torch_layers` if its weights can be in torch files. The models of this package have
    these options:

        num_classes     number of logits; 0: no last layer, the model returns the pooled embedding
        filter_size     taps of every BlurPool, 1 to 7 in published models; None: the baseline
        pool            another pool instead: a name of `aa_flax.list_pools()` or a function
                        `stride -> module`
        dtype           type of the computation, e.g. `jnp.bfloat16`; parameters stay float32

    Attributes:
        name: name by which `create_model` built it, e.g. `resnet50_lpf4`.
        is_antialiased: True if pools, BlurPools or others, apply its strides.
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
        """Checks and stores the options of every model."""
        self.num_classes = integer("num_classes", num_classes, least=0)
        if filter_size is not None:
            filter_size = integer("filter_size", filter_size, least=1)
        self.filter_size = filter_size
        self.is_antialiased = filter_size is not None or pool is not None

    @property
    def options(self) -> dict[str, Any]:
        """Options that make it another function than its name implies, as JSON.

        A class or function (a pool's factory) is `module.name`. The number of classes, the type of
        the computation, initial values and dropout do not count.
        """
        return json.loads(self._options)

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self._options = json.dumps(options, sort_keys=True)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        """Yields the blocks by name, in order; their composition is `forward_features`."""
        raise NotImplementedError

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        """Yields the blocks of the trunk, for feature maps; by default those of `named_blocks`.

        A family overrides it if the last map at a resolution is inside of one of them, or if the
        last ones belong to the classifier.
        """
        return self._named_blocks()

    def level_ends(self) -> Sequence[str]:
        """Returns the names of blocks that end a level, by default the last at each resolution."""
        return last_blocks(self)

    def torch_layers(self) -> Layers:
        """Yields the layers (see `models/torch_layout.py`) by torch's names, in torch's order.

        Raises:
            InputError: the family does not define it.
        """
        raise InputError(
            f"no torch layout is known for {type(self).__name__}: it defines no torch_layers"
        )

    def forward_features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """Returns the last feature map of normalised images, before pooling and the last layer."""
        check_images(x, channels=self.image_channels)
        for _, map_ in self._maps(self._named_blocks(), x):
            x = map_
        return x

    def _maps(self, blocks: Blocks, x: Any) -> Iterator[tuple[str, Array]]:
        """Yields the map after each block, by name."""
        images = x.shape
        for name, block in blocks:
            try:
                x = (rematerialised(block) if self.remat else block)(x)
            except ValueError as error:
                refuse_too_small(self, name, images, error)
                raise
            except jax.errors.InconclusiveDimensionOperation as error:
                raise unbounded(self, images) from error
            yield name, x

    def _maps_named(self, names: Sequence[str], blocks: Blocks, x: Any) -> list[Array]:
        """Returns the maps after those blocks, running none after the last of them."""
        found = {}
        for name, map_ in self._maps(blocks, x):
            if name in names:
                found[name] = map_
            if len(found) == len(set(names)):
                break
        return [found[name] for name in names]

    def forward_head(
        self, features: Float[Array, "N h w c"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        """Returns the logits of a last map, or its pooled embedding `(N, features)`.

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

    def _classified(self, embedding: Array, pre_logits: bool) -> Array:
        """Applies the last layer, unless the embedding is requested or there is no last layer."""
        if pre_logits or self.num_classes == 0:
            return embedding
        return getattr(self, self.last_layer)(embedding)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the last layer by a random one (default `nnx.Rngs(0)`), or by none for 0.

        Raises:
            InputError: an invalid number, or a family whose last layer has another name.
        """
        num_classes = integer("num_classes", num_classes, least=0)
        if not hasattr(self, self.last_layer):
            raise InputError(
                f"{type(self).__name__} has no layer {self.last_layer!r}; set in the class which "
                "one returns the logits: last_layer = NAME"
            )
        dtypes = (m.dtype for _, m in nnx.iter_modules(self) if isinstance(m, nnx.Conv))
        options = {"dtype": next(dtypes, None), "rngs": nnx.Rngs(0) if rngs is None else rngs}
        last = getattr(self, self.last_layer)
        size = last.in_features if isinstance(last, nnx.Linear) else embedding_size(self)
        new = self._new_last_layer(size, num_classes, **options)
        setattr(self, self.last_layer, nnx.data(new))  # nnx.data, since the attribute may be None
        self.num_classes = num_classes
        self.config = replace(self.config, class_names=())

    def _new_last_layer(self, in_features: int, num_classes: int | None, **options: Any) -> Any:
        """Makes the last layer with the family's initialisation; None for no classes."""
        if not num_classes:
            return None
        return linear(in_features, num_classes, **self._last_layer_init, **options)
