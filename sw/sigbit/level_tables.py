"""Level tables: what weight and activation codes count in one part pass of a layer on table cells."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sigbit_hw.spec.instructions import LEVEL, LEVEL_CODES
from sigbit_hw.spec.parts import code_distances, fill_steps

__all__ = ["LevelTable"]


@dataclass(frozen=True)
class LevelTable:
    """A table of products for one part of weights and one form of activations.

    Attributes
    ----------
    weights : tuple of int
        Level of every weight code, at most 16. Code 0 is level 0, unless there are 16 others; so are codes behind the
        last one. Of two codes of a level the first is used.
    distances : tuple of int
        How far every activation code is above the smallest level.
    """

    weights: tuple
    distances: tuple

    @classmethod
    def of(cls, digits, distances):
        """For the levels of weights that occur, in any order."""
        others = sorted(set(digits) - {0})
        return cls((0, *others) if len(others) < LEVEL_CODES else tuple(others), tuple(distances))

    @classmethod
    def native(cls, weight_format, activation_format):
        """For columns of logic cells beside those of tables: what codes mean to these."""
        positive = weight_format.magnitudes
        return cls((*positive, *(-magnitude for magnitude in positive)), code_distances(activation_format))

    @cached_property
    def entries(self):
        """Fields of the :data:`~sigbit_hw.spec.instructions.LEVEL` words, as tuples of pairs."""
        order = sorted(range(len(self.distances)), key=lambda code: (self.distances[code], code))
        reached, entries = 0, []
        for position in range(LEVEL_CODES):
            fields = {"weight": self.weights[position] if position < len(self.weights) else 0}
            if position < len(order):
                level = self.distances[order[position]]
                fields |= {"code": order[position], "step": level - reached}
                reached = level
            entries.append(tuple(fields.items()))
        return tuple(entries)

    @property
    def words(self):
        """The words as integers.

        Raises
        ------
        :exc:`ValueError`
            If a level or a step does not fit its field.
        """
        return tuple(LEVEL.pack(**dict(entry)) for entry in self.entries)

    @property
    def fill_steps(self):
        """Cycles that filling one column takes."""
        return fill_steps([dict(entry)["step"] for entry in self.entries[: len(self.distances)]])

    def codes(self, levels):
        """Code of every weight level of an array; code 0 for 0, also where that is no level: then no lane needs it."""
        low = min(0, *self.weights)
        table = np.zeros(max(0, *self.weights) - low + 1, dtype=np.uint8)
        for code, level in reversed(list(enumerate(self.weights))):
            table[level - low] = code
        return table[levels - low]
