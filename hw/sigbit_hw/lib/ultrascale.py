"""Circuits that take fewer look-up tables with primitives of UltraScale+ than synthesis finds by itself.

Every function has a neutral form, which is its definition, and one of primitives, which a platform whose ``family`` is
``"ultrascale+"`` chooses. Both have the same values and latency.
"""

from amaranth import *
from amaranth.lib.memory import Memory

__all__ = ["ULTRASCALE", "add_three", "count_step", "tables"]

#: Value of a platform's ``family``.
ULTRASCALE = "ultrascale+"
#: Bits of one CARRY8.
_CARRY_BITS = 8
#: Read ports of a RAM32M16, two bits each, and bits of an address.
_RAM_PORTS = "ABCDEFG"
_RAM_ADDRESS_BITS = 5


def _primitives(platform):
    return getattr(platform, "family", None) == ULTRASCALE


def _truth(function, inputs):
    """INIT of a look-up table: ``function`` of the input bits, first input lowest."""
    return sum(function(*(index >> bit & 1 for bit in range(inputs))) << index for index in range(1 << inputs))


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


def add_three(m, platform, words, width, name):
    """Sum of up to three unsigned words, modulo ``2**width``, without a register.

    On UltraScale+ one look-up table per bit: its two outputs are the sum and the majority of the three bits, and its
    carry chain adds the majority of the bit below. Two tables and a carry chain lie behind each other.
    """
    words = [Value.cast(word).as_unsigned() for word in words]
    total = Signal(width, name=name)
    if len(words) < 3 or not _primitives(platform):
        m.d.comb += total.eq(sum(words[1:], words[0]))
        return total
    longest = min(width, max(len(word) for word in words))
    select, generate = [], []
    below = Const(0, 1)
    for bit in range(longest):
        one, two = Signal(name=f"{name}_parity_{bit}"), Signal(name=f"{name}_majority_{bit}")
        a, b, c = (word[bit] if bit < len(word) else Const(0, 1) for word in words)
        m.submodules[f"{name}_{bit}"] = Instance(
            "LUT6_2",
            p_INIT=Const(
                _truth(lambda a, b, c, d, _: a ^ b ^ c ^ d, 5) << 32 | _truth(lambda a, b, c, *_: a + b + c >= 2, 5), 64
            ),
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
    padding = [Const(0, 1)] * (width - len(select))
    m.d.comb += total.eq(_carry_chain(m, [*select, *padding], [*generate, *padding], Const(0, 1), name))
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
        eight look-up tables.
    """
    width = len(words[0])
    outputs = [Signal(width, name=f"{name}_{lane}") for lane in range(len(words))]
    if not _primitives(platform):
        for lane, (word, read) in enumerate(zip(words, reads, strict=True)):
            memory = Memory(
                shape=unsigned(width), depth=1 << _RAM_ADDRESS_BITS, init=[], attrs={"ram_style": "distributed"}
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
    for first in range(0, len(pairs), len(_RAM_PORTS)):
        ports = {"i_WCLK": ClockSignal("sync"), "i_WE": enable, "i_ADDRH": address, "i_DIH": Const(0, 2)}
        for letter, (lane, bit) in zip(_RAM_PORTS, pairs[first:], strict=False):
            bits = min(2, width - bit)
            output = Signal(2, name=f"{name}_{lane}_{bit}")
            ports |= {
                f"i_ADDR{letter}": reads[lane],
                f"i_DI{letter}": Cat(words[lane][bit : bit + bits], Const(0, 2 - bits)),
                f"o_DO{letter}": output,
            }
            m.d.comb += outputs[lane][bit : bit + bits].eq(output)
        m.submodules[f"{name}_ram_{first}"] = Instance("RAM32M16", **ports)
    return outputs
