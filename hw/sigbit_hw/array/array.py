# amaranth: UnusedElaboratable=no
"""The array: grid and accumulators of one configuration."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..lib.delay import delayed
from ..lib.shared import instantiate
from .accumulator import Accumulator, accumulator_tag
from .columns import GridShape
from .grid import Grid
from .masked import MaskedGrid, mask_layout
from .table import LevelEntry

__all__ = ["Array", "build_grid"]

#: Inputs of one stage of the read multiplexer: a look-up table with six inputs.
_SELECT_INPUTS = 4


def build_grid(config):
    """The grid of a configuration, of the cells that it chooses."""
    of = (config.weight_format, config.activation_format, GridShape.of(config))
    return MaskedGrid(*of) if config.masked else Grid(*of, config.cell)


class Array(wiring.Component):
    """Multiply activations with stationary weights and accumulate, one activation vector per plane and cycle.

    There is no handshake: every valid input is accumulated. An address of a bank must not be given again within
    ``Accumulator.reuse_cycles`` cycles.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`
        Formats, geometry, widths.

    Members
    -------
    i : ``In``
        ``codes`` of all planes (plane by plane, channel 0 lowest); ``swap``: the weights loaded last are used from
        here on; ``valid``, ``clear``, ``shift``, ``bank``, ``address``: what the accumulators do with the sums
        (:class:`~.accumulator.Accumulator`). Of masked cells also ``start`` and ``mask``, as
        :class:`~.masked.MaskedGrid` has them; ``valid`` comes with the last cycle of a vector.
    weight : ``In``
        ``valid``, ``index``, ``word``: sign-magnitude codes of ``weight_columns`` columns, as in :class:`~.grid.Grid`.
    levels, level_bank : ``In``
        Table cells only, as in :class:`~.grid.Grid`: entries of level tables, and the bank of ``weight``'s.
    read : ``In``
        ``bank`` that is not being accumulated, ``plane``, ``address`` and ``group`` of ``post_lanes`` columns.
    read_data : ``Out``
        The accumulators of the group, ``read_latency_cycles`` later. They hold exact sums less the number of weight
        sign bits in the reduction (numerics 5.2), which masked cells do not take off.
    valid_tokens : ``Out``
        Masked cells only, as in :class:`~.masked.MaskedGrid`, ``valid_tokens_cycles`` after ``i.start``.
    """

    def __init__(self, config):
        self._config = config
        self._groups = config.columns // config.post_lanes
        levels = {"levels": In(LevelEntry()), "level_bank": In(1)} if config.cell == "table" else {}
        members = {"swap": 1, **dict(accumulator_tag(config.strip_depth).members)}
        members["codes"] = data.ArrayLayout(config.activation_format.bits, config.planes * config.vector)
        counted = {}
        grid = build_grid(config)
        if config.masked:
            members |= {"start": 1, "mask": mask_layout(config.lanes)}
            counted = {"valid_tokens": Out(grid.valid_tokens.shape())}
            self.valid_tokens_cycles = grid.valid_tokens_cycles
        super().__init__(
            {
                **levels,
                **counted,
                "i": In(data.StructLayout(members)),
                "weight": In(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "index": range(-(-config.columns // config.weight_columns)),
                            "word": config.weight_word_bits,
                        }
                    )
                ),
                "read": In(
                    data.StructLayout(
                        {
                            "bank": 1,
                            "plane": range(max(2, config.planes)),
                            "address": range(config.strip_depth),
                            "group": range(self._groups),
                        }
                    )
                ),
                "read_data": Out(data.ArrayLayout(signed(config.accumulator_bits), config.post_lanes)),
            }
        )
        timing = grid.timing
        #: Cycles from ``i`` to the first ``read`` that sees the sums of every column.
        self.latency_cycles = max(timing.latency_cycles) + 2
        #: Cycles from ``i.swap`` until the first word of the next weights may be given, one word per cycle.
        self.weight_hold_cycles = timing.weight_hold_cycles
        #: Cycles from the first word of weights to their ``i.swap``.
        self.weight_lead_cycles = timing.weight_lead_cycles
        #: How many more these are per cycle that one column's tables take; 0 without tables.
        self.fill_columns = timing.fill_columns
        #: Cycles from ``read`` to ``read_data``: a register, the memory, and stages of the multiplexer.
        self.read_latency_cycles = 2 + _select_cycles(1 << self._select_bits)
        self._sum_cycles = timing.latency_cycles

    @property
    def module_name(self):
        """Name that is the same for equal arrays only."""
        return f"array_{self._config.hash:016x}"

    @property
    def _select_bits(self):
        return len(self.read.group) + len(self.read.plane) + 1

    def elaborate(self, platform):
        m = Module()
        config = self._config

        m.submodules.grid = grid = build_grid(config)
        if config.masked:
            m.d.comb += [
                grid.start.eq(self.i.start),
                grid.mask.eq(self.i.mask),
                self.valid_tokens.eq(grid.valid_tokens),
            ]
        m.d.comb += [
            grid.codes.eq(self.i.codes),
            grid.swap.eq(self.i.swap),
            *(grid.weight[name].eq(self.weight[name]) for name in ("valid", "index", "word")),
        ]
        if config.cell == "table":
            m.d.comb += [grid.levels.eq(self.levels), grid.level_bank.eq(self.level_bank)]

        # Tags, one register per column, tapped by fetch, add and store on their diagonal; some columns may be later.
        layout = accumulator_tag(config.strip_depth)
        first = Signal(layout)
        m.d.comb += [first[name].eq(self.i[name]) for name in layout.members]
        earliest = min(self._sum_cycles)
        tags = [_delayed_tag(m, first, earliest - 1, "tag_edge")]
        for position in range(1, max(self._sum_cycles) - earliest + 4):
            tags.append(_delayed_tag(m, tags[-1], 1, f"tag_{position}"))

        read = delayed(m, self.read, 1, name="read")
        select = delayed(m, Cat(read.group, read.plane, read.bank), 1, name="select")
        choices = [[Const(0, config.accumulator_bits)] * (1 << self._select_bits) for _ in range(config.post_lanes)]
        for plane in range(config.planes):
            for column in range(config.columns):
                accumulator = Accumulator(
                    config.strip_depth,
                    sum_bits=config.sum_bits,
                    accumulator_bits=config.accumulator_bits,
                    shift_bits=config.part_shift_bits,
                )
                instantiate(m, platform, f"accumulator_{plane}_{column}", accumulator)
                tag = self._sum_cycles[column] - earliest
                m.d.comb += [
                    accumulator.fetch.eq(tags[tag]),
                    accumulator.add.eq(tags[tag + 1]),
                    accumulator.store.eq(tags[tag + 3]),
                    accumulator.sum.eq(grid.sums[plane * config.columns + column]),
                    accumulator.read_address.eq(read.address),
                ]
                group, lane = divmod(column, config.post_lanes)
                for bank in range(2):
                    position = (bank << len(self.read.plane) | plane) << len(self.read.group) | group
                    choices[lane][position] = accumulator.read_data[bank]
        for lane, values in enumerate(choices):
            m.d.comb += self.read_data[lane].eq(_select(m, values, select, name=f"read_{lane}"))
        return m


def _delayed_tag(m, tag, cycles, name):
    """Only ``valid`` needs a reset."""
    later = Signal.like(tag, name=name)
    for field in tag.shape().members:
        value = delayed(m, tag[field], cycles, name=f"{name}_{field}", clear=field == "valid")
        m.d.comb += later[field].eq(value)
    return later


def _select_cycles(count):
    cycles = 0
    while count > 1:
        count = -(-count // _SELECT_INPUTS)
        cycles += 1
    return cycles


def _select(m, values, select, name):
    """``values[select]``, ``_select_cycles(len(values))`` cycles later."""
    for cycle in range(_select_cycles(len(values))):
        stage = []
        for index in range(0, len(values), _SELECT_INPUTS):
            inputs = values[index : index + _SELECT_INPUTS]
            chosen = Signal.like(Value.cast(inputs[0]), name=f"{name}_{cycle}_{index}", reset_less=True)
            bits = (len(inputs) - 1).bit_length()
            with m.Switch(select[:bits]):
                for choice, value in enumerate(inputs):
                    with m.Case(choice):
                        m.d.sync += chosen.eq(value)
            stage.append(chosen)
        values = stage
        select = delayed(m, select[2:], 1, name=f"{name}_select_{cycle}")
    return values[0]
