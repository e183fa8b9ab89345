"""Sequencer: what it accepts, in which order, and what it refuses; whole programs run in tests/rtl."""

import itertools
from collections import deque

import pytest
from amaranth.sim import Simulator
from sigbit_hw.control.sequencer import Sequencer
from sigbit_hw.spec.instructions import INSTRUCTION_BITS, INSTRUCTIONS, MIN_TILE_CYCLES, Opcode

POST_CYCLES = 60


def pack(opcode, packet=0, **fields):
    """An instruction as the queue holds it: the packet's number in the top bits."""
    ones = {
        Opcode.COMPUTE: (*(f"count{i}" for i in range(5)), "weight_words"),
        Opcode.POOL: [f"count{i}" for i in range(5)],
        Opcode.POST: ("rows", "pixels", "groups", "parts"),
        Opcode.OUTPUT: ("words",),
    }[opcode]
    word = INSTRUCTIONS[opcode].pack(opcode=opcode, **{**dict.fromkeys(ones, 1), **fields})
    return word | packet << INSTRUCTION_BITS


def simulate(instructions, cycles=400, token_lanes=None):
    """Events ``(cycle, what)``: what the sequencer starts, retires and refuses, with a post-processor of 60 cycles."""
    dut = Sequencer(
        planes=1, strip_depth=32, weight_hold_cycles=4, weight_lead_cycles=1, pool_drain_cycles=6,
        token_lanes=token_lanes,
    )  # fmt: skip
    events = []

    async def bench(ctx):
        queue = deque(instructions)
        post_ends = output_ends = None
        ctx.set(dut.post.ready, 1)
        ctx.set(dut.output.ready, 1)
        for cycle in range(cycles):
            ctx.set(dut.instructions.valid, bool(queue))
            ctx.set(dut.instructions.payload, queue[0] if queue else 0)
            ctx.set(dut.post_done, cycle == post_ends)
            ctx.set(dut.output_done, cycle == output_ends)
            for name, signal, detail in (
                ("start", dut.compute.start, None),
                ("computing", dut.computing, None),
                ("vector", dut.compute.valid, dut.compute.bank),
                ("pool", dut.pool.valid, dut.pool.address),
                ("weight", dut.weight_read, dut.weight_address),
                ("column", dut.weight_read, dut.weight_index),
                ("post", dut.post.valid, dut.post.payload.bank),
                ("output", dut.output.valid, dut.output.payload.tag),
                ("retire", dut.retire, None),
                ("fault", dut.fault, dut.fault_packet),
                ("post stall", dut.post_stall, None),
            ):
                if ctx.get(signal):
                    events.append((cycle, name, None if detail is None else ctx.get(detail)))
            if ctx.get(dut.post.valid):
                post_ends = cycle + POST_CYCLES
            if ctx.get(dut.output.valid):
                output_ends = cycle + 5
            if cycle == post_ends:
                events.append((cycle, "post done", None))
            if queue and ctx.get(dut.instructions.ready):
                queue.popleft()
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return events


def cycles_of(events, name):
    return [cycle for cycle, what, _ in events if what == name]


ILLEGAL = {
    "opcode 0": 0,
    "opcode 5": 5,
    "opcode 15": 15,
    **{f"COMPUTE with {name} 0": pack(Opcode.COMPUTE, **{name: 0}) for name in ("count0", "count4", "weight_words")},
    "POOL with count2 0": pack(Opcode.POOL, count2=0),
    **{f"POST with {name} 0": pack(Opcode.POST, **{name: 0}) for name in ("rows", "pixels", "groups", "parts")},
    "OUTPUT with words 0": pack(Opcode.OUTPUT, words=0),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_instruction_stops_everything_and_names_its_packet(name):
    word = ILLEGAL[name] | 0xABCD1234 << INSTRUCTION_BITS
    events = simulate([pack(Opcode.OUTPUT, tag=1), word, pack(Opcode.OUTPUT, tag=2), pack(Opcode.COMPUTE)])
    assert [what for _, what, _ in events] == ["output", "retire", "fault"]
    assert events[-1][2] == 0xABCD1234


def test_weights_of_the_next_compute_load_while_the_current_one_runs_also_behind_a_post():
    events = simulate(
        [
            pack(Opcode.COMPUTE, weight_base=100, weight_words=4, count4=30, height=1, width=30),
            pack(Opcode.POST),
            pack(Opcode.COMPUTE, weight_base=200, weight_words=4, count4=30, height=1, width=30),
        ]
    )
    vectors = [(cycle, bank) for cycle, what, bank in events if what == "vector"]
    assert [bank for _, bank in vectors] == [0] * 30 + [1] * 30
    weights = [(cycle, address) for cycle, what, address in events if what == "weight"]
    assert [address for _, address in weights] == [100, 101, 102, 103, 200, 201, 202, 203]
    assert [column for _, what, column in events if what == "column"] == [0, 1, 2, 3] * 2
    assert weights[-1][0] < vectors[29][0], "the second tile is loaded before the first one ends"
    # The POST starts when its COMPUTE has ended, and the next COMPUTE does not wait for it.
    (start,) = cycles_of(events, "post")
    assert vectors[29][0] < start <= vectors[29][0] + 2
    assert vectors[30][0] < start + 6
    assert [bank for _, what, bank in events if what == "post"] == [0]
    assert len(cycles_of(events, "post stall")) <= 1, "only until the POST has started"


@pytest.mark.parametrize(
    ("word", "started", "waits"),
    [
        (pack(Opcode.COMPUTE), "vector", False),
        (pack(Opcode.COMPUTE, wait_post=1), "vector", True),
        (pack(Opcode.OUTPUT), "output", False),
        (pack(Opcode.OUTPUT, wait_post=1), "output", True),
        (pack(Opcode.POOL, wait_post=1), "pool", True),
        # Results of both share a port of feature memory.
        (pack(Opcode.POOL), "pool", True),
    ],
    ids=["compute", "compute that waits", "output", "output that waits", "pool that waits", "pool"],
)
def test_only_what_must_wait_for_the_post_processor_does(word, started, waits):
    events = simulate([pack(Opcode.POST), word])
    (done,) = cycles_of(events, "post done")
    assert (cycles_of(events, started)[0] > done) == waits
    assert (len(cycles_of(events, "post stall")) > POST_CYCLES // 2) == waits


def test_a_second_post_waits_for_the_first_and_uses_the_other_bank():
    events = simulate([pack(Opcode.POST), pack(Opcode.POST), pack(Opcode.OUTPUT, wait_post=1)])
    first, second = cycles_of(events, "post")
    assert [bank for _, what, bank in events if what == "post"] == [0, 1]
    assert first + POST_CYCLES < second
    assert cycles_of(events, "output")[0] > cycles_of(events, "post done")[1]


def test_short_tiles_are_spread_so_that_a_sum_is_stored_before_it_is_read():
    events = simulate([pack(Opcode.COMPUTE, count2=5, count4=2, height=1, width=2)])
    starts = cycles_of(events, "vector")[::2]
    assert len(starts) == 5
    assert min(b - a for a, b in itertools.pairwise(starts)) >= MIN_TILE_CYCLES


def test_pool_ends_when_its_last_result_is_stored():
    events = simulate([pack(Opcode.POOL, count4=9), pack(Opcode.OUTPUT)])
    reads, (pool_end, _) = cycles_of(events, "pool"), cycles_of(events, "retire")
    assert len(reads) == 9
    assert pool_end >= reads[-1] + 6
    assert cycles_of(events, "output")[0] > pool_end


@pytest.mark.parametrize("first", [pack(Opcode.POOL, count4=20), pack(Opcode.OUTPUT)], ids=["pool", "output"])
def test_a_post_behind_an_instruction_that_is_not_compute_runs_once(first):
    events = simulate([first, pack(Opcode.POST), pack(Opcode.OUTPUT, wait_post=1)])
    assert len(cycles_of(events, "post")) == 1


def test_kept_weights_are_read_once_per_block():
    events = simulate(
        [pack(Opcode.COMPUTE, weight_base=7, weight_words=4, keep=1, count0=2, count1=2, count2=3, count4=9, width=9)]
    )
    assert len(cycles_of(events, "vector")) == 2 * 2 * 3 * 9
    assert [address for _, what, address in events if what == "weight"] == list(range(7, 15))


@pytest.mark.parametrize("positions", [1, 3])
def test_a_compute_retires_when_its_weights_have_been_read(positions):
    """What it read may be overwritten from then on."""
    words = pack(Opcode.COMPUTE, weight_words=40, count4=positions, height=1, width=positions)
    events = simulate([words, pack(Opcode.COMPUTE, weight_base=100, weight_words=4)])
    reads = [cycle for cycle, what, address in events if what == "weight" and address < 100]
    assert len(reads) == 40
    assert (cycles_of(events, "vector")[0] < reads[-1]) == (positions > 1), "the tile starts early"
    assert cycles_of(events, "retire")[0] >= reads[-1]


def test_pool_results_are_a_step_apart_modulo_the_memory():
    word = pack(Opcode.POOL, output_base=3, output_step=(1 << 20) - 2, count0=2, count1=2, count4=2)
    assert [address for _, what, address in simulate([word]) if what == "pool"] == [
        address for window in range(4) for address in [(3 - 2 * window) % (1 << 20)] * 2
    ]


@pytest.mark.parametrize(("budget", "beats"), [(1, 1), (2, 1), (3, 2), (8, 4), (32, 16)])
def test_a_position_of_masked_cells_takes_as_many_cycles_as_its_budget_has_beats(budget, beats):
    events = simulate([pack(Opcode.COMPUTE, count4=9, clear=1, budget=budget)], token_lanes=2)
    times = {name: [cycle for cycle, what, _ in events if what == name] for name in ("start", "vector", "computing")}
    starts = times["start"]
    assert starts == [starts[0] + beats * position for position in range(9)]
    assert times["vector"] == [start + beats - 1 for start in starts]
    assert times["computing"] == list(range(starts[0], starts[0] + 9 * beats))
    assert [cycle for cycle, what, _ in events if what == "retire"] == [times["vector"][-1]]


def test_a_budget_of_zero_is_a_fault_for_masked_cells_only():
    for token_lanes, faults in ((1, 1), (None, 0)):
        events = simulate([pack(Opcode.COMPUTE, budget=0)], token_lanes=token_lanes)
        assert sum(what == "fault" for _, what, _ in events) == faults
