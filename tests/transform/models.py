"""Models as functions of their state."""

from flax import nnx


class functional:
    """The features of a model as a function of its state and images; also returns its state."""

    def __init__(self, model: nnx.Module, *, train: bool = False):
        model.train() if train else model.eval()
        self.graphdef, self.state, self.others = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def __call__(self, state, images):
        model = nnx.merge(self.graphdef, state, self.others)
        return model.forward_features(images), nnx.state(model, (nnx.Param, nnx.BatchStat))
