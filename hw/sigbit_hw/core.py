# amaranth: UnusedElaboratable=no
"""The accelerator without clocks and pins: parser, sequencer, memories, array and post-processor behind AXI ports."""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .array.array import Array
from .array.pool import PoolUnit
from .array.post import PostProcessor
from .bus.axi_lite import AxiLiteRegisters, AxiLiteSignature
from .bus.axi_stream import axi_stream_layout, axi_stream_signature
from .bus.output import OutputFormatter
from .control.level_loader import LevelLoader
from .control.parser import PacketParser
from .control.queue import InstructionQueue
from .control.sequencer import PACKET_NUMBER_BITS, QUEUED_BITS, ComputeTag, PoolTag, Sequencer
from .control.unpacker import WeightUnpacker
from .lib.delay import delayed
from .lib.shared import instantiate
from .lib.stream import StreamRegister
from .memory.reader import multiple
from .memory.word_memory import WordMemory
from .spec.packets import Fault
from .spec.registers import Register

__all__ = ["Accelerator", "Timing"]

#: Cycles from a position of the reader to its activation codes at the array: address, memory (2), padding.
_FEATURE_CYCLES = 2 + WordMemory.read_latency_cycles


def _post_processor(config, array):
    return PostProcessor(
        config,
        start_delay_cycles=_FEATURE_CYCLES + array.latency_cycles,
        accumulator_latency_cycles=array.read_latency_cycles,
        parameter_latency_cycles=WordMemory.read_latency_cycles,
        feature_latency_cycles=WordMemory.read_latency_cycles,
    )


def _level_loader(config):
    return LevelLoader(codes=1 << config.activation_format.bits, latency_cycles=WordMemory.read_latency_cycles)


def _output_formatter(config):
    return OutputFormatter(config, WordMemory.read_latency_cycles)


@dataclass(frozen=True)
class Timing:
    """Cycles that decide how long instructions take.

    Attributes
    ----------
    weight_hold_cycles, weight_lead_cycles, fill_columns : int
        See :class:`~.control.weight_loader.WeightLoader`.
    level_cycles : int
        From a COMPUTE's acceptance by the weight loader to its first word at least.
    post_start_cycles : int
        From a job's acceptance by the post-processor to its first token.
    post_latency_cycles : int
        From a token to its write.
    post_reserve_cycles : int
        From a token to the cycle in which it keeps the reader from feature memory.
    pool_store_cycles : int
        From the last position of a window to the write of its result, for plane 0; then one plane per cycle.
    pool_drain_cycles : int
        From the last position of POOL to its retirement.
    """

    weight_hold_cycles: int
    weight_lead_cycles: int
    fill_columns: int
    level_cycles: int
    post_start_cycles: int
    post_latency_cycles: int
    post_reserve_cycles: int
    pool_store_cycles: int
    pool_drain_cycles: int

    @classmethod
    def of(cls, config):
        """Timing of an :class:`Accelerator`."""
        array = Array(config)
        post = _post_processor(config, array)
        # A word of weights is at the array after its memory, a swap after the activations' longer way.
        longer = _FEATURE_CYCLES - WordMemory.read_latency_cycles
        pool_store_cycles = _FEATURE_CYCLES + PoolUnit.latency_cycles
        lead = array.weight_lead_cycles - longer
        return cls(
            weight_hold_cycles=longer + array.weight_hold_cycles - 1,
            weight_lead_cycles=lead if array.fill_columns else max(1, lead),
            fill_columns=array.fill_columns,
            level_cycles=_level_loader(config).load_cycles if array.fill_columns else 0,
            post_start_cycles=post.start_cycles,
            post_latency_cycles=post.latency_cycles,
            post_reserve_cycles=post.residual_reserve_cycles,
            pool_store_cycles=pool_store_cycles,
            pool_drain_cycles=pool_store_cycles + config.planes + 1,
        )

    @staticmethod
    def output_cycles(config, words):
        """From the acceptance of a job by the output formatter to its retirement, if every beat is taken at once."""
        return _output_formatter(config).packet_cycles(words)


class Accelerator(wiring.Component):
    """One accelerator in the ``sync`` domain.

    Parameters
    ----------
    config : :class:`~sigbit_hw.spec.config.AcceleratorConfig`

    Members
    -------
    s_axis : In(AXI4-Stream)
        Program stream (:mod:`sigbit_hw.spec.packets`).
    m_axis : Out(AXI4-Stream)
        Result packets.
    s_axil : In(AXI4-Lite)
        Registers (:mod:`sigbit_hw.spec.registers`).
    irq : Out(1)
        Level; enabled pending interrupts.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "s_axis": In(axi_stream_signature(config.stream_bits)),
                "m_axis": Out(axi_stream_signature(config.stream_bits)),
                "s_axil": In(AxiLiteSignature()),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        code_bits = config.activation_format.bits

        array = Array(config)
        instantiate(m, platform, "array", array)

        # A soft reset or a fault stops every unit that acts on instructions; memories and array keep their contents.
        m.submodules.registers = registers = AxiLiteRegisters(config)
        clear = registers.soft_reset
        stop = Signal()

        def stoppable(component):
            return ResetInserter(stop)(component)

        # In: stream -> parser -> queue -> sequencer.
        m.submodules.input = stream_in = ResetInserter(clear)(StreamRegister(axi_stream_layout(config.stream_bits)))
        m.submodules.parser = parser = PacketParser(config)
        m.submodules.queue = queue = InstructionQueue(config.instruction_depth, QUEUED_BITS)
        timing = Timing.of(config)
        has_tables = config.cell == "table"
        post_unit = _post_processor(config, array)
        pool_units = [PoolUnit(config) for _ in range(config.planes)]
        m.submodules.sequencer = sequencer = stoppable(
            Sequencer(
                planes=config.planes,
                strip_depth=config.strip_depth,
                weight_hold_cycles=timing.weight_hold_cycles,
                weight_lead_cycles=timing.weight_lead_cycles,
                pool_drain_cycles=timing.pool_drain_cycles,
                fill_columns=timing.fill_columns,
                level_loader=_level_loader(config) if has_tables else None,
                token_lanes=config.token_lanes if config.masked else None,
            )
        )
        m.submodules.post = post = stoppable(post_unit)
        m.submodules.output = output = _output_formatter(config)

        connect(m, flipped(self.s_axis), stream_in.i)
        connect(m, stream_in.o, parser.i)
        connect(m, queue.o, sequencer.instructions)
        connect(m, sequencer.post, post.job)
        m.d.comb += [
            queue.i.valid.eq(parser.instructions.valid),
            queue.i.payload.eq(Cat(parser.instructions.payload, parser.packets)),
            parser.instructions.ready.eq(queue.i.ready),
            queue.commit.eq(parser.commit),
            queue.rollback.eq(parser.rollback),
            queue.flush.eq(stop),
            queue.retire.eq(sequencer.retire + post.done),
            parser.outstanding.eq(queue.outstanding),
            parser.clear.eq(clear),
            sequencer.post_done.eq(post.done),
            sequencer.hold.eq(post.residual.reserve),
        ]

        # Faults of the parser and of the sequencer; the sequencer's is registered, so that stopping is no loop.
        illegal = Signal()
        illegal_packet = Signal(PACKET_NUMBER_BITS)
        m.d.sync += [illegal.eq(sequencer.fault), illegal_packet.eq(sequencer.fault_packet)]
        m.d.comb += [
            parser.halt.eq(illegal),
            stop.eq(clear | parser.fault.valid | illegal),
            output.abort.eq(stop),
            registers.fault.valid.eq(parser.fault.valid | illegal),
            registers.fault.code.eq(Mux(parser.fault.valid, parser.fault.code, Fault.OPCODE)),
            registers.fault.packet.eq(Mux(parser.fault.valid, parser.fault.packet, illegal_packet)),
        ]

        # Weights.
        weight_memory = WordMemory(config.weight_word_bits, config.weight_depth)
        instantiate(m, platform, "weight_memory", weight_memory)
        m.d.comb += [
            weight_memory.read_address.eq(sequencer.weight_address),
            array.weight.valid.eq(
                delayed(m, sequencer.weight_read, WordMemory.read_latency_cycles, name="weight_read", clear=True)
            ),
            array.weight.index.eq(
                delayed(m, sequencer.weight_index, WordMemory.read_latency_cycles, name="weight_index")
            ),
            array.weight.word.eq(weight_memory.read_data),
        ]

        m.d.comb += [
            weight_memory.write_enable.eq(parser.weights.en),
            weight_memory.write_address.eq(parser.weights.address),
            weight_memory.write_data.eq(parser.weights.data),
        ]
        if config.packing == "radix":
            m.submodules.unpacker = unpacker = ResetInserter(clear)(WeightUnpacker(config))
            connect(m, parser.packed, unpacker.i)
            m.d.comb += [
                unpacker.packing.en.eq(parser.packing.en),
                unpacker.packing.data.eq(parser.packing.data),
                parser.packed_count.eq(unpacker.count),
                parser.packed_last_beat.eq(unpacker.last_beat),
                parser.unpacking.eq(unpacker.busy),
            ]
            with m.If(unpacker.write.en):
                m.d.comb += [
                    weight_memory.write_enable.eq(1),
                    weight_memory.write_address.eq(unpacker.write.address),
                    weight_memory.write_data.eq(unpacker.write.data),
                ]

        # Level tables.
        if has_tables:
            level_memory = WordMemory(config.level_word_bits, config.level_depth)
            instantiate(m, platform, "level_memory", level_memory)
            reading = Cat(sequencer.level_read, sequencer.level_bank, sequencer.level_index)
            arriving = delayed(m, reading, WordMemory.read_latency_cycles, name="level_read", clear=True)
            m.d.comb += [
                level_memory.write_enable.eq(parser.levels.en),
                level_memory.write_address.eq(parser.levels.address),
                level_memory.write_data.eq(parser.levels.data),
                level_memory.read_address.eq(sequencer.level_address),
                sequencer.level_entry.eq(level_memory.read_data),
                array.levels.eq(Cat(arriving, level_memory.read_data)),
                array.level_bank.eq(
                    delayed(m, sequencer.level_bank, WordMemory.read_latency_cycles, name="level_bank")
                ),
            ]

        # Parameters.
        parameter_memory = WordMemory(config.parameter_word_bits, config.parameter_depth)
        instantiate(m, platform, "parameter_memory", parameter_memory)
        m.d.comb += [
            parameter_memory.write_enable.eq(parser.parameters.en),
            parameter_memory.write_address.eq(parser.parameters.address),
            parameter_memory.write_data.eq(parser.parameters.data),
            parameter_memory.read_address.eq(post.parameter.address),
            post.parameter.data.eq(parameter_memory.read_data),
        ]

        # Features: each plane reads its own copy, the post-processor's residual the first. Of writes, results of the
        # post-processor come first, then those of pooling, then input.
        granule_bits = config.post_lanes * code_bits
        granules = config.feature_word_bits // granule_bits
        write = Signal(
            data.StructLayout(
                {"enable": granules, "address": range(config.feature_depth), "data": config.feature_word_bits}
            )
        )
        # Results of planes that end together are stored in turn.
        pools = []
        for p, unit in enumerate(pool_units):
            m.submodules[f"pool_{p}"] = pool = stoppable(unit)
            wanted = pool.o.valid & (sequencer.pool_planes | (p == 0))
            address = delayed(m, sequencer.pool.address, timing.pool_store_cycles + p, name=f"pool_address_{p}")
            pools.append(
                (
                    pool.i,
                    delayed(m, wanted, p, name=f"pool_valid_{p}", clear=True),
                    delayed(m, pool.o.codes, p, name=f"pool_codes_{p}"),
                    (address + multiple(sequencer.pool_plane_step, p))[: len(address)],
                )
            )
        m.d.sync += write.enable.eq(0)
        with m.If(post.write.en):
            m.d.sync += [
                write.enable.eq(1 << post.write.granule),
                write.address.eq(post.write.address),
                write.data.eq(post.write.data.as_value().replicate(granules)),
            ]
        for _, valid, codes, address in pools:
            with m.Elif(valid):
                m.d.sync += [write.enable.eq(~0), write.address.eq(address), write.data.eq(codes)]
        with m.Else():
            m.d.comb += parser.features.ready.eq(1)
            m.d.sync += [
                write.enable.eq(parser.features.valid.replicate(granules)),
                write.address.eq(parser.features.payload.address),
                write.data.eq(parser.features.payload.data),
            ]

        compute = data.View(
            ComputeTag(config.strip_depth), delayed(m, sequencer.compute, _FEATURE_CYCLES, name="compute", clear=True)
        )
        pool_tag = data.View(PoolTag(), delayed(m, sequencer.pool, _FEATURE_CYCLES, name="pool", clear=True))
        pad_code = delayed(m, sequencer.pad_code[:code_bits], _FEATURE_CYCLES - 1, name="pad_code")
        if config.masked:
            m.d.comb += [
                array.i.start.eq(compute.start),
                array.i.mask.budget.eq(delayed(m, sequencer.budget, _FEATURE_CYCLES, name="budget")),
                array.i.mask.magnitude_keys.eq(
                    delayed(m, sequencer.magnitude_keys, _FEATURE_CYCLES, name="magnitude_keys")
                ),
                # Padding reads as zero.
                array.i.mask.zero.eq(delayed(m, pad_code, 1, name="zero")),
            ]
        for p in range(config.planes):
            memory = WordMemory(config.feature_word_bits, config.feature_depth, granule_bits)
            instantiate(m, platform, f"feature_memory_{p}", memory)
            inside = delayed(m, sequencer.planes[p].inside, 1, name=f"inside_{p}")
            codes = Signal(config.feature_word_bits, name=f"codes_{p}")
            m.d.comb += [
                memory.write_enable.eq(write.enable),
                memory.write_address.eq(write.address),
                memory.write_data.eq(write.data),
                memory.read_address.eq(sequencer.planes[p].address),
            ]
            m.d.sync += codes.eq(Mux(inside, memory.read_data, pad_code.replicate(config.vector)))
            m.d.comb += Cat(array.i.codes[p * config.vector + lane] for lane in range(config.vector)).eq(codes)
            pool = pools[p][0]
            m.d.comb += [
                pool.codes.eq(codes),
                pool.inside.eq(delayed(m, inside, 1, name=f"pool_inside_{p}")),
                *(getattr(pool, name).eq(pool_tag[name]) for name in ("valid", "first", "last")),
            ]
            if p == 0:
                with m.If(sequencer.output_busy):
                    m.d.comb += memory.read_address.eq(output.read.payload)
                with m.If(post.residual.en):
                    m.d.comb += memory.read_address.eq(post.residual.address)
                m.d.comb += [
                    output.read.ready.eq(~post.residual.en),
                    output.read_data.eq(memory.read_data),
                    post.residual.data.eq(memory.read_data),
                ]
        m.d.comb += [
            *(array.i[name].eq(compute[name]) for name in ("valid", "swap", "clear", "shift", "bank", "address")),
            *(array.read[name].eq(getattr(post.accumulator, name)) for name in ("bank", "plane", "address", "group")),
            post.accumulator.data.eq(array.read_data),
        ]

        # Out.
        connect(m, output.o, flipped(self.m_axis))
        connect(m, flipped(self.s_axil), registers.bus)
        m.d.comb += [
            output.job.valid.eq(sequencer.output.valid),
            *(output.job.payload[name].eq(sequencer.output.payload[name]) for name in ("base", "words", "tag")),
            sequencer.output.ready.eq(output.job.ready),
            sequencer.output_done.eq(output.done),
            self.irq.eq(registers.irq),
        ]

        # Status and counters.
        busy = queue.outstanding != 0
        ending = Signal()
        with m.If(stop | registers.ended):
            m.d.sync += ending.eq(0)
        with m.Elif(parser.ended):
            m.d.sync += ending.eq(1)
        m.d.comb += [
            registers.ended.eq(ending & ~busy & ~output.busy),
            registers.session.eq(parser.session),
            registers.draining.eq(parser.draining),
            registers.busy.eq(busy),
            registers.packets.eq(parser.packets),
        ]
        with m.If(clear):
            m.d.sync += registers.instructions.eq(0)
        with m.Else():
            m.d.sync += registers.instructions.eq(registers.instructions + queue.retire)
        events = {
            Register.CYCLES: busy,
            Register.COMPUTE_CYCLES: sequencer.computing,
            Register.WEIGHT_STALLS: sequencer.weight_stall,
            Register.POST_STALLS: sequencer.post_stall,
            Register.POOL_CYCLES: sequencer.pool_busy,
            Register.OUTPUT_CYCLES: sequencer.output_busy,
            Register.IDLE_CYCLES: parser.session & ~busy,
        }
        if config.masked:
            # A stop also drops the tokens that are on their way.
            m.submodules.tokens_line = ResetInserter(stop)(line := Module())
            cycles = _FEATURE_CYCLES + array.valid_tokens_cycles
            counted = delayed(line, sequencer.computing, cycles, name="computing", clear=True)
            events[Register.VALID_TOKENS] = Mux(counted, array.valid_tokens, 0)
        for register, event in events.items():
            counter = registers.counters[register.name.lower()]
            with m.If(clear | registers.clear_counters):
                m.d.sync += counter.eq(0)
            with m.Else():
                m.d.sync += counter.eq(counter + event)
        return m
