# amaranth: UnusedElaboratable=no
"""Post-processor: requantizes one bank of accumulators into feature memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from ..arith.encode import UNIFORM_BITS, Encoder, part_count, uniform_range
from ..arith.index import IndexDecoder, IndexEncoder
from ..arith.requantize import ANY_HALF_UNIT_BITS, ANY_LEVEL_BITS, SHIFT_MAX, requantizer_class
from ..arith.residual import ResidualDecoder
from ..arith.threshold import LevelSelector, middles
from ..lib.delay import delayed
from ..lib.layout import post_job_layout, table_layout
from ..lib.shared import instantiate
from ..spec.instructions import CODEBOOK_DISTANCE_BITS, Encoding

__all__ = ["AccumulatorRead", "FeatureWrite", "ParameterRead", "PostProcessor", "ResidualRead"]

#: Cycles from a token to the address of its residual word.
_RESIDUAL_ADDRESS_CYCLES = 3


def _index(count):
    return unsigned(max(1, ceil_log2(count)))


class AccumulatorRead(wiring.Signature):
    """Read port of the accumulators, seen from the reader.

    ``address`` counts the pixels of a plane in the order of their computation, ``group`` the sets of ``post_lanes``
    columns. ``data`` comes a fixed number of cycles later.
    """

    def __init__(self, config):
        super().__init__(
            {
                "en": Out(1),
                "bank": Out(1),
                "plane": Out(_index(config.planes)),
                "address": Out(_index(config.strip_depth)),
                "group": Out(_index(config.columns // config.post_lanes)),
                "data": In(data.ArrayLayout(signed(config.accumulator_bits), config.post_lanes)),
            }
        )


class ParameterRead(wiring.Signature):
    """Read port of the parameter memory, seen from the reader; ``data`` comes a fixed number of cycles later."""

    def __init__(self, config):
        super().__init__(
            {
                "en": Out(1),
                "address": Out(_index(config.parameter_depth)),
                "data": In(data.ArrayLayout(table_layout(config.parameter), config.post_lanes)),
            }
        )


class FeatureWrite(wiring.Signature):
    """Write of ``post_lanes`` native codes: the ``granule``-th such part of the feature word at ``address``."""

    def __init__(self, config):
        super().__init__(
            {
                "en": Out(1),
                "address": Out(_index(config.feature_depth)),
                "granule": Out(_index(config.vector // config.post_lanes)),
                "data": Out(data.ArrayLayout(config.activation_format.bits, config.post_lanes)),
            }
        )


class ResidualRead(wiring.Signature):
    """Read port of feature memory, seen from the reader.

    ``reserve`` announces the use of the port in the next cycle, in which ``address`` is valid; ``data`` comes a fixed
    number of cycles after the address.
    """

    def __init__(self, config):
        super().__init__(
            {
                "reserve": Out(1),
                "en": Out(1),
                "address": Out(_index(config.feature_depth)),
                "data": In(config.feature_word_bits),
            }
        )


def _codebook(instruction, prefix, count):
    """Smallest level of a codebook of an instruction, and the distances of so many from it."""
    distances = (instruction[f"{prefix}distance{i}"] for i in range(1, count))
    return instruction[f"{prefix}level0"], [Const(0, 1), *distances]


class PostProcessor(wiring.Component):
    """Execute POST instructions: read accumulators, requantize, write native codes; one group of lanes per cycle.

    A job walks plane (outermost), row, pixel, group, part and residual part (innermost) without a pause and ends with
    row ``valid_rows``, counted over all planes; later rows take no time. A job with ``valid_rows`` = 0 takes the time
    of one row and writes nothing. The next job is accepted when the last request of a job has gone out.

    The first request comes ``start_delay_cycles + 1`` cycles after acceptance, its write ``latency_cycles`` after it.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    start_delay_cycles : int
        What the array needs to store its last sums.
    accumulator_latency_cycles, parameter_latency_cycles, feature_latency_cycles : int
        From request to data of the memories; at least 1.

    Members
    -------
    job : In(stream)
        ``instruction`` (the POST table) and the ``bank`` of accumulators to read. Counts are at least 1.
    accumulator : Out(:class:`AccumulatorRead`)
    parameter : Out(:class:`ParameterRead`)
    residual : Out(:class:`ResidualRead`)
        One read per feature word of a residual.
    write : Out(:class:`FeatureWrite`)
        Always accepted.
    busy : Out(1)
        High from the cycle after acceptance to the last write.
    done : Out(1)
        High with the last write of a job.

    Raises
    ------
    :exc:`ValueError`
        If a number of cycles is out of range.
    """

    def __init__(
        self,
        config,
        *,
        start_delay_cycles,
        accumulator_latency_cycles,
        parameter_latency_cycles=1,
        feature_latency_cycles=2,
    ):
        for name, value, low in (
            ("start_delay_cycles", start_delay_cycles, 0),
            ("accumulator_latency_cycles", accumulator_latency_cycles, 1),
            ("parameter_latency_cycles", parameter_latency_cycles, 1),
            ("feature_latency_cycles", feature_latency_cycles, 1),
        ):
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, not {value!r}")
        self._config = config
        native = config.activation_format
        # Of each there is one per lane.
        self._requantizer = lambda: requantizer_class(config.requantizer)(
            native, config.accumulator_bits, any_levels=config.level_tables
        )
        self._encoder = lambda: IndexEncoder(native.bits) if config.level_tables else Encoder(native)
        self._decoder = lambda: IndexDecoder(native.bits) if config.level_tables else ResidualDecoder(native)
        self._encoder_cycles = self._encoder().latency_cycles
        self._requantizer_cycles = self._requantizer().latency_cycles
        self._part_count = -(-UNIFORM_BITS // native.bits) if config.level_tables else part_count(native)
        self._start_delay_cycles = start_delay_cycles
        self._accumulator_latency_cycles = accumulator_latency_cycles
        self._parameter_latency_cycles = parameter_latency_cycles
        self._feature_latency_cycles = feature_latency_cycles
        # Address, memory, the word's register, decoder.
        self._residual_cycles = _RESIDUAL_ADDRESS_CYCLES + feature_latency_cycles + 1 + self._decoder().latency_cycles
        self._operand_cycles = max(accumulator_latency_cycles, parameter_latency_cycles, self._residual_cycles)
        # From operands to what is encoded.
        self._level_cycles = self._requantizer_cycles
        if config.threshold_count:
            self._level_cycles += LevelSelector.latency_cycles
        super().__init__(
            {
                "job": In(stream.Signature(post_job_layout())),
                "accumulator": Out(AccumulatorRead(config)),
                "parameter": Out(ParameterRead(config)),
                "residual": Out(ResidualRead(config)),
                "write": Out(FeatureWrite(config)),
                "busy": Out(1),
                "done": Out(1),
            }
        )

    @property
    def latency_cycles(self):
        """Cycles from a token to its write."""
        return self._operand_cycles + self._level_cycles + self._encoder_cycles

    @property
    def start_cycles(self):
        """Cycles from the acceptance of a job to its first token."""
        return self._start_delay_cycles + 1

    @property
    def residual_reserve_cycles(self):
        """Cycles from a token to ``residual.reserve``."""
        return _RESIDUAL_ADDRESS_CYCLES - 1

    def elaborate(self, platform):
        m = Module()
        config = self._config
        code_bits = config.activation_format.bits
        granules = config.vector // config.post_lanes
        address_bits = exact_log2(config.feature_depth)
        offered = self.job.payload.instruction
        current = Signal.like(offered)
        bank = Signal()

        # One job: accepted, delayed, walked.
        accept = Signal()
        walking = Signal()
        finish = Signal()
        m.d.comb += accept.eq(self.job.valid & self.job.ready)
        with m.If(accept):
            m.d.sync += [current.eq(offered), bank.eq(self.job.payload.bank)]
        if self._start_delay_cycles:
            delay = Signal(range(self._start_delay_cycles))
            waiting = Signal()
            m.d.comb += self.job.ready.eq(~walking & ~waiting)
            with m.If(accept):
                m.d.sync += [waiting.eq(1), delay.eq(self._start_delay_cycles - 1)]
            with m.Elif(waiting):
                m.d.sync += delay.eq(delay - 1)
                with m.If(delay == 0):
                    m.d.sync += [waiting.eq(0), walking.eq(1)]
        else:
            m.d.comb += self.job.ready.eq(~walking)
            with m.If(accept):
                m.d.sync += walking.eq(1)
        with m.If(finish):
            m.d.sync += walking.eq(0)

        # Token counters. `last_*` are registers: the walk decides with one LUT what advances.
        def counted(name, advance):
            """Flag of the last of ``current[name]`` steps; starts again by itself."""
            remaining = Signal(len(offered[name]), name=f"{name}_remaining")
            last = Signal(name=f"{name}_last")
            single = Signal(name=f"{name}_single")
            with m.If(accept):
                m.d.sync += [remaining.eq(offered[name]), last.eq(offered[name] <= 1), single.eq(offered[name] <= 1)]
            with m.Elif(advance):
                m.d.sync += [
                    remaining.eq(Mux(last, current[name], remaining - 1)),
                    last.eq(Mux(last, single, remaining == 2)),
                ]
            return last

        last_residual_part = counted("residual_parts", walking)
        next_part = walking & last_residual_part
        last_part = counted("parts", next_part)
        next_group = next_part & last_part
        last_group = counted("groups", next_group)
        next_pixel = next_group & last_group
        last_pixel = counted("pixels", next_pixel)
        next_row = next_pixel & last_pixel
        last_row = counted("rows", next_row)
        next_plane = next_row & last_row

        plane = Signal.like(self.accumulator.plane)
        rows_left = Signal.like(offered.valid_rows)
        rows_end = Signal()
        with m.If(accept):
            m.d.sync += [rows_left.eq(offered.valid_rows), rows_end.eq(offered.valid_rows <= 1)]
        with m.Elif(next_row):
            m.d.sync += [rows_left.eq(rows_left - 1), rows_end.eq(rows_left == 2)]
        m.d.comb += finish.eq(next_row & (rows_end | (last_row & (plane == config.planes - 1))))

        # Reads.
        pixel = Signal.like(self.accumulator.address)
        group = Signal.like(self.accumulator.group)
        parameter_address = Signal.like(self.parameter.address)
        part = Signal(_index(self._part_count))
        field_shift = Signal(range(SHIFT_MAX + 1))
        with m.If(accept):
            m.d.sync += [
                plane.eq(0),
                pixel.eq(0),
                group.eq(0),
                parameter_address.eq(offered.parameter_base),
                part.eq(0),
                field_shift.eq(1),
            ]
        with m.Elif(walking):
            with m.If(next_part):
                m.d.sync += [part.eq(part + 1), field_shift.eq(field_shift + code_bits)]
            with m.If(next_group):
                m.d.sync += [part.eq(0), field_shift.eq(1)]
                m.d.sync += [group.eq(group + 1), parameter_address.eq(parameter_address + 1)]
            with m.If(next_pixel):
                m.d.sync += [group.eq(0), parameter_address.eq(current.parameter_base)]
                m.d.sync += pixel.eq(pixel + 1)
            with m.If(next_plane):
                m.d.sync += [pixel.eq(0), plane.eq(plane + 1)]

        request = Cat(walking, bank, plane, pixel, group)
        request_delay = self._operand_cycles - self._accumulator_latency_cycles
        port = self.accumulator
        m.d.comb += Cat(port.en, port.bank, port.plane, port.address, port.group).eq(
            delayed(m, request, request_delay, name="request", clear=True)
        )
        request_delay = self._operand_cycles - self._parameter_latency_cycles
        m.d.comb += Cat(self.parameter.en, self.parameter.address).eq(
            delayed(m, Cat(walking, parameter_address), request_delay, name="parameter_request", clear=True)
        )

        # Write address: every loop has its own offset, and a pipelined tree adds them.
        plane_offset = Signal(address_bits)
        row_offset = Signal(address_bits)
        column = Signal(min(address_bits, len(offered.pixels)))
        block_offset = Signal(address_bits)
        part_offset = Signal(address_bits)
        granule = Signal.like(self.write.granule)
        with m.If(accept):
            m.d.sync += [
                plane_offset.eq(offered.base),
                row_offset.eq(0),
                column.eq(0),
                block_offset.eq(0),
                part_offset.eq(0),
                granule.eq(offered.first_group),
            ]
        with m.Elif(walking):
            with m.If(next_part):
                m.d.sync += part_offset.eq(part_offset + current.part_step)
            with m.If(next_group):
                m.d.sync += [part_offset.eq(0), granule.eq(granule + 1)]
                with m.If(granule == granules - 1):
                    m.d.sync += [granule.eq(0), block_offset.eq(block_offset + current.block_step)]
            with m.If(next_pixel):
                m.d.sync += [block_offset.eq(0), granule.eq(current.first_group), column.eq(column + 1)]
            with m.If(next_row):
                m.d.sync += [column.eq(0), row_offset.eq(row_offset + current.row_step)]
            with m.If(next_plane):
                m.d.sync += [row_offset.eq(0), plane_offset.eq(plane_offset + current.plane_step)]

        inner = Signal(address_bits, reset_less=True)
        outer = Signal(address_bits, reset_less=True)
        within_plane = Signal(address_bits, reset_less=True)
        address = Signal(address_bits, reset_less=True)
        m.d.sync += [
            inner.eq(part_offset + block_offset),
            outer.eq(row_offset + column),
            within_plane.eq(inner + outer),
            address.eq(within_plane + delayed(m, plane_offset, 2, name="plane_offset")),
        ]
        # Residual: the same walk from another base, part by part. The words of all parts serve all groups in them.
        has_residual = Signal()
        residual_part = Signal.like(part)
        residual_plane_offset = Signal(address_bits)
        residual_part_offset = Signal(address_bits)
        word_held = Signal()
        with m.If(accept):
            m.d.sync += [
                has_residual.eq(offered.residual_parts != 0),
                residual_part.eq(0),
                residual_plane_offset.eq(offered.residual_base),
                residual_part_offset.eq(0),
                word_held.eq(0),
            ]
        with m.Elif(walking):
            m.d.sync += residual_part.eq(residual_part + 1)
            m.d.sync += residual_part_offset.eq(residual_part_offset + current.part_step)
            with m.If(next_part):
                m.d.sync += [residual_part.eq(0), residual_part_offset.eq(0)]
                m.d.sync += word_held.eq(~(next_group & (granule == granules - 1)))
            with m.If(next_pixel):
                m.d.sync += word_held.eq(0)
            with m.If(next_plane):
                m.d.sync += residual_plane_offset.eq(residual_plane_offset + current.plane_step)
        residual_inner = Signal(address_bits, reset_less=True)
        residual_within_plane = Signal(address_bits, reset_less=True)
        m.d.sync += [
            residual_inner.eq(residual_part_offset + block_offset),
            residual_within_plane.eq(residual_inner + outer),
            self.residual.address.eq(
                residual_within_plane + delayed(m, residual_plane_offset, 2, name="residual_plane_offset")
            ),
        ]
        fetch = walking & has_residual & ~word_held
        reserve = delayed(m, fetch, self.residual_reserve_cycles, name="residual_reserve", clear=True)
        m.d.comb += self.residual.reserve.eq(reserve)
        m.d.sync += self.residual.en.eq(reserve)
        residual_words = [
            Signal(config.feature_word_bits, reset_less=True, name=f"residual_word_{number}")
            for number in range(self._part_count)
        ]
        arrives = _RESIDUAL_ADDRESS_CYCLES + self._feature_latency_cycles
        arrived = delayed(m, Cat(fetch, residual_part), arrives, name="residual_arrives", clear=True)
        for number, word in enumerate(residual_words):
            with m.If(arrived == Cat(1, Const(number, len(residual_part)))):
                m.d.sync += word.eq(self.residual.data)
        native = current.residual_encoding == Encoding.NATIVE
        control = Cat(granule, residual_part == 0, residual_part, has_residual, native)
        control = delayed(m, control, arrives + 1, name="residual_control")
        residual_granule, control = control[: len(granule)], control[len(granule) :]
        excess = Cat(has_residual & (current.residual_encoding == Encoding.INT), current.residual_bits)
        excess = delayed(m, excess, arrives, name="residual_excess")
        lowest = Signal(signed(UNIFORM_BITS + 1), reset_less=True)
        lowest_bits = Cat(excess[0] & (excess[1:] <= position + 1) for position in range(len(lowest)))
        if config.level_tables:
            smallest, distances = _codebook(current, "residual_", 1 << code_bits)
            residual_distances = delayed(m, Cat(distances[1:]), arrives + 1, name="residual_distances")
            smallest = Mux(has_residual & native, smallest, 0)
            lowest_bits |= delayed(m, smallest, arrives, name="residual_level0")
        m.d.sync += lowest.eq(lowest_bits)
        granule_bits = config.post_lanes * code_bits
        residual_codes = Array(
            Value.cast(
                Array(word[number * granule_bits :][:granule_bits] for number in range(granules))[residual_granule]
            )
            for word in residual_words
        )[delayed(m, residual_part, arrives + 1, name="residual_word_part")]

        storing = Signal()
        with m.If(accept):
            m.d.sync += storing.eq(offered.valid_rows != 0)
        m.d.comb += [
            self.write.address.eq(delayed(m, address, self.latency_cycles - 3, name="address")),
            self.write.granule.eq(delayed(m, granule, self.latency_cycles, name="granule")),
            Cat(self.write.en, self.done).eq(
                delayed(m, Cat(next_part & storing, finish), self.latency_cycles, name="written", clear=True)
            ),
        ]
        unfinished = Signal(range(self.latency_cycles + 2))
        m.d.sync += unfinished.eq(unfinished + accept - self.done)
        m.d.comb += self.busy.eq(unfinished != 0)

        # Lanes. A raw field is the sum times 1, shifted by its position (and by 1, as half units are).
        encoding = delayed(m, current.encoding, self._operand_cycles, name="encoding")
        relu = delayed(m, current.relu, self._operand_cycles + self._level_cycles, name="relu")
        bits = delayed(m, current.bits, self._operand_cycles + self._level_cycles - 1, name="bits")
        part = delayed(m, part, self._operand_cycles + self._level_cycles, name="part")
        field_shift = delayed(m, field_shift, self._operand_cycles, name="field_shift")
        raw = encoding == Encoding.RAW
        encoding = delayed(m, encoding, self._level_cycles - 1, name="requantized_encoding")
        uniform = Signal(2 * UNIFORM_BITS, reset_less=True)
        native_format = None if config.level_tables else config.activation_format
        m.d.sync += uniform.eq(Cat(uniform_range(native_format, encoding, bits)))
        encoding = delayed(m, encoding, 1, name="encoder_encoding")
        if config.threshold_count:
            # The codebook is the job's, which may be over: levels wait until their results are there.
            arrives = self._operand_cycles + self._requantizer_cycles
            smallest, distances = _codebook(current, "", config.threshold_count + 1)
            levels = Signal(data.ArrayLayout(signed(ANY_LEVEL_BITS), len(distances)), reset_less=True)
            m.d.sync += [level.eq(smallest + distance) for level, distance in zip(levels, distances, strict=True)]
            sums = delayed(m, middles(m, levels).as_value(), arrives - 2, name="codebook_middles")
            levels = delayed(m, levels.as_value(), arrives, name="codebook_levels")
            by_threshold = delayed(m, current.thresholds, arrives, name="by_threshold")
            has_levels = delayed(m, current.codebook, arrives + LevelSelector.latency_cycles, name="has_levels")
        if config.level_tables:
            index_middles = self._index_middles(m, current)
        for lane in range(config.post_lanes):
            requantizer, encoder, residual = self._requantizer(), self._encoder(), self._decoder()
            instantiate(m, platform, f"residual_{lane}", residual)
            instantiate(m, platform, f"requantizer_{lane}", requantizer)
            instantiate(m, platform, f"encoder_{lane}", encoder)
            entry = self.parameter.data[lane]
            half_units, field = requantizer.half_units, requantizer.field
            if config.threshold_count:
                selector = LevelSelector(
                    config.threshold_count, config.accumulator_bits, len(half_units), self._requantizer_cycles
                )
                instantiate(m, platform, f"levels_{lane}", selector)
                thresholds = Cat(entry[f"threshold{j}"] for j in range(config.threshold_count))
                m.d.comb += [
                    selector.accumulator.eq(self.accumulator.data[lane]),
                    selector.thresholds.eq(thresholds),
                    selector.half_units.eq(half_units),
                    selector.middles.eq(sums),
                    selector.by_threshold.eq(by_threshold),
                    selector.levels.eq(levels),
                ]
                waits = LevelSelector.latency_cycles
                plain = delayed(m, half_units, waits, name=f"half_units_{lane}").as_signed()
                field = delayed(m, field, waits, name=f"field_{lane}")
                half_units = Mux(has_levels, selector.level << 1, plain)
            m.d.comb += [
                residual.code.eq(residual_codes.word_select(lane, code_bits)),
                Cat(residual.first, residual.part, residual.enable, residual.native).eq(control),
                residual.lowest.eq(lowest),
                requantizer.residual.eq(
                    delayed(m, residual.level, self._operand_cycles - self._residual_cycles, name=f"residual_{lane}")
                ),
                requantizer.residual_multiplier.eq(entry.residual_multiplier),
                requantizer.accumulator.eq(self.accumulator.data[lane]),
                requantizer.bias.eq(entry.bias),
                requantizer.multiplier.eq(entry.multiplier),
                requantizer.negative_multiplier.eq(entry.negative_multiplier),
                requantizer.unscaled.eq(raw),
                requantizer.shift.eq(Mux(raw, field_shift, entry.shift)),
                encoder.half_units.eq(half_units),
                encoder.field.eq(field),
                encoder.encoding.eq(encoding),
                Cat(encoder.limit, encoder.excess).eq(uniform),
                encoder.relu.eq(relu),
                encoder.part.eq(part),
                self.write.data[lane].eq(encoder.code),
            ]
            if config.level_tables:
                m.d.comb += [
                    residual.distances.eq(Cat(Const(0, CODEBOOK_DISTANCE_BITS), residual_distances)),
                    encoder.middles.eq(index_middles),
                ]
        return m

    def _index_middles(self, m, instruction):
        """Sums of neighbouring levels as encoders want them, for all lanes."""
        smallest, distances = _codebook(instruction, "", 1 << self._config.activation_format.bits)
        wanted = self._encoder().middle_cycles
        arrives = self._operand_cycles + self._level_cycles
        offset = Signal.like(smallest, reset_less=True)
        m.d.sync += offset.eq(smallest)
        result = Signal(data.ArrayLayout(signed(ANY_HALF_UNIT_BITS), len(wanted)))
        for late in sorted(set(wanted)):
            own = [position for position, cycles in enumerate(wanted) if cycles == late]
            sums = Signal(data.ArrayLayout(CODEBOOK_DISTANCE_BITS + 1, len(own)), name=f"sums_{late}", reset_less=True)
            found = Signal(
                data.ArrayLayout(signed(ANY_HALF_UNIT_BITS), len(own)), name=f"found_{late}", reset_less=True
            )
            for position, total, middle in zip(own, sums, found, strict=True):
                m.d.sync += [
                    total.eq(distances[position] + distances[position + 1]),
                    middle.eq(total + (offset << 1)),
                ]
            found = delayed(m, found, arrives + late - 2, name=f"middles_{late}")
            m.d.comb += [result[position].eq(middle) for position, middle in zip(own, found, strict=True)]
        return result
