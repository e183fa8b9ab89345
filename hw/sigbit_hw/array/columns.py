"""What grids of any cells are made of: geometry, timing, ports, the weight bus, runs of columns."""

from dataclasses import dataclass, fields

from amaranth import *
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..lib.shared import instantiate

__all__ = ["BUS_COLUMNS", "Columns", "GridShape", "GridTiming", "bus_cycles", "bus_stage", "grid_members"]

#: Columns that share one stage of the weight bus.
BUS_COLUMNS = 16


@dataclass(frozen=True, kw_only=True)
class GridShape:
    """Geometry of a grid: fields of :class:`~sigbit_hw.spec.config.AcceleratorConfig`."""

    rows: int
    lanes: int
    columns: int
    weight_columns: int
    planes: int
    sum_bits: int
    fill_columns: int
    logic_columns: int = 0
    table_weight_bits: int = 0
    table_product_bits: int = 0
    token_lanes: int = 1

    @classmethod
    def of(cls, config):
        """Geometry of the grid of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def vector(self):
        """Activations that enter per plane."""
        return self.rows * self.lanes


def bus_cycles(weight_columns):
    """Cycles from one stage of the weight bus to the next.

    Words of several columns would overtake the swap that moves one column per cycle: the bus slows them down, so that
    they run ahead of it within a stage only.
    """
    return max(1, BUS_COLUMNS - BUS_COLUMNS // weight_columns)


def bus_stage(m, bus, column, cycles, *, first, name="bus"):
    """The weight bus as ``column`` sees it: one cycle later at the ``first`` column, ``cycles`` later at every group's.

    ``bus`` is a list of values; the first two say what is loaded, and only they need a reset.
    """
    if column != first and column % BUS_COLUMNS:
        return bus
    return [
        delayed(m, value, 1 if column == first else cycles, name=f"{name}_{index}_{column}", clear=index < 2)
        for index, value in enumerate(bus)
    ]


@dataclass(frozen=True)
class GridTiming:
    """Cycles of a grid.

    Attributes
    ----------
    edge_cycles : int
        From ``codes`` to the first cell.
    latency_cycles : tuple of int
        From ``codes`` to the sums of every column.
    weight_hold_cycles : int
        From ``swap`` until the first word of the next weights may be given; the others may follow, one per cycle in
        ascending order.
    weight_lead_cycles : int
        From the first word of a tile until its ``swap``, if the others follow one per cycle.
    fill_columns : int
        Of tables: how much longer that is per cycle that one column's tables take (:func:`~..spec.parts.fill_steps`).
    """

    edge_cycles: int
    latency_cycles: tuple
    weight_hold_cycles: int
    weight_lead_cycles: int
    fill_columns: int = 0


def grid_members(weight_format, activation_format, shape):
    """Ports of a grid of any cell, as :class:`~.grid.Grid` describes them."""
    return {
        "codes": In(data.ArrayLayout(activation_format.bits, shape.planes * shape.vector)),
        "swap": In(1),
        "weight": In(
            data.StructLayout(
                {
                    "valid": 1,
                    "index": range(-(-shape.columns // shape.weight_columns)),
                    "word": data.ArrayLayout(weight_format.bits * shape.vector, shape.weight_columns),
                }
            )
        ),
        "sums": Out(data.ArrayLayout(signed(shape.sum_bits), shape.planes * shape.columns)),
    }


class Columns:
    """A run of columns of one kind of cells: the cells, their weights and tables, and what travels beside them.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats.
    shape : :class:`GridShape`
        Of the whole grid.
    columns : range
        Which of its columns.
    arrival_cycles : int or None
        From ``codes`` to the activations of row 0 that :meth:`build` gets for column 0, or would if the run began
        there; ``None`` if the run may choose.

    Attributes
    ----------
    columns : range
    arrival_cycles, edge_cycles : int
        The same, and until they are at the cell; a column further is a cycle later, and so is a row.
    latency_cycles : int
        From ``codes`` to the sums of column 0, likewise.
    weight_hold_cycles, weight_lead_cycles, fill_columns : int
        What these columns ask of :class:`GridTiming`.
    """

    fill_columns = 0

    def build(self, m, platform, grid, neighbours):
        """Add the columns to ``m`` and their sums to ``grid.sums``.

        ``grid`` has the ports of :func:`grid_members`. ``neighbours`` are the activation codes of every row, plane by
        plane; returned are those that leave the last column.
        """
        raise NotImplementedError

    def _chain(self, m, platform, grid, column, neighbours, start, inputs):
        """One column: cells below each other, from the sum ``start`` on, with the other ``inputs`` of each by port.

        Codes pass from ``neighbours``, which become those of the next column.
        """
        shape = self._shape
        sums = [start] * shape.planes
        for row, ports in enumerate(inputs):
            pe = self._cell()
            ports = {"activations": neighbours[row], **ports, "sums_in": Cat(sums)}
            m.d.comb += [getattr(pe, name).eq(value) for name, value in ports.items()]
            instantiate(m, platform, f"cell_{row}_{column}", pe)
            neighbours[row] = pe.activations_out
            sums = [pe.sums_out[plane] for plane in range(shape.planes)]
        m.d.comb += [grid.sums[plane * shape.columns + column].eq(sums[plane]) for plane in range(shape.planes)]
