"""A mapped netlist, simulated cycle by cycle, and how often its nets toggle.

The netlist is that of every other figure (:data:`~.synthesis.SYNTHESIS`): look-up tables, carry chains, flip-flops and
memories of UltraScale+. It is simulated cycle by cycle, with as many as 64 independent streams of data in the bits of
one word. Our definition of what is counted:

* A *net* is one bit that a cell of the netlist drives and that a cell or an output of the circuit reads: outputs of
  look-up tables, of multiplexers, of flip-flops and of memories, sums and carries that leave a carry bit. Clock,
  constants and the circuit's inputs are none. What is inside a cell is not seen: words of a memory, stages of a shift
  register made of a look-up table.
* A net *toggles* if its value at the end of a cycle, when all is settled, is another one than at the end of the cycle
  before. So there is one toggle per net and cycle at most, and glitches do not count.
* All nets weigh the same. Wires, their lengths, their loads and the clock, which are a large part of the power of an
  FPGA, do not occur. It is not power, and nothing here was placed.
"""

import numpy as np

from .synthesis import SynthesisError, mapped_netlist

__all__ = ["STREAMS", "MappedCircuit", "bit_rows", "row_values"]

#: Streams that are simulated at once: bits of a word.
STREAMS = 64

_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MUX, _NOT = "11001010", "01"
#: Distributed memory: bits of a port, its ports, the one with the address of writes.
_MEMORIES = {
    "RAM32M": (2, "ABCD", "D"),
    "RAM64M": (1, "ABCD", "D"),
    "RAM32M16": (2, "ABCDEFGH", "H"),
    "RAM64M8": (1, "ABCDEFGH", "H"),
}
_DUAL_PORTS = {"RAM32X1D": 5, "RAM64X1D": 6}
#: Block memory with one port to read and one to write: address bits, the lowest one's place, width.
_BLOCKS = {"RAMB18E2": (9, 5, 36), "RAMB36E2": (9, 6, 72)}
_SHIFT_REGISTERS = {"SRL16E": 16, "SRLC32E": 32}
#: What has no contents at first.
_EMPTY = {*_MEMORIES, *_DUAL_PORTS, *_BLOCKS, *_SHIFT_REGISTERS}
_CLOCK_PINS = ("C", "CLK", "WCLK")


def bit_rows(values, bits):
    """Fields of a port as rows of bits for :meth:`MappedCircuit.set`.

    Parameters
    ----------
    values : int array, ``(..., fields, streams)``
        Fields from the lowest one on; negative values in two's complement.
    bits : int
        Of a field.

    Returns
    -------
    uint64 array, ``(..., fields * bits)``
        Bit ``s`` of a word is that of stream ``s``.
    """
    values = np.asarray(values, dtype=np.int64)
    streams = np.arange(values.shape[-1], dtype=np.uint64)
    rows = [((values >> bit & 1).astype(np.uint64) << streams).sum(axis=-1, dtype=np.uint64) for bit in range(bits)]
    return np.stack(rows, axis=-1).reshape(*values.shape[:-2], -1)


def row_values(rows, bits, streams, signed=False):
    """The inverse of :func:`bit_rows`: int64 array, ``(..., fields, streams)``."""
    rows = np.asarray(rows, dtype=np.uint64)
    rows = rows.reshape(*rows.shape[:-1], -1, bits, 1)
    found = (rows >> np.arange(streams, dtype=np.uint64) & np.uint64(1)).astype(np.int64)
    values = (found << np.arange(bits)[:, np.newaxis]).sum(axis=-2)
    return values - (values >> bits - 1 << bits) if signed else values


def _choose(table, select):
    """``table[select]`` for every column, with the lowest bit of ``select`` first; ``table`` halves with every bit."""
    for bit in select:
        table = table[0::2] ^ ((table[0::2] ^ table[1::2]) & bit)
    return table[0]


class _Tables:
    """Look-up tables with as many inputs of one level, whose inputs are settled before."""

    def __init__(self, tables):
        truths, inputs, outputs = zip(*tables, strict=True)
        bits = np.array(
            [[_ONES if digit == "1" else 0 for digit in reversed(text)] for text in truths], dtype=np.uint64
        )
        # The lowest input selects between neighbours of a constant table.
        self._low, self._change = bits.T[0::2].copy(), (bits.T[0::2] ^ bits.T[1::2]).copy()
        self._inputs = np.array(inputs).T.copy()
        self._outputs = np.array(outputs)

    def settle(self, values):
        select = values[self._inputs]
        table = self._low ^ (self._change & select[0])
        values[self._outputs] = _choose(table, select[1:])


class _Carries:
    """Carry cells of as many bits of one level."""

    def __init__(self, cells):
        self._carry, self._generate, self._select, self._sums, self._carries = (
            np.array(column).T.copy() for column in zip(*cells, strict=True)
        )

    def settle(self, values):
        select, generate = values[self._select], values[self._generate]
        carries = np.empty((len(select) + 1, select.shape[1]), dtype=np.uint64)
        carries[0] = values[self._carry]
        for bit in range(len(select)):
            carries[bit + 1] = generate[bit] ^ ((generate[bit] ^ carries[bit]) & select[bit])
        values[self._sums] = select ^ carries[:-1]
        values[self._carries] = carries[1:]


class _Words:
    """One-bit memories of look-up tables with as many words: ports that read at one level, all that write."""

    def __init__(self, ports):
        depth = 1 << len(ports[0][0])
        self._reads, self._outputs, self._writes, self._enables, self._data = (
            np.array(column).T.copy() for column in zip(*ports, strict=True)
        )
        self._content = np.zeros((depth, len(ports)), dtype=np.uint64)

    def settle(self, values):
        values[self._outputs] = _choose(self._content, values[self._reads])

    def clock(self, values):
        enables, data = values[self._enables], values[self._data]
        chosen = enables[np.newaxis]
        for bit in values[self._writes[::-1]]:
            chosen = np.stack((chosen & ~bit, chosen & bit), axis=1).reshape(2 * len(chosen), -1)
        self._content ^= (self._content ^ data) & chosen


class _Shifts:
    """Shift registers of look-up tables with as many stages."""

    def __init__(self, ports):
        depth = 1 << len(ports[0][0])
        self._reads, self._outputs, self._enables, self._data = (
            np.array(column).T.copy() for column in zip(*ports, strict=True)
        )
        self._content = np.zeros((depth, len(ports)), dtype=np.uint64)

    def settle(self, values):
        values[self._outputs] = _choose(self._content, values[self._reads])

    def clock(self, values):
        shifted = np.concatenate((values[self._data][np.newaxis], self._content[:-1]))
        self._content ^= (self._content ^ shifted) & values[self._enables]


class _Registers:
    """Flip-flops with synchronous reset to one value."""

    def __init__(self, ports, value):
        self._data, self._enables, self._resets, self._outputs = np.array(ports).T.copy()
        self._value = value

    def clock(self, values):
        old = values[self._outputs]
        new = old ^ ((old ^ values[self._data]) & values[self._enables])
        resets = values[self._resets]
        self._next = new | resets if self._value else new & ~resets

    def store(self, values):
        values[self._outputs] = self._next


class _BlockMemory:
    """One write port with an enable per bit, one read port whose data come some cycles later; old ones, if written."""

    def __init__(self, read, write, bits, latency):
        self._read, self._read_enable = np.array(read[0]), read[1]
        self._write = np.array(write)
        self._data, self._enables, self._outputs = np.array(bits).T.copy()
        self._content = np.zeros((1 << len(write), len(bits)), dtype=np.uint64)
        self._stages = [np.zeros(len(bits), dtype=np.uint64) for _ in range(latency)]

    def clock(self, values):
        found = self._stages[0] & ~values[self._read_enable]
        for address, streams in _addresses(values[self._read]):
            found |= self._content[address] & streams & values[self._read_enable]
        self._stages = [found, *self._stages[:-1]]
        enables = values[self._enables]
        if enables.any():
            for address, streams in _addresses(values[self._write]):
                self._content[address] ^= (self._content[address] ^ values[self._data]) & enables & streams

    def store(self, values):
        values[self._outputs] = self._stages[-1]


def _addresses(rows):
    """Every address of one memory port, and the streams that have it, as bits of a word."""
    if ((rows == 0) | (rows == _ONES)).all():
        return [(int((rows != 0) @ (1 << np.arange(len(rows)))), _ONES)]
    addresses = row_values(rows, len(rows), STREAMS)[0]
    return [
        (address, (np.uint64(1) << np.flatnonzero(addresses == address).astype(np.uint64)).sum(dtype=np.uint64))
        for address in np.unique(addresses)
    ]


class MappedCircuit:
    """A circuit as it is after synthesis, simulated cycle by cycle, with its toggles counted.

    In every cycle: :meth:`set` inputs, :meth:`settle`, :meth:`get` outputs, :meth:`clock`. Registers start with their
    initial values, memories with 0. There is one clock.

    Parameters
    ----------
    module : dict
        Of Yosys' JSON, flat (:func:`~.synthesis.mapped_netlist`).
    streams : int
        How many are counted, at most :data:`STREAMS`.

    Attributes
    ----------
    toggles : int
        Of all nets and streams since :meth:`restart_count`.
    nets : int

    Raises
    ------
    :exc:`~.synthesis.SynthesisError`
        If there is a cell without a model, or a combinational loop.
    """

    @classmethod
    def synthesized(cls, verilog, top, streams=STREAMS, boxes=()):
        """The circuit of Verilog; ``boxes`` are black boxes in it, memories of words."""
        return cls(mapped_netlist(verilog, top, boxes=boxes), streams, boxes)

    def __init__(self, module, streams=STREAMS, boxes=()):
        if not 1 <= streams <= STREAMS:
            raise ValueError(f"streams must be 1 to {STREAMS}, not {streams!r}")
        self.streams = streams
        self._counted = np.uint64((1 << streams) - 1)
        self._rows = {"0": 0, "1": 1, "x": 0, "z": 0}
        self._ports = {name: (port["direction"], self._of(port["bits"])) for name, port in module["ports"].items()}
        self._groups, self._clocked, self._stored = [], [], []
        drivers, used = self._connect(module["cells"].values(), boxes)
        used |= {row for direction, rows in self._ports.values() if direction == "output" for row in rows}
        self._values = np.zeros(max(self._rows.values()) + 1, dtype=np.uint64)
        self._values[1] = _ONES
        self._values[self._high] = _ONES
        self._nets = np.array(sorted(drivers & used - {0, 1}), dtype=np.int64)
        self._last = self._values[self._nets]
        self.nets = len(self._nets)
        self.restart_count()

    def _of(self, bits):
        """Rows of bits; new ones for bits that have not been seen."""
        return [self._rows.setdefault(bit, len(self._rows) - 2) for bit in bits]

    def _connect(self, cells, boxes):
        """Sort all cells into groups; rows that cells drive, rows that they read."""
        logic: list[tuple] = []
        registers: dict[bool, list] = {False: [], True: []}
        blocks: dict[tuple, list] = {}
        drivers, used = set(), set()
        self._high = []
        for cell in cells:
            kind, directions, parameters = cell["type"], cell["port_directions"], cell["parameters"]
            if kind in ("GND", "VCC"):
                continue
            pin = {name: self._of(bits) for name, bits in cell["connections"].items()}
            if kind == "BUFG":
                continue
            if inverted := [name for name, value in parameters.items() if "INVERTED" in name and "1" in str(value)]:
                raise SynthesisError(f"A {kind} has {', '.join(inverted)}, which is not modelled")
            if kind in _EMPTY and any(name.startswith("INIT") and "1" in str(parameters[name]) for name in parameters):
                raise SynthesisError(f"A {kind} is not empty at first, which is not modelled")
            for name, rows in pin.items():
                if directions[name] == "output":
                    drivers.update(rows)
                elif name not in _CLOCK_PINS:
                    used.update(rows)
            if kind.startswith("LUT") or kind == "INV":
                logic += _tables(kind, parameters, pin)
            elif kind.startswith("MUXF"):
                logic.append(_table(_MUX, [pin["I0"][0], pin["I1"][0], pin["S"][0]], pin["O"][0]))
            elif kind in ("CARRY4", "CARRY8"):
                logic.append(_carry(pin))
            elif kind in ("FDRE", "FDSE"):
                value = kind == "FDSE"
                ports = [pin["D"][0], pin["CE"][0], pin["S" if value else "R"][0], pin["Q"][0]]
                registers[value].append(ports)
                if str(parameters.get("INIT", "0"))[-1] == "1":
                    self._high.append(pin["Q"][0])
            elif kind in _SHIFT_REGISTERS:
                depth = _SHIFT_REGISTERS[kind]
                address = pin["A"] if "A" in pin else [pin[f"A{bit}"][0] for bit in range(depth.bit_length() - 1)]
                taps = [(address, pin["Q"][0])] + [([1] * len(address), row) for row in pin.get("Q31", ())]
                for read, row in taps:
                    logic.append((_Shifts, depth, read, [row], (read, row, pin["CE"][0], pin["D"][0])))
            elif kind in _MEMORIES or kind in _DUAL_PORTS:
                logic += _memory(kind, pin)
            elif kind in boxes:
                granule = len(pin["write_data"]) // len(pin["write_enable"])
                enables = [row for row in pin["write_enable"] for _ in range(granule)]
                bits = list(zip(pin["write_data"], enables, pin["read_data"], strict=True))
                blocks[tuple(pin["read_address"]), 1, tuple(pin["write_address"]), 2, kind] = bits
            elif kind in _BLOCKS:
                key, bits = _block(kind, parameters, pin)
                blocks.setdefault(key, []).extend(bits)
            else:
                raise SynthesisError(f"A mapped netlist has {kind}, of which there is no model")
        self._level(logic)
        for (address, enable, write, latency, _), bits in blocks.items():
            memory = _BlockMemory((address, enable), write, bits, latency)
            self._clocked.append(memory)
            self._stored.append(memory)
        for value, ports in registers.items():
            if ports:
                group = _Registers(ports, value)
                self._clocked.append(group)
                self._stored.append(group)
        return drivers, used

    def _level(self, logic):
        """Groups in an order in which inputs are settled first."""
        driver = {row: number for number, (*_, outputs, _) in enumerate(logic) for row in outputs}
        level: dict[int, int] = {}

        for start in range(len(logic)):
            stack = [start]
            while stack:
                number = stack[-1]
                if level.get(number, -1) >= 0:
                    stack.pop()
                    continue
                below = [driver[row] for row in logic[number][2] if row in driver]
                waiting = [other for other in below if level.get(other, -1) < 0]
                if not waiting:
                    level[number] = 1 + max((level[other] for other in below), default=-1)
                    stack.pop()
                elif number in level:
                    raise SynthesisError("A mapped netlist has a combinational loop")
                else:
                    level[number] = -1
                    stack += waiting
        grouped: dict = {}
        for number, (kind, size, *_, ports) in enumerate(logic):
            grouped.setdefault((level[number], kind.__name__, size, kind), []).append(ports)
        for (*_, kind), ports in sorted(grouped.items(), key=lambda entry: entry[0][:3]):
            group = kind(ports)
            self._groups.append(group)
            if kind in (_Words, _Shifts):
                self._clocked.append(group)

    def set(self, name, rows):
        """Give an input its bits, lowest first: uint64 words of a bit per stream (:func:`bit_rows`)."""
        self._values[self._ports[name][1]] = rows

    def get(self, name):
        """Bits of a port, lowest first."""
        return self._values[self._ports[name][1]]

    def settle(self):
        """Let the inputs of this cycle take effect."""
        for group in self._groups:
            group.settle(self._values)

    def clock(self):
        """Count the toggles of the settled cycle, and begin the next one."""
        now = self._values[self._nets]
        self._toggles += np.bitwise_count((now ^ self._last) & self._counted).sum(dtype=np.int64)
        self._last = now
        for group in self._clocked:
            group.clock(self._values)
        for group in self._stored:
            group.store(self._values)

    @property
    def inputs(self):
        """Names of the inputs but the clock."""
        return [name for name, (direction, _) in self._ports.items() if direction == "input"]

    def restart_count(self):
        """Count from the next cycle on: what happened so far was a warm-up."""
        self._toggles = np.int64(0)

    @property
    def toggles(self):
        return int(self._toggles)

    def run(self, inputs, outputs=(), counted=slice(None)):
        """Give inputs for every cycle; the outputs asked for, for every cycle.

        Parameters
        ----------
        inputs : dict of str to uint64 array, ``(cycles, bits)``
        outputs : collection of str
        counted : slice
            Cycles of which the toggles are kept.

        Returns
        -------
        dict of str to uint64 array, ``(cycles, bits)``
        """
        cycles = {len(rows) for rows in inputs.values()}
        if len(cycles) != 1:
            raise ValueError(f"inputs must have as many cycles each, not {sorted(cycles)}")
        found: dict[str, list] = {name: [] for name in outputs}
        start, stop, _ = counted.indices(*cycles)
        for cycle in range(*cycles):
            if cycle == start:
                self.restart_count()
            for name, rows in inputs.items():
                self.set(name, rows[cycle])
            self.settle()
            for name, rows in found.items():
                rows.append(self.get(name))
            self.clock()
            if cycle == stop - 1:
                total = self._toggles
        self._toggles = total
        return {name: np.array(rows) for name, rows in found.items()}


# Parts of the logic: class of their group, what equals in a group, rows that they need, rows that they drive, ports.


def _table(truth, inputs, output):
    return _Tables, len(inputs), inputs, [output], (truth, inputs, output)


def _tables(kind, parameters, pin):
    if kind == "INV":
        return [_table(_NOT, pin["I"], pin["O"][0])]
    if kind == "LUT6_2":
        truth = parameters["INIT"].zfill(64)
        inputs = [pin[f"I{number}"][0] for number in range(6)]
        return [_table(truth, inputs, pin["O6"][0]), _table(truth[32:], inputs[:5], pin["O5"][0])]
    size = int(kind[3:])
    truth = parameters["INIT"].zfill(1 << size)
    return [_table(truth, [pin[f"I{number}"][0] for number in range(size)], pin["O"][0])]


def _carry(pin):
    carry = max(pin["CI"][0], pin.get("CYINIT", [0])[0])  # one of them is 0
    ports = carry, pin["DI"], pin["S"], pin["O"], pin["CO"]
    return _Carries, len(pin["S"]), [carry, *pin["DI"], *pin["S"]], [*pin["O"], *pin["CO"]], ports


def _memory(kind, pin):
    """One-bit memories: address and output of the read port, address, enable and data of the write port."""
    enable = pin["WE"][0]
    if kind in _DUAL_PORTS:
        bits = _DUAL_PORTS[kind]
        write, other = ([pin[f"{name}{bit}"][0] for bit in range(bits)] for name in ("A", "DPRA"))
        ports = [
            (read, pin[output][0], write, enable, pin["D"][0])
            for read, output in ((other, "DPO"), (write, "SPO"))
            if output in pin
        ]
    else:
        width, letters, writer = _MEMORIES[kind]
        ports = [
            (pin[f"ADDR{letter}"], pin[f"DO{letter}"][bit], pin[f"ADDR{writer}"], enable, pin[f"DI{letter}"][bit])
            for letter in letters
            if f"DO{letter}" in pin
            for bit in range(width)
        ]
    return [(_Words, len(port[0]), port[0], [port[1]], port) for port in ports]


def _block(kind, parameters, pin):
    """Ports of block memory, ``(read address, enable, write address, latency, kind)``, and its bits."""
    bits, lowest, width = _BLOCKS[kind]
    widths = [int(parameters[name], 2) for name in ("READ_WIDTH_A", "WRITE_WIDTH_B", "READ_WIDTH_B", "WRITE_WIDTH_A")]
    plain = widths == [width, width, 0, 0] and not any(int(parameters[name], 2) for name in ("DOA_REG", "DOB_REG"))
    resets = [row for name in ("RSTRAMARSTRAM", "RSTRAMB") for row in pin.get(name, [0])]
    if not plain or any(resets) or pin["ENBWREN"] != [1] or parameters["WRITE_MODE_B"] != "READ_FIRST":
        raise SynthesisError(f"A mapped netlist has a {kind} in a mode of which there is no model")
    read, write = (tuple(pin[name][lowest:][:bits]) for name in ("ADDRARDADDR", "ADDRBWRADDR"))
    data = [row for name in ("DINADIN", "DINBDIN", "DINPADINP", "DINPBDINP") for row in pin[name]]
    outputs = [row for name in ("DOUTADOUT", "DOUTBDOUT", "DOUTPADOUTP", "DOUTPBDOUTP") for row in pin[name]]
    # Eight bits per enable, then the parity bit of each.
    enables = [row for row in pin["WEBWE"] for _ in range(8)] + pin["WEBWE"]
    return (read, pin["ENARDEN"][0], write, 1, kind), list(zip(data, enables, outputs, strict=True))
