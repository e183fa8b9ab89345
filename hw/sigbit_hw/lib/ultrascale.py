"""Circuits that take fewer look-up tables with primitives of UltraScale+ than synthesis finds by itself.

Every function has a neutral form, which is its definition, and one of primitives, which a platform whose ``family`` is
``"ultrascale+"`` chooses. Both have the same values and latency.
"""

from typing import NamedTuple

from amaranth import *
from amaranth.lib.memory import Memory

__all__ = [
    "TABLE_ADDRESS_BITS",
    "ULTRASCALE",
    "Addend",
    "Function",
    "add_three",
    "count_step",
    "function_luts",
    "functions",
    "tables",
]

#: Value of a platform's ``family``.
ULTRASCALE = "ultrascale+"
#: Inputs of a look-up table, and what two functions in one may have together.
_LUT_INPUTS, _PAIR_INPUTS = 6, 5
#: Functions of so few inputs are left to synthesis: a conjunction can be the reset of a register.
_FREE_INPUTS = 2
#: Bits of one CARRY8.
_CARRY_BITS = 8
#: Read ports of a RAM32M16 and of a RAM32M, two bits each, the port whose address writes.
_RAM_PORTS, _RAM_WRITE_PORT = "ABCDEFG", "H"
_SMALL_RAM_PORTS, _SMALL_RAM_WRITE_PORT = "ABC", "D"
#: Bits of an address of :func:`tables`.
TABLE_ADDRESS_BITS = 5


def _primitives(platform):
    return getattr(platform, "family", None) == ULTRASCALE


def _truth(function, inputs):
    """INIT of a look-up table: ``function`` of the input bits, first input lowest."""
    return sum(function(*(index >> bit & 1 for bit in range(inputs))) << index for index in range(1 << inputs))


class Function(NamedTuple):
    """A truth table: ``truth[index]`` for the index that the input bits at ``inputs`` of a word make, first lowest."""

    truth: tuple
    inputs: tuple


def _paired(tables):
    """Indices of functions, two by two, that share a look-up table."""
    left = [index for index, table in enumerate(tables) if _FREE_INPUTS < len(table.inputs) <= _PAIR_INPUTS]
    pairs = []
    while left:
        one = left.pop(0)
        for other in left:
            if len({*tables[one].inputs, *tables[other].inputs}) <= _PAIR_INPUTS:
                left.remove(other)
                pairs.append((one, other))
                break
    return pairs


def function_luts(tables):
    """Look-up tables of :func:`functions`; none for functions of two inputs, which are taken to be conjunctions."""
    single = sum(1 << max(0, len(table.inputs) - _LUT_INPUTS) for table in tables if len(table.inputs) > _FREE_INPUTS)
    return single - len(_paired(tables))


def functions(m, platform, tables, word, name):
    """Values of some :class:`Function` of the bits of a word, without a register.

    On UltraScale+ two functions of five inputs together share a look-up table, and one of more than six inputs takes
    two tables per further input, which the multiplexers of the slice join.
    """
    values = []
    for table in tables:
        index = Cat(word[bit] for bit in table.inputs)
        truth = sum(value << entry for entry, value in enumerate(table.truth))
        values.append(Const(truth, len(table.truth)).bit_select(index, 1))
    if not _primitives(platform):
        return values
    for pair in _paired(tables):
        used = sorted({bit for index in pair for bit in tables[index].inputs})
        truths, pins = [], [*(word[bit] for bit in used), *[Const(0, 1)] * (_PAIR_INPUTS - len(used)), Const(1, 1)]
        for index in pair:
            values[index] = Signal(name=f"{name}_{index}")
            places = [used.index(bit) for bit in tables[index].inputs]

            def function(*bits, truth=tables[index].truth, places=places):
                return truth[sum(bits[place] << position for position, place in enumerate(places))]

            truths.append(_truth(function, _PAIR_INPUTS))
        m.submodules[f"{name}_pair_{pair[0]}"] = Instance(
            "LUT6_2",
            p_INIT=Const(truths[1] << 32 | truths[0], 64),
            **{f"i_I{pin}": value for pin, value in enumerate(pins)},
            o_O5=values[pair[0]],
            o_O6=values[pair[1]],
        )
    for index, table in enumerate(tables):
        if len(table.inputs) > _LUT_INPUTS:
            values[index] = _joined(m, table.truth, [word[bit] for bit in table.inputs], f"{name}_{index}")
    return values


def _joined(m, truth, inputs, name):
    """A function of six inputs or more as a tree of look-up tables and multiplexers."""
    output = Signal(name=name)
    if len(inputs) == _LUT_INPUTS:
        init = _truth(lambda *bits: truth[sum(bit << position for position, bit in enumerate(bits))], _LUT_INPUTS)
        pins = {f"i_I{pin}": value for pin, value in enumerate(inputs)}
        m.submodules[f"{name}_lut"] = Instance("LUT6", p_INIT=Const(init, 64), **pins, o_O=output)
        return output
    half = len(truth) // 2
    low, high = (
        _joined(m, part, inputs[:-1], f"{name}_{value}") for value, part in enumerate((truth[:half], truth[half:]))
    )
    m.submodules[f"{name}_mux"] = Instance(f"MUXF{len(inputs)}", i_I0=low, i_I1=high, i_S=inputs[-1], o_O=output)
    return output


def _carry_chain(m, select, generate, carry, name):
    """Sum bits of a carry chain: ``select ^ carry``; where not selected, the next carry is ``generate``."""
    result = []
    for first in range(0, len(select), _CARRY_BITS):
        bits = len(select[first : first + _CARRY_BITS])
        sums, carries = Signal(_CARRY_BITS, name=f"{name}_sum_{first}"), Signal(_CARRY_BITS, name=f"{name}_co_{first}")
        m.submodules[f"{name}_carry_{first}"] = Instance(
            "CARRY8",
            p_CARRY_TYPE="SINGLE_CY8",
            i_CI=carry,
            i_CI_TOP=Const(0, 1),
            i_S=Cat(select[first : first + bits], Const(0, _CARRY_BITS - bits)),
            i_DI=Cat(generate[first : first + bits], Const(0, _CARRY_BITS - bits)),
            o_O=sums,
            o_CO=carries,
        )
        result.append(sums[:bits])
        carry = carries[_CARRY_BITS - 1]
    return Cat(result)


class Addend(NamedTuple):
    """An unsigned word in an adder: ``value << shift``, or with ``complement`` ``~value << shift``."""

    value: Value
    shift: int = 0
    complement: bool = False

    def bit(self, index):
        """Bit of the place ``index``, and whether its complement is meant."""
        inside = 0 <= index - self.shift < len(self.value)
        return (self.value[index - self.shift], int(self.complement)) if inside else (Const(0, 1), 0)


def add_three(m, platform, words, width, name):
    """Sum of up to three :class:`Addend`, modulo ``2**width``, without a register.

    On UltraScale+ one look-up table per bit: its two outputs are the sum and the majority of the three bits, and its
    carry chain adds the majority of the bit below. Two tables and a carry chain lie behind each other. Bits below the
    second word are those of the first and cost nothing.
    """
    words = sorted(words, key=lambda word: word.shift)
    total = Signal(width, name=name)
    if len(words) < 3 or not _primitives(platform):
        values = [Cat(Const(0, word.shift), ~word.value if word.complement else word.value) for word in words]
        m.d.comb += total.eq(sum(values[1:], values[0]))
        return total
    longest = min(width, max(len(word.value) + word.shift for word in words))
    lowest = words[0].shift if words[0].complement else min(words[1].shift, len(words[0].value), longest)
    m.d.comb += total[:lowest].eq(words[0].value[:lowest])
    select, generate = [], []
    below = Const(0, 1)
    for bit in range(lowest, longest):
        one, two = Signal(name=f"{name}_parity_{bit}"), Signal(name=f"{name}_majority_{bit}")
        (a, not_a), (b, not_b), (c, not_c) = (word.bit(bit) for word in words)

        def parity(a, b, c, below, _, flips=not_a ^ not_b ^ not_c):
            return a ^ b ^ c ^ below ^ flips

        def majority(a, b, c, *_, flips=(not_a, not_b, not_c)):
            return (a ^ flips[0]) + (b ^ flips[1]) + (c ^ flips[2]) >= 2

        m.submodules[f"{name}_{bit}"] = Instance(
            "LUT6_2",
            p_INIT=Const(_truth(parity, 5) << 32 | _truth(majority, 5), 64),
            **{f"i_I{pin}": value for pin, value in enumerate((a, b, c, below, Const(0, 1), Const(1, 1)))},
            o_O6=one,
            o_O5=two,
        )
        select.append(one)
        generate.append(below)
        below = two
    if width > longest:
        # A carry chain takes what it selects from a look-up table only.
        top = Signal(name=f"{name}_top")
        m.submodules[f"{name}_{longest}"] = Instance("LUT1", p_INIT=Const(0b10, 2), i_I0=below, o_O=top)
        select.append(top)
        generate.append(Const(0, 1))
    padding = [Const(0, 1)] * (width - lowest - len(select))
    m.d.comb += total[lowest:].eq(_carry_chain(m, [*select, *padding], [*generate, *padding], Const(0, 1), name))
    return total


def count_step(m, platform, value, operand, *, double, add, restart, name):
    """Next value of a counter by multiples: ``value +- multiple``, or its start.

    ``operand`` is ``multiple - 1`` in two's complement, as wide as ``value``: so ``add`` can be the carry that comes
    in. With ``double`` twice the multiple counts. With ``restart`` the value becomes 0 if ``add``, else -1. On
    UltraScale+ one look-up table with six inputs per bit.
    """
    width = len(value)
    doubled = Cat(Const(1, 1), operand[: width - 1])
    total = Signal(width, name=name)
    if not _primitives(platform):
        multiple = Mux(double, doubled, operand)
        m.d.comb += total.eq(Mux(restart, (~add).replicate(width), value + Mux(add, multiple, ~multiple) + add))
        return total
    select = []
    for bit in range(width):

        def function(value, once, twice, double, add, restart):
            # The carry of a restart is `add` in every bit.
            return 1 if restart else value ^ (twice if double else once) ^ 1 ^ add

        output = Signal(name=f"{name}_select_{bit}")
        inputs = (value[bit], operand[bit], doubled[bit], double, add, restart)
        m.submodules[f"{name}_{bit}"] = Instance(
            "LUT6",
            p_INIT=Const(_truth(function, 6), 64),
            **{f"i_I{pin}": source for pin, source in enumerate(inputs)},
            o_O=output,
        )
        select.append(output)
    m.d.comb += total.eq(_carry_chain(m, select, list(value), add, name))
    return total


def tables(m, platform, words, *, enable, address, reads, name):
    """Tables of 32 words in distributed RAM, one per lane, with one write address and one read address each.

    Parameters
    ----------
    words : list of values
        What is written to ``address`` of every table with ``enable``, in this cycle.
    address : value
        Five bits.
    reads : list of values
        Read address of every table.

    Returns
    -------
    list of Signal
        The words read, in the same cycle. On UltraScale+ seven pairs of bits, of any lanes, share one RAM32M16 of
        eight look-up tables, and the last three a RAM32M of four.
    """
    width = len(words[0])
    outputs = [Signal(width, name=f"{name}_{lane}") for lane in range(len(words))]
    if not _primitives(platform):
        for lane, (word, read) in enumerate(zip(words, reads, strict=True)):
            memory = Memory(
                shape=unsigned(width), depth=1 << TABLE_ADDRESS_BITS, init=[], attrs={"ram_style": "distributed"}
            )
            m.submodules[f"{name}_memory_{lane}"] = memory
            write, port = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(enable),
                write.addr.eq(address),
                write.data.eq(word),
                port.addr.eq(read),
                outputs[lane].eq(port.data),
            ]
        return outputs
    pairs = [(lane, bit) for lane in range(len(words)) for bit in range(0, width, 2)]
    while pairs:
        small = len(pairs) <= len(_SMALL_RAM_PORTS)
        letters, writing = (_SMALL_RAM_PORTS, _SMALL_RAM_WRITE_PORT) if small else (_RAM_PORTS, _RAM_WRITE_PORT)
        ports = {
            "i_WCLK": ClockSignal("sync"),
            "i_WE": enable,
            f"i_ADDR{writing}": address,
            f"i_DI{writing}": Const(0, 2),
        }
        first = pairs[0]
        for letter, (lane, bit) in zip(letters, pairs, strict=False):
            bits = min(2, width - bit)
            output = Signal(2, name=f"{name}_{lane}_{bit}")
            ports |= {
                f"i_ADDR{letter}": reads[lane],
                f"i_DI{letter}": Cat(words[lane][bit : bit + bits], Const(0, 2 - bits)),
                f"o_DO{letter}": output,
            }
            m.d.comb += outputs[lane][bit : bit + bits].eq(output)
        m.submodules[f"{name}_ram_{first[0]}_{first[1]}"] = Instance("RAM32M" if small else "RAM32M16", **ports)
        pairs = pairs[len(letters) :]
    return outputs
