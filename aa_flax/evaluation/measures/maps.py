"""What measures of functions to maps share: they compare two views of each image of the source."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aa_flax.evaluation.dense import Views, check_maps
from aa_flax.evaluation.measure import Measure, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import check_size


class MapsMeasure(Measure):
    """A measure that shows a function two views of an image and compares its maps."""

    of_maps = True

    def pairs(self, subject: Subject) -> Views:
        """The two views of an image."""
        raise NotImplementedError

    def compared(
        self, subject: Subject, batches: Iterable[Mapping[str, np.ndarray]], views: Views
    ) -> Mapping[str, Any]:
        """The numbers."""
        raise NotImplementedError

    def settings(self, subject: Subject) -> Result:
        return vars(self.pairs(subject))

    def check(self, subject: Subject) -> None:
        settings = subject.settings
        check_size(self.pairs(subject), settings.image_size, settings.image_size)
        check_maps(subject.predictor, settings.crop_size, settings.batch(len(subject.source)))

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        batches = subject.settings.batches(subject.source, subject.settings.image_size)
        return dict(self.compared(subject, batches, self.pairs(subject)))
