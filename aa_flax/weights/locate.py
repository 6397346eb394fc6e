"""Locates weights by the names that people give them.

pretrained (or True)   the model's published weights, as the original chooses
finetuned, scratch     published weights of that training
baseline               those of the model without antialiasing, torchvision's
FILE, FILE#ema         a weights file of any kind, recognized by content; its averaged weights
FOLDER                 the folder of a run: its best checkpoint
hf-hub:OWNER/NAME      a repository on the Hugging Face hub; @REVISION, and #sha256=HEX to compare
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from aa_flax.config import images_of_config, options_of_config
from aa_flax.data.classes import imagenet_class_names
from aa_flax.errors import InputError
from aa_flax.files import local_path, parse_json
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.weights import read
from aa_flax.weights.building import abstract_model, complete, fitted
from aa_flax.weights.convert_files import licence_of
from aa_flax.weights.fit import last_layer, named_weights, options_of
from aa_flax.weights.hub import PREFIX, HubFile, hub_file, parse_hub_name
from aa_flax.weights.published import choose, published_file
from aa_flax.weights.read import EMA, WORDS, Weights, read_weights


class WeightsSource:
    """Weights that are somewhere; nothing is loaded or downloaded before it is needed.

    Attributes:
        name: the model they are of, by their file, or else the model they are wanted for; loading
            shows whether they fit.
        dtype: the type the model computes in by default; None: float32.
        config: of the run that trained them, as nested dicts; None: unknown.
    """

    name: str
    dtype: DTypeLike | None = None
    config: Mapping[str, Any] | None = None

    def description(self) -> dict[str, Any]:
        """Describes the weights for a record; equal weights have equal descriptions.

        Of the keys `kind` (`released`, `file`, `hub` or `run`), `model`, `options`, `training`,
        `file`, `sha256`, `licence`, `epoch`, `step`, `crc32` it has those that are known.
        """
        raise NotImplementedError

    def config_changes(self) -> dict[str, Any]:
        """Returns fields of a model's `ModelConfig` that follow from its weights."""
        facts = self.description()
        return {"weights": facts["file"]} | {key: facts.get(key) for key in ("sha256", "licence")}

    def load(self, options: Mapping[str, Any]) -> Weights:
        """Loads the weights, with this package's names; `options` are added to theirs."""
        raise NotImplementedError

    def load_relative(self, options: Mapping[str, Any]) -> Weights:
        """Loads weights for a model with `options` to start from: a variant's will do, too."""
        return self.load({})

    def abstract_model(self, num_classes: int, **options: Any) -> Classifier:
        """Builds the model of shapes alone, without its weights; `options` includes theirs."""
        return abstract_model(self.name, num_classes, **options)

    def load_model(
        self,
        *,
        dtype: DTypeLike | None = None,
        num_classes: int | None = None,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> Classifier:
        """Builds the model with these weights and their options, in evaluation mode.

        Args:
            dtype: type of the computation; default: a run's own, else float32.
            num_classes: default: that of the weights. With another one the last layer is random; 0
                leaves it out.
            rngs: random keys of what the weights lack; default `nnx.Rngs(0)`.
            options: further arguments of the model's class.
        """
        weights = self.load(options)
        options = {**(weights.options or {}), **options}
        dtype = self.dtype if dtype is None else dtype
        build = partial(registry.build, weights.model, dtype=dtype, **options)
        return complete(weights, build, num_classes, nnx.Rngs(0) if rngs is None else rngs)


class InFile(WeightsSource):
    """A weights file."""

    def __init__(self, source: str | Path, model: str):
        self.source = local_path(source, "weights")
        self.path, self.ema = read.weights_path(self.source)
        self._metadata = read.read_metadata(self.path)
        self.name = self._metadata.get("model") or model

    @cached_property
    def _digest(self) -> str:
        return read.sha256(self.path)

    def description(self) -> dict[str, Any]:
        facts = {"options": read.json_in(self._metadata, "options", self.path)}
        facts |= {key: self._metadata.get(key) for key in ("training", "licence")}
        facts |= {key: read.integer_in(self._metadata, key) for key in ("epoch", "step")}
        return {
            "kind": "file",
            "model": self.name,
            **{key: value for key, value in facts.items() if value not in (None, "", {})},
            "file": f"{self.path}{EMA}" if self.ema else str(self.path),
            "sha256": self._digest,
        }

    def config_changes(self) -> dict[str, Any]:
        return {**read.images_in(self._metadata, self.path), **super().config_changes()}

    def _read(self) -> Weights:
        weights = read_weights(self.source)
        if self.__dict__.setdefault("_digest", weights.sha256) != weights.sha256:
            raise InputError(f"{self.path} has changed since it was described; try again")
        return weights

    def load(self, options: Mapping[str, Any]) -> Weights:
        return fitted(self._read(), self.name, options)

    def load_relative(self, options: Mapping[str, Any]) -> Weights:
        weights = self._read()
        if not weights.torch_names:
            return fitted(weights, self.name, {})
        # A torch file does not say which variant it is of, but its fixed filters do.
        base, _ = registry.parse_name(self.name)
        filters = [array for name, array in weights.arrays.items() if name.endswith(".filt")]
        if not filters:
            return fitted(weights, base, {})
        return fitted(weights, f"{base}_lpf{filters[0].shape[-1]}", options)


class OfRun(WeightsSource):
    """A run's checkpoint `step`, or its best by top-1; raises an InputError without a run."""

    def __init__(self, source: str | Path, model: str = "", *, step: int | None = None):
        self.folder = local_path(source, "the run's folder")
        self.step = step
        if not (self.folder / "config.json").is_file():
            why = "no config.json there" if self.folder.exists() else "no such file or folder"
            raise InputError(
                f"no run in {self.folder} ({why}); train first, or give other weights: a file, or "
                f"one of {', '.join(WORDS)}"
            )
        suffixes = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}
        found = sorted(str(path) for path in self.folder.iterdir() if path.suffix in suffixes)
        if found and not (self.folder / "checkpoints").is_dir():
            files = " or ".join(found)
            raise InputError(f"no checkpoints in {self.folder}, but weights: give {files}")

    def _checkpoints(self):
        from aa_flax.weights.checkpoints import Checkpoints  # Orbax, which only runs need

        return Checkpoints(self.folder / "checkpoints")

    @cached_property
    def _record(self) -> tuple[Any, bool]:
        """The checkpoint's description, and whether it is the best."""
        with self._checkpoints() as checkpoints:
            record = checkpoints.find(self.step)
            return record, record == checkpoints.best

    @property
    def config(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._record[0].config

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.config["model"]

    @property
    def dtype(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.config["dtype"]

    def description(self) -> dict[str, Any]:
        record, _ = self._record
        options = options_of_config(record.config)
        return {
            "kind": "run",
            "model": self.name,
            **({"options": options} if options else {}),
            "file": str(self.folder),
            "epoch": record.epoch,
            "step": record.step,
            "crc32": f"{record.checksums['model']:08x}",
        }

    def config_changes(self) -> dict[str, Any]:
        try:
            data = parse_json((self.folder / "data.json").read_text())
            names = tuple(map(str, data["train"]["classes"]))
        except (OSError, ValueError, LookupError, TypeError):  # unknown
            names = ()
        images = images_of_config(self.config)
        return {**images, "class_names": names, **super().config_changes()}

    def sentence(self) -> str:
        """Says for people where the weights come from."""
        record, is_best = self._record
        which = "the best" if is_best else f"step {record.step}"
        return f"{self.folder} (epoch {record.epoch}, {which})"

    def load(self, options: Mapping[str, Any]) -> Weights:
        record, _ = self._record
        options = options_of_config(record.config)
        build = partial(registry.build, self.name, **options)
        like = abstract_model(self.name, record.num_classes, **options)
        # A checkpoint is restored into a model with values, random keys included; zeros will do.
        zeros = {name: np.zeros(v.shape, v.dtype) for name, v in named_weights(like).items()}
        weights = Weights(str(self.folder), zeros, num_classes=record.num_classes, model=self.name)
        model = complete(weights, build, None, nnx.Rngs(0))
        with self._checkpoints() as checkpoints:
            checkpoints.restore_model(record.step, model)
        arrays = {name: variable[...] for name, variable in named_weights(model).items()}
        return weights._replace(arrays=arrays, options=options_of(model), head=last_layer(model))


class OnHub(WeightsSource):
    """The weights in a repository on the Hugging Face hub."""

    def __init__(self, source: str | Path, model: str):
        self.source = parse_hub_name(str(source))
        self.name = model

    @cached_property
    def _downloaded(self) -> tuple[HubFile, InFile]:
        found = hub_file(self.source)
        file, wanted = InFile(found.path, self.name), self.source.sha256
        digest = file.description()["sha256"]
        if wanted and not digest.startswith(wanted):
            raise InputError(
                f"{PREFIX}{self.source.repository} is not the file that was meant: its SHA-256 "
                f"begins with {digest[:8]}, not {wanted[:8]}; correct it, or give its revision"
            )
        return found, file

    def description(self) -> dict[str, Any]:
        found, in_file = self._downloaded
        facts = in_file.description()
        licence = facts.get("licence") or found.licence
        file = f"{PREFIX}{self.source.repository}@{found.revision}"
        known = {**facts, "kind": "hub", "file": file, "licence": licence}
        return {key: value for key, value in known.items() if value}

    def config_changes(self) -> dict[str, Any]:
        return {**self._downloaded[0].images, **super().config_changes()}

    def load(self, options: Mapping[str, Any]) -> Weights:
        return self._downloaded[1].load(options)

    def load_relative(self, options: Mapping[str, Any]) -> Weights:
        return self._downloaded[1].load_relative(options)


class Published(WeightsSource):
    """A released file."""

    def __init__(self, source: str | Path, model: str):
        wanted = registry.parse_name(model)[0] if source == "baseline" else model
        training = str(source) if source in ("finetuned", "scratch") else None
        self.released = choose(wanted, training)
        self.name = self.released.model

    def description(self) -> dict[str, Any]:
        return {
            "kind": "released",
            "model": self.name,
            "training": self.released.training,
            "file": self.released.filename,
            "sha256": self.released.sha256_prefix,
            "licence": licence_of(self.released),
        }

    def config_changes(self) -> dict[str, Any]:
        return {"class_names": tuple(imagenet_class_names()), **super().config_changes()}

    def load(self, options: Mapping[str, Any]) -> Weights:
        """Loads the weights; raises an InputError if the file was converted from another."""
        weights = read_weights(published_file(self.released))
        origin = weights.metadata.get("sha256", "")
        if origin and not origin.startswith(self.released.sha256_prefix):
            raise InputError(
                f"{weights.label} was converted from another file than {self.released.filename} "
                f"(SHA-256 {origin[:8]}); delete it"
            )
        return fitted(weights, self.name, options)


def _names_a_run(source: str | Path) -> bool:
    """Checks for a folder, or a name that does not exist and looks like neither file nor word."""
    path = local_path(source, "weights")
    misspelled = get_close_matches(str(source), WORDS, n=1)
    return path.is_dir() or not (path.exists() or path.suffix or misspelled)


def locate(source: bool | str | Path, *, model: str) -> WeightsSource:
    """Finds weights by the name that people give them; see the module.

    Args:
        model: the model they are wanted for, which decides about published weights, and about a
            file that does not say which model it is of.

    Raises:
        InputError: no such weights; the message lists what there is, or the nearest word.
    """
    source = "pretrained" if source is True else source
    if not isinstance(source, str | Path) or not str(source):
        given = repr(source)
        if isinstance(source, Mapping):
            given = "a mapping, which load_torch_state_dict loads into a model"
        raise InputError(
            f"weights are True, one of {', '.join(WORDS)}, a file or a run's folder; got {given}"
        )
    repository = registry.hub_repository(model)
    if source == "pretrained" and repository:
        source = PREFIX + repository
    if source in WORDS:
        return Published(source, model)
    if str(source).startswith(PREFIX):
        return OnHub(source, model)
    return OfRun(source) if _names_a_run(source) else InFile(source, model)


def describe(description: Mapping[str, Any] | str) -> str:
    """Says in a few words where weights come from, by their description (or a text already)."""
    if isinstance(description, str):
        return description
    facts = [f"{key} {description[key]}" for key in ("epoch", "step") if key in description]
    if description.get("kind") in ("file", "memory", "hub") and "sha256" in description:
        facts.append(f"SHA-256 {description['sha256'][:8]}")
    file = description.get("file", description.get("model", "unknown"))
    return f"{file} ({', '.join(facts)})" if facts else str(file)
