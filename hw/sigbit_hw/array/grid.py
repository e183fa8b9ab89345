"""The grid: rows x columns of cells that add products, of one kind or of two."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from ..lib.delay import delayed
from .columns import GridTiming, grid_members
from .logic import LogicColumns
from .subset import SubsetColumns
from .table import LevelEntry, TableColumns

__all__ = ["Grid"]

_COLUMNS = {"logic": LogicColumns, "table": TableColumns, "subset": SubsetColumns}


class Grid(wiring.Component):
    """Sums of ``rows * lanes`` products for every column and plane, systolic.

    Activations of all planes enter together; column ``c`` delivers ``timing.latency_cycles[c]`` cycles later. The
    sum is ``sum(weight * activation)`` minus the number of weight sign bits in the column (numerics 5.2). To table
    cells activations count as distances from the smallest level of their table.

    Weights: the words of a tile are given one per cycle in ascending order, the first at least
    ``timing.weight_hold_cycles`` after the last ``swap``. The ``swap`` that makes them active may come
    ``timing.weight_lead_cycles`` after the first word, while the others follow; it takes effect on the activations of
    its own cycle. A column that got no new word repeats the one it has.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats.
    shape : :class:`~.columns.GridShape`
    cell : str
        ``"logic"``, ``"table"`` or ``"subset"``.

    Members
    -------
    codes : ``In``
        Activation codes, plane by plane, row by row, lane 0 lowest.
    swap : ``In(1)``
        The weights loaded last are used from these codes on.
    weight : ``In``
        ``valid``, ``index`` and ``word``, the sign-magnitude codes of ``weight_columns`` columns from
        ``index * weight_columns``, lane 0 of row 0 of the first column lowest.
    levels : ``In(LevelEntry())``
        Entries of a level table; table cells only.
    level_bank : ``In(1)``
        Bank of the levels of ``weight``, in the same cycle; table cells only.
    sums : ``Out``
        Plane by plane, column by column.
    """

    def __init__(self, weight_format, activation_format, shape, cell="logic"):
        self._shape = shape
        first = shape.columns - shape.logic_columns
        arrival_cycles = None
        self._runs = []
        for kind, columns in ((cell, range(first)), ("logic", range(first, shape.columns))):
            if columns:
                run = _COLUMNS[kind](weight_format, activation_format, shape, columns, arrival_cycles)
                self._runs.append(run)
                arrival_cycles = run.edge_cycles
        #: :class:`~.columns.GridTiming`
        self.timing = GridTiming(
            self._runs[0].edge_cycles,
            tuple(run.latency_cycles + column for run in self._runs for column in run.columns),
            max(run.weight_hold_cycles for run in self._runs),
            max(run.weight_lead_cycles for run in self._runs),
            self._runs[0].fill_columns,
        )
        members = grid_members(weight_format, activation_format, shape)
        if cell == "table":
            members |= {"levels": In(LevelEntry()), "level_bank": In(1)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        shape = self._shape
        neighbours = []
        for row in range(shape.rows):
            own = [
                self.codes[plane * shape.vector + row * shape.lanes + lane]
                for plane in range(shape.planes)
                for lane in range(shape.lanes)
            ]
            neighbours.append(delayed(m, Cat(own), self._runs[0].arrival_cycles + row, name=f"row_{row}"))
        for run in self._runs:
            neighbours = run.build(m, platform, self, neighbours)
        return m
