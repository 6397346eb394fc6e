"""What a person reads of results: a few lines."""

from typing import Any

_PAIRS = {
    "circular": "rolled",
    "subpixel": "sub-pixel",
    "jitter": "jittered",
}


def summary(results: dict[str, Any]) -> str:
    """Every figure that was measured, in words."""
    lines = [
        f"{results['model']}, {results['num_images']} images, weights: {results['weights']}",
        f"  {'accuracy':12} top-1 {results['top1']:6.2f} %   top-5 {results['top5']:6.2f} %   "
        f"loss {results['loss']:.4f}",
    ]
    if "consistency" in results:
        lines.append(_pairs("shifted", results))
    lines += [_pairs(name, results[key]) for key, name in _PAIRS.items() if key in results]
    lines += [line(results[key]) for key, line in _OTHERS.items() if key in results]
    return "\n".join(lines)


def _pairs(name: str, found: dict[str, Any]) -> str:
    return (
        f"  {name:12} top-1 {found['top1_shifted']:6.2f} %   consistency "
        f"{found['consistency']:6.2f} ± {found['consistency_ci95']:.2f} %   "
        f"consistent and correct {found['consistent_and_correct']:6.2f} %   "
        f"change of P {found['probability_change']:.2f} %   "
        f"({found['passes']} passes, seed {found['seed']})"
    )


def _worst_case(found: dict[str, Any]) -> str:
    return (
        f"  {'worst case':12} top-1 {found['top1_worst']:6.2f} % at all of "
        f"{len(found['offsets'])} offsets, {found['top1_mean']:.2f} % on average"
    )


def _file(name: str):
    return lambda found: f"  {name:12} {found['file']}, {found['figure']}"


def _corruptions(found: dict[str, Any]) -> str:
    mce = "" if found["mce"] is None else f", mCE {found['mce']:.2f} %"
    return (
        f"  {'corruptions':12} top-1 {found['mean_top1']:6.2f} % on average of "
        f"{len(found['by_corruption'])}{mce}"
    )


def _perturbations(found: dict[str, Any]) -> str:
    mfr = f", mFR {found['mfr']:.2f} %" if "mfr" in found else ""
    return f"  {'perturbed':12} flips {found['mean_flip_rate']:6.2f} %{mfr}"


def _time(found: dict[str, Any]) -> str:
    return (
        f"  {'forward':12} {found['milliseconds']:.1f} ms for {found['batch_size']} images "
        f"({found['device']})"
    )


_OTHERS = {
    "worst_case": _worst_case,
    "diagonal": _file("diagonal"),
    "equivariance": _file("equivariance"),
    "corruptions": _corruptions,
    "perturbations": _perturbations,
    "time": _time,
}
