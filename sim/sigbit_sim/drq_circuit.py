"""A processing element of DRQ as a circuit: what structured dynamic precision is compared with in energy.

Our definition, for the array that :mod:`.drq` models, and as small as we know how, in its favour: one 4x4 multiplier,
an adder and no register but those that the dataflow needs. Whether an activation is sensitive, its rounding to 4 bits
and the rounded weight come from outside and cost nothing, and so do FIFOs, stalls and control.
"""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["DrqElement"]

#: Bits of half an operand.
_HALF = 4


class DrqElement(wiring.Component):
    """``sum_out = sum_in + activation * weight``: in four steps if the activation is sensitive, else in one.

    The steps of a sensitive activation are the products of its halves and the weight's: high x high, high x low,
    low x high, low x low. Insensitive ones multiply a short activation, in the upper half of ``activation``, with the
    short weight, and the product counts ``2**8``. The activation goes on to the next column of the array from its
    register, the sum to the next row.

    Parameters
    ----------
    sum_bits : int
        Of the signed sums, which wrap around.

    Members
    -------
    load : ``In(1)``
        Hold ``weight`` and ``short_weight`` from the next cycle on.
    weight, short_weight : ``In``
    take : ``In(1)``
        Hold ``activation`` and ``sensitive`` from the next cycle on, which is the first step.
    activation, sensitive : ``In``
    step : ``In(2)``
        Of the activation that is held: 0 and, if it is sensitive, up to 3.
    add : ``In(1)``
        There is a step in this cycle.
    sum_in : ``In(signed(sum_bits))``
        Added in step 0.
    activation_out, sensitive_out : ``Out``
    sum_out : ``Out(signed(sum_bits))``
        One cycle after the last step.
    """

    def __init__(self, sum_bits):
        self._sum_bits = sum_bits
        super().__init__(
            {
                "load": In(1),
                "weight": In(signed(2 * _HALF)),
                "short_weight": In(signed(_HALF)),
                "take": In(1),
                "activation": In(2 * _HALF),
                "sensitive": In(1),
                "step": In(2),
                "add": In(1),
                "sum_in": In(signed(sum_bits)),
                "activation_out": Out(2 * _HALF),
                "sensitive_out": Out(1),
                "sum_out": Out(signed(sum_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        weight, short_weight = Signal.like(self.weight), Signal.like(self.short_weight)
        activation, sensitive = self.activation_out, self.sensitive_out
        with m.If(self.load):
            m.d.sync += [weight.eq(self.weight), short_weight.eq(self.short_weight)]
        with m.If(self.take):
            m.d.sync += [activation.eq(self.activation), sensitive.eq(self.sensitive)]

        low_weight, low_activation = self.step[0], self.step[1]
        half_activation = Mux(low_activation, activation[:_HALF], activation[_HALF:])
        half_weight = Signal(signed(_HALF + 1))
        with m.If(~sensitive):
            m.d.comb += half_weight.eq(short_weight)
        with m.Elif(low_weight):
            m.d.comb += half_weight.eq(weight[:_HALF])
        with m.Else():
            m.d.comb += half_weight.eq(weight[_HALF:].as_signed())
        product = Signal(signed(2 * _HALF + 1))
        m.d.comb += product.eq(half_activation * half_weight)
        term = Signal(signed(4 * _HALF + 1))
        with m.Switch(self.step):
            with m.Case(0):
                m.d.comb += term.eq(product << 2 * _HALF)
            with m.Case(1, 2):
                m.d.comb += term.eq(product << _HALF)
            with m.Case(3):
                m.d.comb += term.eq(product)
        with m.If(self.add):
            m.d.sync += self.sum_out.eq(Mux(self.step == 0, self.sum_in, self.sum_out) + term)
        return m
