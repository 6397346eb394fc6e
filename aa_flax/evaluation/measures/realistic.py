"""Realistic shifts: the window moves in the original image, before it is resized for the model.

Shifting the resized image by whole pixels moves the content by a multiple of the model's pixels,
and a roll adds a seam. A camera that turns a little does neither: the window of the original image
moves by whole pixels of the original, fractions of a pixel of the model, and is resized afterwards
(Shifman and Weiss, "Lost in Translation", ECCV 2024). With T_d(I) the window of image I moved by d,

    consistency = 100 mean of [ f(T_0(I)) = f(T_d(I)) ], d random,
    robustness  = 100 mean of [ f(T_0(I)) = f(T_d(I)) for all |d_1|, |d_2| <= m ]

over images; the second against an adversary who chooses d. Here the window is a square in the
middle: the part of the original that the centre crop shows (crop_size / resize_size of the shorter
side), or as much of it as leaves room for the shift. It is resized to the crop size, antialiased,
so nothing outside of the window has an influence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol

import numpy as np

from aa_flax.data.batches import read_example
from aa_flax.data.pixels import Example, resize_short_side
from aa_flax.data.sources import Source
from aa_flax.errors import InputError, integer, real
from aa_flax.evaluation.curves import CurveMeasure, curve, last, radii, within
from aa_flax.evaluation.measure import Option, Result, Subject
from aa_flax.evaluation.measures.consistency import PairMeasure, consistency
from aa_flax.evaluation.measures.stability import STABLE, of_stable, stable_images
from aa_flax.evaluation.observe import Observations, observe_source
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import Around, Center

_MOST = 0.25  # largest shift, as a fraction of the window's side


class Shifts(Protocol):
    """Windows of an image: their side, and by how much each is moved from the middle."""

    @property
    def views(self) -> int: ...

    def side(self, short: int, standard: int) -> int:
        """Returns the side, at most `standard`, for an image whose shorter side is `short`."""
        ...

    def shifts(self, side: int, index: int) -> Sequence[tuple[int, int]]:
        """Returns pixels (down, right) for each view of the image with that index.

        Raises:
            InputError: the window is too small.
        """
        ...


@dataclass(frozen=True)
class RandomShifts(Shifts):
    """Pairs of the window in the middle, and the same moved uniformly on each axis."""

    reach: float  # the largest shift, as a fraction of the side
    passes: int = 5
    seed: int = 0

    @property
    def views(self) -> int:
        return 2 * self.passes

    def side(self, short: int, standard: int) -> int:
        return min(standard, int(short / (1 + 2 * self.reach)))

    def shifts(self, side: int, index: int) -> Sequence[tuple[int, int]]:
        most = int(self.reach * side)
        if most == 0:
            raise InputError(f"{self.reach:g} of a window of {side} pixels is less than a pixel")
        rng = np.random.default_rng((self.seed, index))
        drawn = rng.integers(-most, most + 1, (self.passes, 2))
        return [shift for down, right in drawn.tolist() for shift in ((0, 0), (down, right))]


@dataclass(frozen=True)
class AllShifts(Shifts):
    """The window in the middle, then the same at every shift within some pixels."""

    within: int

    @property
    def views(self) -> int:
        return (2 * self.within + 1) ** 2

    def side(self, short: int, standard: int) -> int:
        return min(standard, max(short - 2 * self.within, 0))

    def shifts(self, side: int, index: int) -> Sequence[tuple[int, int]]:
        if self.within > _MOST * side:
            raise InputError(
                f"a shift of {self.within} pixels is more than a quarter of the window, of "
                f"{side} pixels"
            )
        return Around(0, self.within).shifts


class Windows:
    """The windows of a source's images, one after another, as a source of crops for the model.

    Reading one raises an InputError for an image that is too small for the shifts.
    """

    def __init__(self, source: Source, settings: Settings, shifts: Shifts):
        self._source, self._settings, self._shifts = source, settings, shifts
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def name(self, index: int) -> str:
        return self._source.name(index // self._shifts.views)

    def __len__(self) -> int:
        return len(self._source) * self._shifts.views

    def __getitem__(self, index: int) -> Example:
        settings, (i, view) = self._settings, divmod(index, self._shifts.views)
        image, label = read_example(self._source, i)
        width, height = image.size
        short = min(width, height)
        side = self._shifts.side(short, int(short * settings.crop_size / settings.resize_size))
        try:
            down, right = self._shifts.shifts(side, i)[view]
        except InputError as error:
            raise InputError(
                f"{self._source.name(i)} has {width} x {height} pixels: {error}; give larger "
                "images or another shift"
            ) from error
        left, top = (width - side) // 2 + right, (height - side) // 2 + down
        window = image.crop((left, top, left + side, top + side))
        resized = resize_short_side(window, settings.crop_size, settings.interpolation)
        return {"image": resized, "label": label}


def observe_windows(subject: Subject, shifts: Shifts, title: str) -> Observations:
    """Observes all windows of each image, as its views."""
    crop, count = subject.settings.crop_size, shifts.views
    windows = Windows(subject.source, subject.settings, shifts)
    settings = replace(subject.settings, resize_size=0, image_size=crop)
    views = {title: Center(crop)}
    seen = observe_source(
        subject.predictor, windows, settings, views, crop=crop, mesh=subject.mesh, title=title
    )[title]
    # Of an image that was skipped all windows are missing.
    folded = {
        f.name: array.reshape(-1, count, *array.shape[2:])
        for f in fields(seen)
        if (array := getattr(seen, f.name)).ndim > 1
    }
    return replace(seen, index=seen.index[::count] // count, label=seen.label[::count], **folded)


def _reach(subject: Subject) -> float:
    reach = real("--realistic", subject.options["realistic"], least=0, most=_MOST)
    if not reach:
        raise InputError(f"--realistic is more than 0, and at most {_MOST} of the side")
    return reach


def _check_resized(subject: Subject, option: str) -> None:
    if not subject.settings.resize_size:
        raise InputError(
            f"--{option} moves a window before the image is resized, and with resize_size 0 images "
            "are not; use --shift or --worst_within, or give a resize_size"
        )


class Realistic(PairMeasure):
    """Agreement of the window in the middle and windows at random shifts."""

    title = "realistic"
    note = "consistency of a window of the original image and the same at a random shift, resized"
    options = (
        Option(
            "realistic",
            "consistency of windows moved before the resize, by up to this fraction of their side",
            None,
            float,
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return dict(vars(subject.settings.to(RandomShifts, reach=_reach(subject))))

    def check(self, subject: Subject) -> None:
        _check_resized(subject, self.name)

    def views(self, subject: Subject) -> None:
        return None

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        shifts = RandomShifts(**self.settings(subject))
        return consistency(observe_windows(subject, shifts, self.name))


class WorstRealistic(CurveMeasure):
    """Images whose class no shift of the window within m pixels changes, m = 0..M."""

    options = (
        Option(
            "worst_realistic",
            "images whose class no shift within M pixels before the resize changes",
            None,
            int,
        ),
    )
    curves: ClassVar = STABLE | {"top1_worst": "right at every shift"}
    unit = "pixels of the original"

    def settings(self, subject: Subject) -> Result:
        return {"within": integer(f"--{self.name}", subject.options[self.name], least=1)}

    def check(self, subject: Subject) -> None:
        _check_resized(subject, self.name)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        shifts = AllShifts(**self.settings(subject))
        radius = radii(Around(0, shifts.within))
        found = observe_windows(subject, shifts, self.name)
        right = curve(within(found.correct, radius))
        return {**stable_images(found, radius), "top1_worst": right}

    def line(self, result: Result) -> str:
        return (
            f"{'realistic':12} {with_interval(last(result['stable']), result['interval'])} of "
            f"images keep their class, {last(result['top1_worst']):.2f} % are right, at every "
            f"shift within {result['within']} pixels of the original   {of_stable(result)}"
        )
