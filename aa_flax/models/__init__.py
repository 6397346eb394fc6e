"""The models, one family a file, which registers its models in the order of the tables."""

# isort: off
from aa_flax.models import alexnet, vgg, resnet, densenet, mobilenet, resnet_timm  # noqa: F401
# isort: on
