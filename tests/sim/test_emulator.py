"""The emulator's packets, faults and registers; what programs compute on it is in ``tests/sw/test_compiler.py``."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from sigbit_hw.spec.config import CONTRACT_VERSION, PRESETS
from sigbit_hw.spec.formats import ESB, ESBU, INT
from sigbit_hw.spec.instructions import INSTRUCTIONS, PARAMETER, Encoding, Opcode
from sigbit_hw.spec.packets import HEADER, HEADER_BYTES, MAGIC, Fault, Kind, pack_header
from sigbit_hw.spec.registers import IDENTITY, Control, Interrupt, Register, Status
from sigbit_sim.golden.emulator import SCHEDULES, Emulator, EmulatorError
from sigbit_sim.golden.program import build_packet, pack_codes, unpack_codes, word_bytes

TINY = PRESETS["tiny"]
BEAT = TINY.stream_bits // 8
CONFIGURE = build_packet(TINY, Kind.CONFIGURE, TINY.hash.to_bytes(8, "little"), count=1)
END = build_packet(TINY, Kind.END, count=0)


def features(address, words):
    """INPUT packet of words given as lists of codes."""
    return build_packet(TINY, Kind.INPUT, pack_codes(TINY, words, 4), count=len(words), destination=address)


def instructions(*packed, kind=Kind.RUN):
    payload = b"".join(word.to_bytes(64, "little") for word in packed)
    return build_packet(TINY, kind, payload, count=len(packed), fence=0xFFFF)


def output(base, words, tag=0):
    fields = {"opcode": Opcode.OUTPUT, "wait_post": 1, "base": base, "words": words, "tag": tag}
    return instructions(INSTRUCTIONS[Opcode.OUTPUT].pack(**fields), kind=Kind.OUTPUT)


def header(**fields):
    """A packet with a correct checksum and any header."""
    fields = {"kind": Kind.INPUT, "count": 0, **fields}
    payload = bytes(fields["count"] * 8) if fields["count"] < 100 else b""
    data = pack_header(**fields).to_bytes(HEADER_BYTES, "little") + payload
    return data + zlib.crc32(data).to_bytes(BEAT, "little")


def flipped(packet, position, bit=0):
    return packet[:position] + bytes([packet[position] ^ 1 << bit]) + packet[position + 1 :]


def read_words(emulator, base, words):
    """Feature words through an OUTPUT packet."""
    emulator.send(output(base, words))
    packet = emulator.receive()
    return unpack_codes(TINY, packet[HEADER_BYTES:-BEAT], 8, 4)


WORDS = np.arange(24).reshape(3, 8) % 16
ILLEGAL = INSTRUCTIONS[Opcode.COMPUTE].pack(
    opcode=Opcode.COMPUTE, count0=1, count1=1, count2=1, count3=1, weight_words=1
)

#: Transfers ``(bytes, TLAST)`` after CONFIGURE, the code, and the number of the packet it is reported for.
FAULTS = {
    "wrong magic": ([(header(magic=MAGIC + 1), True)], Fault.MAGIC, 1),
    "wrong version": ([(header(version=CONTRACT_VERSION + 1), True)], Fault.VERSION, 1),
    "kind 0": ([(header(kind=0), True)], Fault.KIND, 1),
    "kind 8": ([(header(kind=8), True)], Fault.KIND, 1),
    "configure with two beats": ([(header(kind=Kind.CONFIGURE, count=2), True)], Fault.LENGTH, 1),
    "end with payload": ([(header(kind=Kind.END, count=1), True)], Fault.LENGTH, 1),
    "run without instructions": ([(header(kind=Kind.RUN), True)], Fault.LENGTH, 1),
    "run longer than the queue": ([(instructions(*[ILLEGAL] * 17), True)], Fault.LENGTH, 1),
    "run with a destination": ([(header(kind=Kind.RUN, count=1, destination=1), True)], Fault.BOUNDS, 1),
    "end with a destination": ([(header(kind=Kind.END, destination=1), True)], Fault.BOUNDS, 1),
    "input past the end": ([(features(0, WORDS), True), (features(2046, WORDS), True)], Fault.BOUNDS, 2),
    "weights past the end": ([(header(kind=Kind.WEIGHTS, count=1, destination=2048), True)], Fault.BOUNDS, 1),
    "parameters past the end": ([(header(kind=Kind.PARAMETERS, count=65), True)], Fault.BOUNDS, 1),
    "header without its check": ([(header(check=0), True)], Fault.CRC, 1),
    "payload bit flipped": ([(flipped(features(0, WORDS), 20), True)], Fault.CRC, 1),
    "checksum bit flipped": ([(flipped(features(0, WORDS), -8), True)], Fault.CRC, 1),
    "checksum padding not zero": ([(flipped(features(0, WORDS), -1), True)], Fault.CRC, 1),
    "truncated header": ([(features(0, WORDS)[:8], True)], Fault.FRAMING, 1),
    "truncated after the header": ([(features(0, WORDS)[:16], True)], Fault.FRAMING, 1),
    "truncated payload": ([(features(0, WORDS)[:-16], True)], Fault.FRAMING, 1),
    "missing checksum": ([(features(0, WORDS)[:-8], True)], Fault.FRAMING, 1),
    "partial last beat": ([(features(0, WORDS)[:-1], True)], Fault.FRAMING, 1),
    "end after a packet without TLAST": ([(features(0, WORDS), False), (END, True)], Fault.FRAMING, 2),
    "end without TLAST": ([(END, False), (bytes(8), True)], Fault.FRAMING, 1),
    "wrong hash": ([(build_packet(TINY, Kind.CONFIGURE, bytes(8), count=1), True)], Fault.HASH, 1),
    "unknown instruction": ([(features(0, WORDS), True), (instructions(5), True)], Fault.OPCODE, 2),
    "count of zero": ([(instructions(ILLEGAL), True)], Fault.OPCODE, 1),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_fault_is_reported_and_drained_until_end(name, schedule):
    transfers, code, number = FAULTS[name]
    emulator = Emulator(TINY, schedule)
    emulator.write(Register.IRQ_ENABLE, Interrupt.FAULT)
    emulator.send(CONFIGURE)
    assert not emulator.interrupt
    for data, last in transfers:
        emulator.send(data, last)
    assert emulator.read(Register.FAULT) == code
    assert emulator.read(Register.FAULT_PACKET) == number
    assert emulator.read(Register.STATUS) == Status.SESSION | Status.FAULT | Status.DRAINING
    assert emulator.interrupt
    # Nothing takes effect and nothing new is reported until END.
    emulator.send(features(0, np.full((3, 8), 15)))
    emulator.send(output(0, 3))
    emulator.send(CONFIGURE)
    assert emulator.receive() is None
    assert emulator.read(Register.FAULT_PACKET) == number
    emulator.send(flipped(END, 16))
    assert emulator.read(Register.STATUS) & Status.DRAINING
    emulator.send(END)
    assert emulator.read(Register.STATUS) == Status.FAULT
    assert emulator.read(Register.IRQ_PENDING) == Interrupt.FAULT
    emulator.write(Register.CONTROL, Control.SOFT_RESET)
    assert emulator.read(Register.FAULT) == Fault.NONE
    emulator.send(CONFIGURE)
    emulator.send(features(7, WORDS))
    np.testing.assert_array_equal(read_words(emulator, 7, 3), WORDS)


def test_legal_packets_give_no_fault():
    """What the table of faults starts from, and the largest addresses."""
    emulator = Emulator(TINY)
    for packet in (CONFIGURE, features(0, WORDS), header(), header(kind=Kind.WEIGHTS, count=1, destination=2047), END):
        emulator.send(packet)
    assert emulator.read(Register.FAULT) == Fault.NONE
    assert emulator.read(Register.PACKETS) == 5
    assert emulator.read(Register.IRQ_PENDING) == Interrupt.END


#: Kinds that an accelerator of logic cells without packed weights does not know.
UNKNOWN = (Kind.LEVELS, Kind.PACKING, Kind.PACKED)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_kind_that_the_accelerator_is_not_built_for_is_a_kind_fault(kind):
    for before in ((), (CONFIGURE,)):
        emulator = Emulator(TINY)
        for packet in (*before, header(kind=kind)):
            emulator.send(packet)
        assert emulator.read(Register.FAULT) == Fault.KIND


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.CONFIGURE, *UNKNOWN)])
def test_a_packet_before_configure_is_a_state_fault(kind):
    emulator = Emulator(TINY)
    emulator.send(header(kind=kind))
    assert emulator.read(Register.FAULT) == Fault.STATE
    assert emulator.read(Register.FAULT_PACKET) == 0
    assert emulator.read(Register.STATUS) == Status.FAULT | Status.DRAINING


def test_a_packet_after_end_is_a_state_fault():
    emulator = Emulator(TINY)
    for packet in (CONFIGURE, END, features(0, WORDS)):
        emulator.send(packet)
    assert emulator.read(Register.FAULT) == Fault.STATE


def test_the_first_fault_stays_until_a_soft_reset():
    emulator = Emulator(TINY)
    for packet in (CONFIGURE, header(kind=9), END, CONFIGURE, header(magic=0)):
        emulator.send(packet)
    assert emulator.read(Register.FAULT) == Fault.KIND
    emulator.write(Register.IRQ_PENDING, Interrupt.FAULT)
    assert emulator.read(Register.FAULT) == Fault.KIND
    assert emulator.read(Register.IRQ_PENDING) == 0


def test_a_faulty_packet_leaves_memories_and_queue_alone():
    emulator = Emulator(TINY, "late")
    broken = flipped(build_packet(TINY, Kind.INPUT, pack_codes(TINY, 15 - WORDS, 4), count=3, fence=0xFFFF), 30)
    for packet in (CONFIGURE, features(0, WORDS), output(0, 3), broken):
        emulator.send(packet)
    assert emulator.receive() is None  # the queued OUTPUT was stopped
    emulator.write(Register.CONTROL, Control.SOFT_RESET)
    emulator.send(CONFIGURE)
    np.testing.assert_array_equal(read_words(emulator, 0, 3), WORDS)


def test_packets_may_be_joined_and_split_at_any_byte():
    whole = CONFIGURE + features(4, WORDS) + output(4, 3, tag=9)
    for step in (8, 24, 40, len(whole)):
        emulator = Emulator(TINY)
        for start in range(0, len(whole), step):
            emulator.send(whole[start : start + step], last=start + step >= len(whole))
        packet = emulator.receive()
        fields = HEADER.unpack(int.from_bytes(packet[:HEADER_BYTES], "little"))
        expected = {
            "magic": MAGIC,
            "version": CONTRACT_VERSION,
            "kind": Kind.OUTPUT,
            "count": 3,
            "destination": 9,
            "fence": 0,
            "check": 0xFFFF ^ MAGIC ^ (CONTRACT_VERSION | Kind.OUTPUT << 8) ^ 3 ^ 9,
        }
        assert fields == expected
        assert zlib.crc32(packet[:-BEAT]) == int.from_bytes(packet[-BEAT:], "little")
        np.testing.assert_array_equal(unpack_codes(TINY, packet[HEADER_BYTES:-BEAT], 8, 4), WORDS)


def test_identity_registers():
    emulator = Emulator(TINY)
    assert emulator.read(Register.IDENTITY) == IDENTITY
    assert emulator.read(Register.VERSION) == CONTRACT_VERSION
    assert emulator.read(Register.HASH_HIGH) << 32 | emulator.read(Register.HASH_LOW) == TINY.hash
    assert emulator.read(0xFC) == 0
    emulator.write(Register.IDENTITY, 5)
    emulator.write(Register.IRQ_ENABLE, 0xFF)
    assert emulator.read(Register.IDENTITY) == IDENTITY
    assert emulator.read(Register.IRQ_ENABLE) == 3


def test_counters_count_and_clear():
    emulator = Emulator(TINY)
    emulator.send(CONFIGURE)
    read_words(emulator, 0, 3)
    assert emulator.read(Register.OUTPUT_CYCLES) == 2 + 3 + 1
    assert emulator.read(Register.INSTRUCTIONS) == 1
    emulator.write(Register.CONTROL, Control.CLEAR_COUNTERS)
    assert emulator.read(Register.OUTPUT_CYCLES) == 0
    assert emulator.read(Register.INSTRUCTIONS) == 1


def test_a_fence_holds_the_payload_until_instructions_are_done():
    for fence, expected in ((0xFFFF, 15 - WORDS), (1, 15 - WORDS), (0, WORDS)):
        emulator = Emulator(TINY, "late")
        late = build_packet(TINY, Kind.INPUT, pack_codes(TINY, 15 - WORDS, 4), count=3, fence=fence)
        for packet in (CONFIGURE, features(0, WORDS), output(0, 3), late):
            emulator.send(packet)
        packet = emulator.receive()
        np.testing.assert_array_equal(unpack_codes(TINY, packet[HEADER_BYTES:-BEAT], 8, 4), expected)


def test_maximum_skips_padding_and_is_zero_without_any_position():
    """Three windows of 1x2: left of the map, on it, right of it."""
    config = replace(TINY, activation_format=ESB(4, 2))
    emulator = Emulator(config)
    codes = np.zeros((2, 8), dtype=int)
    codes[:, 0] = [0b1011, 0b1001]  # -3, -1
    codes[:, 1] = [0b1000, 0b1111]  # negative zero, -7
    codes[:, 2] = [0b1000, 0b0000]  # negative zero is less than zero
    pool = INSTRUCTIONS[Opcode.POOL].pack(
        opcode=Opcode.POOL, base=(1 << 20) - 2, x0=-2, height=1, width=2, output_base=10, output_step=1,
        count0=1, count1=1, count2=3, count3=1, count4=2, step2=2, xstep2=2, step4=1, xstep4=1,
    )  # fmt: skip
    payload = pack_codes(config, codes, 4)
    for packet in (
        build_packet(config, Kind.CONFIGURE, config.hash.to_bytes(8, "little"), count=1),
        build_packet(config, Kind.INPUT, payload, count=2),
        instructions(pool),
        output(10, 3),
    ):
        emulator.send(packet)
    words = unpack_codes(config, emulator.receive()[HEADER_BYTES:-BEAT], 8, 4)
    assert words[:, :3].tolist() == [[0, 0, 0], [0b1001, 0b1000, 0], [0, 0, 0]]


@pytest.mark.parametrize("activations", [ESB(4, 2), ESBU(4, 2), INT(4)], ids=str)
def test_windows_of_one_pixel_repeat_every_code_at_every_second_word(activations):
    config = replace(TINY, activation_format=activations)
    codes = np.arange(16).reshape(2, 8)
    pool = INSTRUCTIONS[Opcode.POOL].pack(
        opcode=Opcode.POOL, height=1, width=1, output_base=11, output_step=(1 << 20) - 2,
        count0=2, count1=2, count2=1, count3=1, count4=1, step0=1,
    )  # fmt: skip
    emulator = Emulator(config)
    for packet in (
        build_packet(config, Kind.CONFIGURE, config.hash.to_bytes(8, "little"), count=1),
        build_packet(config, Kind.INPUT, pack_codes(config, codes, 4), count=2),
        instructions(pool),
        output(4, 8),
    ):
        emulator.send(packet)
    words = unpack_codes(config, emulator.receive()[HEADER_BYTES:-BEAT], 8, 4)
    assert words[1::2].tolist() == codes[[1, 1, 0, 0]].tolist()
    assert not words[::2].any()


def test_one_tile_by_hand():
    """Two columns, XOR negation with a negative zero, bias, multiplier and shift: numbers checked on paper."""
    emulator = Emulator(TINY)
    # The first word is that of column 0. Codes are sign and magnitude; 0b1000 is a negative zero.
    column1 = [0b0011, 0b1010, 0b1000, 0, 0, 0, 0, 0]  # 3, -2, -0
    column0 = [0b1001, 0b0111, 0, 0, 0, 0, 0, 0]  # -1, 7
    pixel = [4, 15, 9, 0, 0, 0, 0, 0]  # 4, 28, 10
    entries = [
        PARAMETER.pack(bias=1, multiplier=32768, shift=19),  # column 0: one sign bit, / 16
        PARAMETER.pack(bias=52, multiplier=65535, shift=16),  # column 1: two sign bits, + 50
        PARAMETER.pack(),
        PARAMETER.pack(),
    ]
    parameters = b"".join(entry.to_bytes(12, "little") for entry in entries)
    counts = {f"count{i}": 1 for i in range(5)}
    compute = INSTRUCTIONS[Opcode.COMPUTE].pack(
        opcode=Opcode.COMPUTE, base=5, height=1, width=1, weight_base=3, weight_words=2, clear=1, **counts
    )

    def post(base, encoding, parts):
        return INSTRUCTIONS[Opcode.POST].pack(
            opcode=Opcode.POST, base=base, rows=1, pixels=1, valid_rows=1, first_group=1, groups=1, parts=parts,
            part_step=1, encoding=encoding,
        )  # fmt: skip

    for packet in (
        CONFIGURE,
        features(5, [pixel]),
        build_packet(TINY, Kind.WEIGHTS, pack_codes(TINY, [column0, column1], 4), count=2, destination=3),
        build_packet(TINY, Kind.PARAMETERS, parameters, count=1),
        instructions(compute, post(20, Encoding.NATIVE, 1), compute, post(21, Encoding.RAW, 8)),
    ):
        emulator.send(packet)
    # Column 0: -4 + 196 = 192 -> 12, code 10. Column 1: 12 - 56 = -44, + 50 = 6 -> 6, code 6.
    words = read_words(emulator, 20, 9)
    assert words[0].tolist() == [0, 0, 0, 0, 10, 6, 0, 0]
    raw = (words[1:, 4:6].astype(np.int64) << (4 * np.arange(8))[:, np.newaxis]).sum(axis=0)
    assert raw.tolist() == [192, 6]
    assert emulator.read(Register.COMPUTE_CYCLES) == 2
    assert emulator.read(Register.INSTRUCTIONS) == 5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_residual_by_hand(schedule):
    """Two pixels with residuals in every stored form: numbers checked on paper."""
    emulator = Emulator(TINY, schedule)
    column = [0b0101, 0, 0, 0, 0, 0, 0, 0]  # 5
    entries = [
        PARAMETER.pack(bias=-2, multiplier=3, shift=7, residual_multiplier=20),
        PARAMETER.pack(bias=9, multiplier=1, shift=0, residual_multiplier=2**24 - 1),  # no weights
        PARAMETER.pack(),
        PARAMETER.pack(),
    ]
    parameters = b"".join(entry.to_bytes(12, "little") for entry in entries)
    counts = {f"count{i}": 1 for i in range(4)}
    compute = INSTRUCTIONS[Opcode.COMPUTE].pack(
        opcode=Opcode.COMPUTE, base=5, height=1, width=2, weight_words=2, clear=1, **counts, count4=2, step4=1, xstep4=1
    )

    def post(base, residual, residual_encoding, residual_parts, encoding=Encoding.NATIVE, parts=1, bits=8):
        return INSTRUCTIONS[Opcode.POST].pack(
            opcode=Opcode.POST, base=base, rows=1, pixels=2, valid_rows=1, first_group=1, groups=1, parts=parts,
            part_step=4, encoding=encoding, residual_base=residual, residual_encoding=residual_encoding,
            residual_parts=residual_parts, bits=bits, residual_bits=bits,
        )  # fmt: skip

    # Residuals of channels 4 and 5 (group 1): native at 100; digits of three bits at 104, 108 and 112 and one word on.
    words = np.full((16, 8), 15)
    words[0, 4:6], words[1, 4:6] = [0b1001, 0], [1, 2]  # 10, 0; 1, 2
    for first, value in ((4, 0o310), (5, 0o176)):  # 200 and 126: 72 and -2 in excess 128
        words[first : first + 9 : 4, 4] = [value & 7, value >> 3 & 7, value >> 6]
        words[first : first + 9 : 4, 5] = 0
    for packet in (
        CONFIGURE,
        features(5, [[4] + [0] * 7, [15] + [0] * 7]),  # 4, 28
        features(100, words),
        build_packet(TINY, Kind.WEIGHTS, pack_codes(TINY, [column, [0] * 8], 4), count=2),
        build_packet(TINY, Kind.PARAMETERS, parameters, count=1),
        instructions(
            *(compute, post(20, 100, Encoding.NATIVE, 1)),
            *(compute, post(22, 104, Encoding.UINT, 3)),
            *(compute, post(24, 104, Encoding.INT, 3)),
            *(compute, post(40, 104, Encoding.INT, 3, Encoding.INT, 3)),
            *(compute, post(52, 104, Encoding.INT, 2, Encoding.INT, 2, 6)),
        ),
    ):
        emulator.send(packet)
    codes = read_words(emulator, 20, 6)[:, 4:6].tolist()
    # Channel 4: (acc - 2) * 3 is 54 and 414; native: + 200 and + 20, / 128 = 1.98 and 3.39. Channel 5: 9 -> 10, code 9.
    assert codes[0:2] == [[2, 9], [3, 15]]
    # UINT of 8 bits: + 4000 and + 2520, / 128 = 31.7 -> 28 and 22.9 -> 24.
    assert codes[2:4] == [[15, 9], [14, 9]]
    # INT of 8 bits: + 1440 and - 40, / 128 = 11.7 -> 12 and 2.9. Channel 5 gets -128 * M1.
    assert codes[4:6] == [[10, 0], [3, 0]]
    digits = read_words(emulator, 40, 10)[:, 4:6]
    levels = [(digits[i] + 8 * digits[i + 4] + 64 * digits[i + 8] - 128.0).tolist() for i in range(2)]
    assert levels == [[12, -127], [3, -127]]
    # INT of 6 bits, two digits: 0o10 and 0o76 in excess 32 are -24 and 30; (54 - 480) / 128 = -3.3, (414 + 600) / 128 =
    # 7.9. Channel 5 gets -32 * M1.
    digits = read_words(emulator, 52, 6)[:, 4:6]
    levels = [(digits[i] + 8 * digits[i + 4] - 32.0).tolist() for i in range(2)]
    assert levels == [[-3, -31], [8, -31]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": Encoding.RAW, "residual_parts": 1}, "adds NATIVE values to RAW ones"),
        ({"residual_encoding": Encoding.RAW, "residual_parts": 1}, "adds RAW values to NATIVE ones"),
        ({"residual_parts": 2}, "adds 2 parts of NATIVE; there are 1"),
        (
            {"residual_parts": 2, "residual_encoding": Encoding.UINT, "residual_bits": 8},
            "adds 2 parts of uint:8; there are 3",
        ),
        ({"residual_parts": 1, "residual_encoding": Encoding.INT, "residual_bits": 9}, "INT values of 9 bits"),
        ({"encoding": Encoding.UINT, "bits": 1}, "UINT values of 1 bits"),
        ({"residual_parts": 1, "residual_base": 10}, "adds values that it writes"),
        ({"residual_parts": 1, "residual_base": 2048}, "feature words 2048 to 2048"),
    ],
)
def test_a_residual_that_the_contract_leaves_open_is_an_error(fields, words):
    post = {"opcode": 2, "base": 10, "rows": 1, "pixels": 1, "groups": 1, "valid_rows": 1, "parts": 1, "part_step": 1}
    emulator = Emulator(TINY)
    emulator.send(CONFIGURE)
    with pytest.raises(EmulatorError, match=words):
        emulator.send(instructions(INSTRUCTIONS[Opcode.POST].pack(**{**post, "residual_base": 20, **fields})))


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (
            INSTRUCTIONS[Opcode.OUTPUT].pack(opcode=4, base=2047, words=2),
            "feature words 2047 to 2048; the memory has 2048",
        ),
        (
            INSTRUCTIONS[Opcode.COMPUTE].pack(
                opcode=1, height=1, width=9, weight_words=1, weight_base=2048, **{f"count{i}": 1 for i in range(5)}
            ),
            "weight words 2048",
        ),
        (
            INSTRUCTIONS[Opcode.COMPUTE].pack(
                opcode=1, height=9, width=9, weight_words=1, count0=1, count1=1, count2=1, count3=3, count4=11
            ),
            "33 positions exceeds strip_depth 32",
        ),
        (
            INSTRUCTIONS[Opcode.POST].pack(opcode=2, rows=1, pixels=1, groups=3, parts=1, valid_rows=1),
            "12 columns; the accumulators have 32 of 8",
        ),
        (
            INSTRUCTIONS[Opcode.POST].pack(
                opcode=2, rows=1, pixels=1, groups=1, parts=1, valid_rows=1, parameter_base=64
            ),
            "parameter words 64",
        ),
        (
            INSTRUCTIONS[Opcode.POOL].pack(
                opcode=3,
                height=9,
                width=9,
                output_base=2047,
                output_step=1,
                count0=1,
                count1=1,
                count2=2,
                count3=1,
                count4=1,
            ),
            "feature words 2047",
        ),
    ],
)
def test_what_the_contract_leaves_open_is_an_error(packed, words):
    emulator = Emulator(TINY)
    emulator.send(CONFIGURE)
    with pytest.raises(EmulatorError, match=words):
        emulator.send(instructions(packed))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(EmulatorError, match="eager, late"):
        Emulator(TINY, "random")


def test_words_of_codes_round_trip_in_whole_beats():
    rng = np.random.default_rng(0)
    for format, lanes, stream_bits in (
        (ESBU(4, 2), 8, 64),
        (ESB(5, 2), 24, 128),
        (INT(8), 24, 256),
        (ESB(3, 0), 3, 512),
    ):
        config = replace(TINY, stream_bits=stream_bits)
        codes = rng.integers(0, 1 << format.bits, (5, lanes))
        payload = pack_codes(config, codes, format.bits)
        assert len(payload) == 5 * word_bytes(config, lanes * format.bits)
        assert len(payload) % (stream_bits // 8) == 0
        np.testing.assert_array_equal(unpack_codes(config, payload, lanes, format.bits), codes)
        first = int.from_bytes(payload[: len(payload) // 5], "little")
        assert first == sum(int(code) << format.bits * lane for lane, code in enumerate(codes[0]))
