"""Training recipes: what a JSON file says, checked as a whole."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .network import UNITS, TrainingError

__all__ = ["Recipe", "Stage"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a training; the next one starts with its weights.

    Attributes
    ----------
    epochs : float
        Passes over the images; the last one may be a part.
    learning_rate : float
        Of weights and biases at the beginning (Adam), as a share of their size (:mod:`~sigbit.training.network`); it
        falls to 0 as a cosine.
    quantization : dict
        Options of :func:`~sigbit.quantize.quantize` that replace those of the recipe.
    masks : dict
        Term masks that replace those of the recipe.
    """

    epochs: float
    learning_rate: float = 4e-3
    quantization: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, list] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    quantization : dict
        Options of :func:`~sigbit.quantize.quantize`.
    stages : tuple of Stage
    units : str
        ``"trained"`` or ``"statistics"``.
    normalize : bool
        Train with batch normalization, by the images that one process has of a batch.
    unit_rate : float
        Learning rate of units over that of weights; a unit is trained as its logarithm.
    level_rate : float
        Learning rate of trained levels over that of weights; levels are whole numbers.
    batch : int
        Images in a step, of all processes together.
    warmup, freeze : float
        Share of the steps of a stage in which the learning rate rises, and, at the end, in which units stay.
    distillation : float
        Share of the loss that compares with the float model's outputs instead of labels (Hinton et al., 2015).
    temperature : float
        Of that comparison.
    crop, flip : int, bool
        Pixels by which images are moved at most, and whether half of them are mirrored.
    masks : dict
        Layer -> ``[group, budget]`` or ``[group, budget, policy]`` of structured dynamic precision; ``"*"`` are all
        layers that can have a budget.
    anneal : float
        Share of the steps of a stage in which budgets fall from everything to those of the masks.
    scale, mean, std : float, list
        Normalization of images, as in :func:`~sigbit.data.normalize`.
    calibration : int
        Training images, the first, that calibrate every stage.
    seed : int
    """

    quantization: dict[str, Any]
    stages: tuple[Stage, ...]
    units: str = "trained"
    normalize: bool = False
    unit_rate: float = 1.0
    level_rate: float = 0.2
    batch: int = 128
    warmup: float = 0.05
    freeze: float = 0.1
    distillation: float = 1.0
    temperature: float = 2.0
    crop: int = 4
    flip: bool = True
    masks: dict[str, list] = field(default_factory=dict)
    anneal: float = 1 / 3
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    calibration: int = 512
    seed: int = 0

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> "Recipe":
        """A recipe from a JSON file, with some values replaced; everything wrong is reported at once.

        Raises
        ------
        :exc:`TrainingError`
            If the file cannot be read or says something that is not a recipe.
        """
        try:
            values = json.loads(Path(path).read_text())
        except OSError as error:
            raise TrainingError(f"Cannot read the recipe {path}: {error.strerror}") from error
        except ValueError as error:
            raise TrainingError(f"Recipe {path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise TrainingError(f"Recipe {path} must be an object, not {type(values).__name__}")
        return cls.from_dict({**values, **changes}, f"Recipe {path}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str = "Recipe") -> "Recipe":
        """A recipe from plain values, as they stand in a file."""
        problems = _unknown(values, cls, "") + [
            f"{key} is missing" for key in ("quantization", "stages") if key not in values
        ]
        stages = values.get("stages", [])
        if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
            problems.append(f"stages must be a list of one or more objects, not {stages!r}")
            stages = []
        for index, stage in enumerate(stages):
            problems += _unknown(stage, Stage, f"stages[{index}].")
            problems += _numbers(stage, {"epochs": (0, None), "learning_rate": (0, None)}, f"stages[{index}].")
            if "epochs" not in stage:
                problems.append(f"stages[{index}].epochs is missing")
        limits = {
            "unit_rate": (0, None),
            "level_rate": (0, None),
            "warmup": (0, 1),
            "freeze": (0, 1),
            "distillation": (0, 1),
            "temperature": (0, None),
            "anneal": (0, 1),
            "scale": (0, None),
        }
        problems += _numbers(values, limits, "")
        for key, least in (("batch", 1), ("crop", 0), ("calibration", 1), ("seed", 0)):
            if key in values and (type(values[key]) is not int or values[key] < least):
                problems.append(f"{key} must be a whole number of at least {least}, not {values[key]!r}")
        for key in ("flip", "normalize"):
            if type(values.get(key, False)) is not bool:
                problems.append(f"{key} must be true or false, not {values[key]!r}")
        for key in ("mean", "std"):
            if key in values and not (
                isinstance(values[key], list) and all(isinstance(x, int | float) for x in values[key])
            ):
                problems.append(f"{key} must be a list of numbers, not {values[key]!r}")
        if values.get("units", "trained") not in UNITS:
            problems.append(f"units must be {' or '.join(UNITS)}, not {values['units']!r}")
        if problems:
            raise TrainingError(f"{name} cannot be used:\n  " + "\n  ".join(problems))
        checked: dict[str, Any] = {**values, "stages": tuple(Stage(**stage) for stage in stages)}
        checked |= {key: tuple(values[key]) for key in ("mean", "std") if key in values}
        return cls(**checked)


def _unknown(values: dict, kind: type, prefix: str) -> list[str]:
    known = [each.name for each in fields(kind)]
    return [f"{prefix}{key} is unknown; known are {', '.join(known)}" for key in values if key not in known]


def _numbers(values: dict, limits: dict, prefix: str) -> list[str]:
    problems = []
    for key, (low, high) in limits.items():
        value = values.get(key, low)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < low or (high is not None and value > high):
            text = f"at least {low}" if high is None else f"from {low} to {high}"
            problems.append(f"{prefix}{key} must be a number {text}, not {value!r}")
    return problems
