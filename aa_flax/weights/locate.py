"""What weights are, and where: the one room that understands `pretrained`, a file, a run's folder.

pretrained (or True)   the published weights of the net, as the original chooses
finetuned, scratch     published weights of that training
baseline               those of the net without antialiasing, torchvision's
FILE, FILE#ema         a weights file of any kind, told apart by its content; averaged weights
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
from aa_flax.models.registry import ReleasedWeights
from aa_flax.weights.building import Held, abstract_net, build_net, complete, hold
from aa_flax.weights.content import (
    WORDS,
    count_in,
    images_in,
    is_safetensors,
    mapping_in,
    read_content,
    sha256,
    weights_path,
)
from aa_flax.weights.convert import licence_of
from aa_flax.weights.files import read_metadata
from aa_flax.weights.fit import last_layer, named_weights, options_of
from aa_flax.weights.hub import PREFIX, HubFile, hub_file, parse_hub_name
from aa_flax.weights.pretrained import check_is_released, choose, pretrained_file


class Weights:
    """Weights that are somewhere; nothing is loaded or downloaded before it is needed.

    Attributes:
        name: the net they are of. A file that does not say it is taken at the word of whoever
            asked; whether they fit shows when they are loaded.
        dtype: the type the net computes in unless asked otherwise; None: float32.
        config: of the run that trained them, as nested dicts; None: it is not known.
    """

    name: str
    dtype: DTypeLike | None = None
    config: Mapping[str, Any] | None = None

    def description(self) -> dict[str, Any]:
        """What they are, for a record: equal for equal weights.

        Returns:
            Of the keys `kind` (`released`, `file`, `hub` or `run`), `model`, `options`, `training`,
            `file`, `sha256`, `licence`, `epoch`, `step`, `crc32` those that are known.
        """
        raise NotImplementedError

    def config_changes(self) -> dict[str, Any]:
        """What these weights make of a net's `ModelConfig`: their source, hash and licence."""
        said = self.description()
        return {
            "weights": said["file"],
            "sha256": said.get("sha256"),
            "licence": said.get("licence"),
        }

    def hold(self, options: Mapping[str, Any]) -> Held:
        """The weights themselves.

        Args:
            options: the net's; those the weights say are added.

        Raises:
            InputError: they cannot be had, are damaged or do not fit the net.
        """
        raise NotImplementedError

    def hold_relative(self, options: Mapping[str, Any]) -> Held:
        """The weights, where those of the net's baseline or of another filter size will do, too.

        Args:
            options: those of the net that starts from them.
        """
        return self.hold({})

    def abstract_model(self, num_classes: int, **options: Any) -> Classifier:
        """The net of shapes alone, before anything is downloaded or read.

        Args:
            num_classes: as of its weights, which are not looked at.
            options: of the net, those that the weights say included.

        Raises:
            InputError: options that the net does not have.
        """
        return abstract_net(self.name, num_classes, **options)

    def load_model(
        self,
        *,
        dtype: DTypeLike | None = None,
        num_classes: int | None = None,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> Classifier:
        """The net with these weights, in evaluation mode, with the options they were trained with.

        Args:
            dtype: type of the computation; default: a run's own, else float32.
            num_classes: default: that of the weights. For another the last layer is drawn anew; 0
                leaves it out.
            rngs: random keys of what the weights do not hold; default `nnx.Rngs(0)`.
            options: further arguments of the net's class.

        Raises:
            InputError: weights that cannot be had, are damaged or do not fit.
        """
        held = self.hold(options)
        build = partial(
            build_net,
            held.model,
            {**(held.options or {}), **options},
            self.dtype if dtype is None else dtype,
        )
        return complete(held, build, num_classes, nnx.Rngs(0) if rngs is None else rngs)


class Published(Weights):
    """A released file."""

    def __init__(self, released: ReleasedWeights):
        self.released = released
        self.name = released.model

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

    def hold(self, options: Mapping[str, Any]) -> Held:
        content = read_content(pretrained_file(self.released))
        check_is_released(self.released, content)
        return hold(content, self.name, options)


class InFile(Weights):
    """A weights file."""

    def __init__(self, source: str | Path, model: str):
        self.source = source
        self.path, self.ema = weights_path(source)
        self._metadata = read_metadata(self.path) if is_safetensors(self.path) else {}
        self.name = self._metadata.get("model") or model

    @cached_property
    def _digest(self) -> str:
        return sha256(self.path)

    def description(self) -> dict[str, Any]:
        said = self._metadata
        facts = {"options": mapping_in(said, "options", self.path)}
        facts |= {key: said.get(key) for key in ("training", "licence")}
        facts |= {key: count_in(said, key) for key in ("epoch", "step")}
        file = f"{self.path}#ema" if self.ema else str(self.path)
        return {
            "kind": "file",
            "model": self.name,
            **{key: value for key, value in facts.items() if value not in (None, "", {})},
            "file": file,
            "sha256": self._digest,
        }

    def config_changes(self) -> dict[str, Any]:
        return {**images_in(self._metadata, self.path), **super().config_changes()}

    def hold(self, options: Mapping[str, Any]) -> Held:
        content = read_content(self.source)
        if self.__dict__.setdefault("_digest", content.sha256) != content.sha256:
            raise InputError(f"{self.path} has changed since it was described; try again")
        return hold(content, self.name, options)

    def hold_relative(self, options: Mapping[str, Any]) -> Held:
        content = read_content(self.source)
        if content.ours:
            return hold(content, self.name, {})
        base, _ = registry.parse_name(self.name)
        filters = [array for name, array in content.arrays.items() if name.endswith(".filt")]
        if not filters:
            return hold(content, base, {})
        return hold(content, f"{base}_lpf{filters[0].shape[-1]}", options)


class OnHub(Weights):
    """The weights in a repository on the Hugging Face hub."""

    def __init__(self, source: str, model: str):
        self.source = parse_hub_name(source)
        self.name = model

    @cached_property
    def _downloaded(self) -> HubFile:
        return hub_file(self.source)

    @cached_property
    def _in_file(self) -> InFile:
        return InFile(self._downloaded.path, self.name)

    def description(self) -> dict[str, Any]:
        said = self._in_file.description()
        licence = said.get("licence") or self._downloaded.licence
        file = f"{PREFIX}{self.source.repository}@{self._downloaded.revision}"
        known = {**said, "kind": "hub", "file": file, "licence": licence}
        return {key: value for key, value in known.items() if value}

    def config_changes(self) -> dict[str, Any]:
        return {**self._downloaded.images, **super().config_changes()}

    def hold(self, options: Mapping[str, Any]) -> Held:
        self._check_hash()
        return self._in_file.hold(options)

    def hold_relative(self, options: Mapping[str, Any]) -> Held:
        self._check_hash()
        return self._in_file.hold_relative(options)

    def _check_hash(self) -> None:
        digest, wanted = self._in_file.description()["sha256"], self.source.sha256
        if wanted and not digest.startswith(wanted):
            raise InputError(
                f"{PREFIX}{self.source.repository} is not the file that was meant: its SHA-256 "
                f"begins with {digest[:8]}, not {wanted[:8]}; correct it, or give the "
                "revision it is of"
            )


class OfRun(Weights):
    """A checkpoint of a run.

    Args:
        step: which, by its folder's name; default: the best by top-1, or the latest of a run that
            has evaluated none yet.

    Raises:
        InputError: no run there, or one without checkpoints.
    """

    def __init__(self, folder: str | Path, step: int | None = None):
        self.folder = local_path(folder, "the run's folder")
        self.step = step
        if not (self.folder / "config.json").is_file():
            why = "no config.json there" if self.folder.exists() else "no such file or folder"
            raise InputError(
                f"no run in {self.folder} ({why}); train first, or give other weights: a file, or "
                f"one of {', '.join(WORDS)}"
            )
        if not (self.folder / "checkpoints").is_dir() and (there := _weights_in(self.folder)):
            raise InputError(
                f"no checkpoints in {self.folder}, but weights: give {' or '.join(there)}"
            )

    @cached_property
    def _record(self) -> tuple[Any, bool]:
        """The checkpoint's description, and whether it is the best."""
        with self._checkpoints() as checkpoints:
            record = checkpoints.find(self.step)
            return record, record == checkpoints.best

    def _checkpoints(self):
        from aa_flax.training.checkpoints import Checkpoints  # Orbax, which only runs need

        return Checkpoints(self.folder / "checkpoints")

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
        images, names = images_of_config(self.config), self._class_names()
        return {**images, "class_names": names, **super().config_changes()}

    def _class_names(self) -> tuple[str, ...]:
        try:
            data = parse_json((self.folder / "data.json").read_text())
            return tuple(map(str, data["train"]["classes"]))
        except (OSError, ValueError, LookupError, TypeError):  # not known
            return ()

    def sentence(self) -> str:
        """Where they come from, for people."""
        record, is_best = self._record
        which = "the best" if is_best else f"step {record.step}"
        return f"{self.folder} (epoch {record.epoch}, {which})"

    def hold(self, options: Mapping[str, Any]) -> Held:
        record, _ = self._record
        options = options_of_config(record.config)
        build = partial(build_net, self.name, options, None)
        like = abstract_net(self.name, record.num_classes, **options)
        zeros = {name: np.zeros(v.shape, v.dtype) for name, v in named_weights(like).items()}
        empty = Held(str(self.folder), self.name, None, record.num_classes, zeros, ())
        model = complete(empty, build, None, nnx.Rngs(0))
        with self._checkpoints() as checkpoints:
            checkpoints.restore_model(record.step, model)
        arrays = {name: variable[...] for name, variable in named_weights(model).items()}
        return empty._replace(options=options_of(model), arrays=arrays, head=last_layer(model))


def _weights_in(folder: Path) -> list[str]:
    suffixes = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"}
    return sorted(str(path) for path in folder.iterdir() if path.suffix in suffixes)


def locate(source: bool | str | Path, *, model: str) -> Weights:
    """Finds weights by what people call them; see the module for the words.

    Args:
        model: the net they are wanted for: which published weights are meant, and which net a file
            is of that does not say it.

    Raises:
        InputError: no such weights; the message says what there is, or the nearest word.
    """
    if source is True:
        source = "pretrained"
    if not isinstance(source, str | Path) or not str(source):
        raise InputError(
            f"weights are True, one of {', '.join(WORDS)}, a file or the folder of a run; got "
            f"{_given(source)}"
        )
    repository = registry.hub_repository(model)
    if source == "pretrained" and repository:
        return OnHub(PREFIX + repository, model)
    if isinstance(source, str) and source in WORDS:
        training = source if source in ("finetuned", "scratch") else None
        wanted = registry.parse_name(model)[0] if source == "baseline" else model
        return Published(choose(wanted, training))
    if str(source).startswith(PREFIX):
        return OnHub(str(source), model)
    path = local_path(source, "weights")
    meant_a_word = get_close_matches(str(source), WORDS, n=1)
    if path.is_dir() or not (path.exists() or path.suffix or meant_a_word):
        return OfRun(path)  # which says that there is no run
    return InFile(path, model)


def _given(source: object) -> str:
    if isinstance(source, Mapping):
        kind = type(source).__name__
        return f"a mapping ({kind}), which load_torch_state_dict puts into a net that is there"
    return repr(source)


def describe(description: Mapping[str, Any] | str) -> str:
    """Where weights come from in a few words, of a `Weights.description()` or an older record."""
    if isinstance(description, str):
        return description
    facts = []
    if "epoch" in description:
        facts.append(f"epoch {description['epoch']}")
    if "step" in description:
        facts.append(f"step {description['step']}")
    if description.get("kind") in ("file", "memory", "hub") and "sha256" in description:
        facts.append(f"SHA-256 {description['sha256'][:8]}")
    file = description.get("file", description.get("model", "unknown"))
    return f"{file} ({', '.join(facts)})" if facts else str(file)
