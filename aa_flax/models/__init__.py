"""The models, one family a file, which registers its models in the order of the tables."""

# isort: off
from aa_flax.models import alexnet, vgg, resnet, densenet, mobilenet  # noqa: F401
from aa_flax.models import resnet_timm, densenet_timm, mobilenetv4  # noqa: F401
# isort: on
