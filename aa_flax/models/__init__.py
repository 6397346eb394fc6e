"""The nets: one family a file, which registers its nets by name (their order is that of tables)."""

# isort: off
from aa_flax.models import alexnet, vgg, resnet, densenet, mobilenet, resnet_timm  # noqa: F401
# isort: on
