"""Executes instructions in order; one POST may run beside what follows it."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.layout import post_job_layout, table_layout
from ..memory.reader import FeatureReader, ReaderAddress
from ..spec.instructions import INSTRUCTION_BITS, INSTRUCTIONS, LEVEL, LEVEL_CODES, MIN_TILE_CYCLES, Opcode
from .weight_loader import WeightLoader

__all__ = ["PACKET_NUMBER_BITS", "QUEUED_BITS", "ComputeTag", "PoolTag", "Sequencer"]

#: Bits of the number of the packet that an instruction came in.
PACKET_NUMBER_BITS = 32
#: An instruction in the queue, and above it that number.
QUEUED_BITS = INSTRUCTION_BITS + PACKET_NUMBER_BITS

_LAYOUTS = {opcode: table_layout(table) for opcode, table in INSTRUCTIONS.items()}


class ComputeTag(data.StructLayout):
    """What travels with an activation vector: ``start`` and ``swap`` with its first cycle in the array, ``valid`` with
    its last one, which is the same without masked cells."""

    def __init__(self, strip_depth):
        super().__init__(
            {"start": 1, "valid": 1, "swap": 1, "clear": 1, "shift": 1, "bank": 1, "address": range(strip_depth)}
        )


class PoolTag(data.StructLayout):
    """What travels with a vector to the pooling unit; ``address`` is where the window's result goes."""

    def __init__(self):
        super().__init__({"valid": 1, "first": 1, "last": 1, "address": 20})


class Sequencer(wiring.Component):
    """Take instructions from the queue and drive reader, weight loader, post-processor, pooling and output.

    Weights of the next COMPUTE are loaded while the current one runs; a POST behind a running COMPUTE is taken out of
    the queue early, so that it does not hide the COMPUTE behind it.

    Parameters
    ----------
    planes, strip_depth : int
    weight_hold_cycles, weight_lead_cycles, fill_columns : int
        See :class:`WeightLoader`; ``fill_columns`` is 0 without tables.
    level_loader : :class:`~.level_loader.LevelLoader`, optional
        Of a grid of table cells.
    pool_drain_cycles : int
        Cycles from the last POOL position until its result is stored.
    token_lanes : int, optional
        Of masked cells, in which a position of COMPUTE takes ``ceil(budget / token_lanes)`` cycles.

    Members
    -------
    instructions : In(stream.Signature(QUEUED_BITS))
    planes : Out(ArrayLayout(ReaderAddress, planes))
        One cycle (``inside``: two) after the tags of the same position.
    pad_code : Out(8)
        Native code outside the map; holds while an instruction runs and ``pool_drain_cycles`` longer.
    compute, pool : Out
        Tags of the position that is read.
    computing : Out(1)
        The array takes a position in this cycle.
    budget, magnitude_keys : Out
        Of the running COMPUTE, like ``pad_code``.
    weight_read, weight_address, weight_index : Out
        The word at an address goes to the grid as the ``weight_index``-th of its tile.
    level_read, level_address, level_index, level_bank, level_entry
        With a ``level_loader``: as its own. ``level_bank`` also belongs to the weight word that is read.
    pool_planes, pool_plane_step : Out
        Whether all planes pool, and by how much the addresses of a plane's results are above those of the one before;
        like ``pad_code``.
    post : Out(stream.Signature(post_job_layout()))
    hold : In(1)
        COMPUTE reads no position in this cycle: feature memory is read for the post-processor.
    post_done : In(1)
        Pulse: the running job has stored its last result.
    output : Out(stream.Signature(OUTPUT layout))
    output_done : In(1)
    retire : Out(1)
        Pulse: an instruction other than POST is done.
    fault : Out(1)
        Pulse: illegal instruction; the sequencer stops until reset.
    fault_packet : Out(32)
        What the top 32 bits of that instruction hold: the number of the packet that brought it.
    weight_stall, post_stall, pool_busy, output_busy : Out(1)
        For the performance counters.
    """

    def __init__(
        self,
        *,
        planes,
        strip_depth,
        weight_hold_cycles,
        weight_lead_cycles,
        pool_drain_cycles,
        fill_columns=0,
        level_loader=None,
        token_lanes=None,
    ):
        self._plane_count = planes
        self._strip_depth = strip_depth
        self._weight_hold_cycles = weight_hold_cycles
        self._weight_lead_cycles = weight_lead_cycles
        self._pool_drain_cycles = pool_drain_cycles
        self._fill_columns = fill_columns
        self._level_loader = level_loader
        self._token_lanes = token_lanes
        levels = {
            "level_read": Out(1),
            "level_address": Out(16),
            "level_index": Out(range(LEVEL_CODES)),
            "level_bank": Out(1),
            "level_entry": In(table_layout(LEVEL)),
        }
        super().__init__(
            {
                **(levels if level_loader else {}),
                "instructions": In(stream.Signature(QUEUED_BITS)),
                "planes": Out(data.ArrayLayout(ReaderAddress(), planes)),
                "pad_code": Out(8),
                "compute": Out(ComputeTag(strip_depth)),
                "computing": Out(1),
                "budget": Out(6),
                "magnitude_keys": Out(1),
                "pool": Out(PoolTag()),
                "pool_planes": Out(1),
                "pool_plane_step": Out(20),
                "weight_read": Out(1),
                "weight_address": Out(20),
                "weight_index": Out(12),
                "post": Out(stream.Signature(post_job_layout())),
                "hold": In(1),
                "post_done": In(1),
                "output": Out(stream.Signature(_LAYOUTS[Opcode.OUTPUT])),
                "output_done": In(1),
                "retire": Out(1),
                "fault": Out(1),
                "fault_packet": Out(PACKET_NUMBER_BITS),
                "weight_stall": Out(1),
                "post_stall": Out(1),
                "pool_busy": Out(1),
                "output_busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = FeatureReader(self._plane_count)
        m.submodules.loader = loader = WeightLoader(
            hold_cycles=self._weight_hold_cycles,
            lead_cycles=self._weight_lead_cycles,
            fill_columns=self._fill_columns,
        )

        head_bits = self.instructions.payload[:INSTRUCTION_BITS]
        head = {opcode: data.View(layout, head_bits) for opcode, layout in _LAYOUTS.items()}
        opcode = head[Opcode.COMPUTE].opcode
        valid = self.instructions.valid
        pop = self.instructions.ready

        current_bits = Signal(INSTRUCTION_BITS)
        current = data.View(_LAYOUTS[Opcode.COMPUTE], current_bits)
        bank = Signal()
        m.d.comb += [
            reader.instruction.eq(current),
            self.planes.eq(reader.planes),
            self.pad_code.eq(current.pad_code),
            self.budget.eq(current.budget),
            self.magnitude_keys.eq(current.magnitude_keys),
            self.fault_packet.eq(self.instructions.payload[INSTRUCTION_BITS:]),
            loader.job.payload.base.eq(head[Opcode.COMPUTE].weight_base),
            loader.job.payload.words.eq(head[Opcode.COMPUTE].weight_words),
            loader.job.payload.counts[0].eq(head[Opcode.COMPUTE].count0),
            *(
                loader.job.payload.counts[i].eq(Mux(head[Opcode.COMPUTE].keep, 1, head[Opcode.COMPUTE][f"count{i}"]))
                for i in (1, 2)
            ),
            self.weight_read.eq(loader.read),
            self.weight_address.eq(loader.address),
            self.weight_index.eq(loader.index),
        ]

        if self._level_loader:
            m.submodules.level_loader = levels = self._level_loader
            m.d.comb += [
                levels.start.eq(loader.job.valid & loader.job.ready),
                levels.base.eq(head[Opcode.COMPUTE].level_base),
                levels.entry.eq(self.level_entry),
                loader.allowed.eq(levels.ready),
                loader.fill_steps.eq(levels.steps),
                *(
                    getattr(self, f"level_{name}").eq(getattr(levels, name))
                    for name in ("read", "address", "index", "bank")
                ),
            ]

        # Legality is decided one cycle before use: an instruction is looked at from the second cycle at the head on.
        nonzero = {
            Opcode.COMPUTE: [
                *(f"count{i}" for i in range(5)),
                "weight_words",
                *([] if self._token_lanes is None else ["budget"]),
            ],
            Opcode.POOL: [f"count{i}" for i in range(5)],
            Opcode.POST: ["rows", "pixels", "groups", "parts"],
            Opcode.OUTPUT: ["words"],
        }
        legal = Signal()
        checked = Signal()
        m.d.sync += [checked.eq(valid & ~pop), legal.eq(0)]
        for kind, names in nonzero.items():
            with m.If(opcode == kind):
                m.d.sync += legal.eq(Cat(head[kind][name].any() for name in names).all())
        is_kind = {kind: valid & checked & legal & (opcode == kind) for kind in Opcode}

        # Weights of the instruction at the head, once per instruction.
        head_loaded = Signal()
        m.d.comb += loader.job.valid.eq(is_kind[Opcode.COMPUTE] & ~head_loaded)
        with m.If(pop):
            m.d.sync += head_loaded.eq(0)
        with m.Elif(loader.job.valid & loader.job.ready):
            m.d.sync += head_loaded.eq(1)

        # One POST waits in `post.payload`, one runs.
        post_waiting = Signal()
        post_running = Signal()
        post_active = post_waiting | post_running
        take_post = Signal()
        post_wanted = is_kind[Opcode.POST] & ~post_waiting
        with m.If(take_post):
            m.d.sync += [post_waiting.eq(1), self.post.payload.instruction.eq(head[Opcode.POST])]
        with m.If(self.post_done):
            m.d.sync += post_running.eq(0)
        with m.If(self.post.valid & self.post.ready):
            m.d.sync += [post_waiting.eq(0), post_running.eq(1), bank.eq(~bank)]
        m.d.comb += self.post.payload.bank.eq(bank)

        # Position tags. A position is issued in its first cycle and consumed in its last one.
        interval = Signal(range(MIN_TILE_CYCLES))
        address = Signal(range(self._strip_depth))
        issue, consume = Signal(), Signal()
        begun = C(0, 1)
        m.d.comb += consume.eq(issue)
        if self._token_lanes is not None:
            lane_bits = (self._token_lanes - 1).bit_length()
            beat = Signal(6)
            last_beat = (current.budget - 1)[lane_bits:6]
            begun = beat != 0
            m.d.comb += consume.eq(self.computing & (beat == last_beat))
            with m.If(self.computing):
                m.d.sync += beat.eq(Mux(consume, 0, beat + 1))
        takes_weights = reader.tile_first & (reader.first_of_block | ~current.keep)
        with m.If(interval != 0):
            m.d.sync += interval.eq(interval - 1)
        with m.If(consume):
            m.d.sync += address.eq(Mux(reader.tile_last, 0, address + 1))
        with m.If(issue & reader.tile_first):
            m.d.sync += interval.eq(MIN_TILE_CYCLES - 1)
        m.d.comb += [
            self.computing.eq(issue | begun),
            self.compute.start.eq(issue),
            self.compute.valid.eq(consume),
            self.compute.swap.eq(issue & takes_weights),
            self.compute.clear.eq(reader.first_tile & current.clear),
            self.compute.shift.eq(reader.first_tile & current.shift),
            self.compute.bank.eq(bank),
            self.compute.address.eq(address),
            loader.swap.eq(self.compute.swap),
        ]
        output_address = Signal(20)
        pooling = data.View(_LAYOUTS[Opcode.POOL], current_bits)
        m.d.comb += [
            self.pool_planes.eq(pooling.all_planes),
            self.pool_plane_step.eq(pooling.output_plane_step),
            self.pool.first.eq(reader.tile_first),
            self.pool.last.eq(reader.tile_last),
            self.pool.address.eq(output_address),
        ]
        drain = Signal(range(self._pool_drain_cycles + 1))

        blocked_by_post = Signal()
        # Results of POOL and of POST share a memory port, so POOL always waits.
        must_wait = head[Opcode.COMPUTE].wait_post | (opcode == Opcode.POOL)
        m.d.comb += blocked_by_post.eq(post_waiting | (must_wait & post_active))

        with m.FSM(init="next"):
            with m.State("next"):
                m.d.comb += self.post.valid.eq(post_waiting & ~post_running)
                m.d.comb += [take_post.eq(post_wanted), pop.eq(post_wanted)]
                with m.If(is_kind[Opcode.COMPUTE] | is_kind[Opcode.POOL] | is_kind[Opcode.OUTPUT]):
                    m.d.comb += self.post_stall.eq(blocked_by_post)
                    with m.If(~blocked_by_post & (~is_kind[Opcode.COMPUTE] | head_loaded)):
                        m.d.comb += pop.eq(1)
                        m.d.sync += current_bits.eq(head_bits)
                        m.next = "load"
                        with m.If(is_kind[Opcode.OUTPUT]):
                            m.next = "output"
                with m.If(valid & checked & ~legal):
                    m.d.comb += self.fault.eq(1)
                    m.next = "stopped"
            with m.State("load"):
                m.d.comb += reader.load.eq(1)
                m.d.sync += output_address.eq(pooling.output_base)
                m.next = "compute"
                with m.If(current.opcode == Opcode.POOL):
                    m.next = "pool"
            with m.State("compute"):
                m.d.comb += [take_post.eq(post_wanted), pop.eq(post_wanted)]
                # To retire gives the weight words of the last tile free, so they must have been read.
                unread = loader.reading & (takes_weights | ~loader.ahead)
                spaced = ~reader.tile_first | (interval == 0)
                ready = spaced & (~takes_weights | loader.loaded) & ~(reader.last & unread)
                m.d.comb += issue.eq(~begun & ready & ~self.hold)
                m.d.comb += reader.advance.eq(consume)
                m.d.comb += self.weight_stall.eq(~begun & ~ready)
                m.d.comb += self.post_stall.eq(~begun & ready & self.hold)
                with m.If(consume & reader.last):
                    m.d.comb += self.retire.eq(1)
                    m.next = "next"
            with m.State("pool"):
                m.d.comb += [self.pool_busy.eq(1), self.pool.valid.eq(1), reader.advance.eq(1)]
                m.d.sync += drain.eq(self._pool_drain_cycles)
                with m.If(reader.tile_last):
                    m.d.sync += output_address.eq(output_address + pooling.output_step)
                with m.If(reader.last):
                    m.next = "pool drain"
            with m.State("pool drain"):
                m.d.sync += drain.eq(drain - 1)
                with m.If(drain == 0):
                    m.d.comb += self.retire.eq(1)
                    m.next = "next"
            with m.State("output"):
                m.d.comb += [self.output_busy.eq(1), self.output.valid.eq(1)]
                m.d.comb += self.output.payload.eq(data.View(_LAYOUTS[Opcode.OUTPUT], current_bits))
                with m.If(self.output.ready):
                    m.next = "output wait"
            with m.State("output wait"):
                m.d.comb += self.output_busy.eq(1)
                with m.If(self.output_done):
                    m.d.comb += self.retire.eq(1)
                    m.next = "next"
            with m.State("stopped"):
                pass
        return m
