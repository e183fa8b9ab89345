"""Dot-product cell: many multipliers, one adder tree, one sum."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arith.multiplier import multiplier
from ..lib.delay import delayed
from ..lib.sizes import require_positive
from ..lib.tree import add_signed, adder_tree, sign_parent, tree_levels

__all__ = ["DotProductCell", "swap_stages", "weight_lane"]


def weight_lane(weight_format, activation_format):
    """Layout of one stationary weight in a cell: the weight word, and its sign relative to another lane."""
    return data.StructLayout({"word": multiplier(weight_format, activation_format).weight_bits, "agrees": 1})


def swap_stages(weight_format, activation_format, lanes):
    """Stages of a cell that hold weight bits: operands, rest of the multiplier, one per adder level, the last sum."""
    return multiplier(weight_format, activation_format).delay_cycles + tree_levels(lanes) + 1


class DotProductCell(wiring.Component):
    """``lanes`` products per plane of activations that pass by and weights that stay, added to a passing sum.

    Activations move one column to the right per cycle. The weights are held twice: ``load`` fills the shadow, and
    ``swap`` makes it active, stage by stage along with the first activations that shall meet it. Every stage is at
    most one look-up table and a carry chain, or two look-up tables, with an exception: multipliers of long
    significands add two rows of partial products in one carry chain.

    The bits of a product that depend on at most four operand bits are computed, in every second lane, inside the
    first adder instead of in front of it; they use operands that are held one cycle longer.

    A result is ``latency_cycles`` behind its activations. ``sums_in`` must be given one cycle before ``sums_out``.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native formats. The cell sees recoded operands: words of :func:`~sigbit_hw.arith.multiplier.multiplier`.
    lanes, planes : int
        Multipliers per plane, and planes with the same weights.
    sum_bits : int
        Width of the sums, which wrap around.

    Members
    -------
    activations, activations_out : ``data.ArrayLayout``
        Activation words, plane by plane; out to the next column one cycle later.
    weights : ``data.ArrayLayout``
        Per lane ``{d, word}``: the weight word and whether its sign agrees from that of lane ``sign_parent(lane)``;
        in lane 0 the sign itself.
    load : ``In(1)``
        Store ``weights`` in the shadow.
    swap : ``In(swap_stages)``
        Bit ``s`` is the swap tag ``s`` cycles after its activations entered.
    sums_in, sums_out : ``data.ArrayLayout``
        One sum per plane, signed, modulo ``2**sum_bits``. What is added is ``sum((-1)**s * p) + Z``, with ``Z`` the
        sum that the same signs give for zero activations (:mod:`sigbit_hw.lib.tree`).
    """

    def __init__(self, weight_format, activation_format, *, lanes, planes, sum_bits):
        require_positive(lanes=lanes, planes=planes, sum_bits=sum_bits)
        self._multiplier = multiplier(weight_format, activation_format)
        self._lanes = lanes
        self._planes = planes
        self._sum_bits = sum_bits
        self.swap_stages = swap_stages(weight_format, activation_format, lanes)
        lane = weight_lane(weight_format, activation_format)
        words = data.ArrayLayout(self._multiplier.activation_bits, lanes * planes)
        sums = data.ArrayLayout(signed(sum_bits), planes)
        super().__init__(
            {
                "activations": In(words),
                "activations_out": Out(words),
                "weights": In(data.ArrayLayout(lane, lanes)),
                "load": In(1),
                "swap": In(self.swap_stages),
                "sums_in": In(sums),
                "sums_out": Out(sums),
            }
        )

    @property
    def module_name(self):
        """Name that is the same for equal cells only."""
        formats = (self._multiplier.weight_format, self._multiplier.activation_format)
        text = "_".join(form.identifier for form in formats)
        return f"dot_product_cell_{text}_{self._lanes}x{self._planes}_{self._sum_bits}"

    @property
    def latency_cycles(self):
        """Cycles from ``activations`` to ``sums_out``."""
        return self.swap_stages + 1

    def elaborate(self, platform):
        m = Module()

        shadow = Signal.like(self.weights, reset_less=True)
        with m.If(self.load):
            m.d.sync += shadow.eq(self.weights)

        # Stage 0: operands.
        words = [self._active(m, shadow[lane].word, 0, f"weight_{lane}") for lane in range(self._lanes)]
        activations = Signal.like(self.activations, reset_less=True)
        m.d.sync += activations.eq(self.activations)
        m.d.comb += self.activations_out.eq(activations)

        # One sign per adder, active when its level is reached.
        first_adder = self._multiplier.delay_cycles
        agrees = [self._active(m, shadow[0].agrees, self.swap_stages - 1, "sign")]
        for lane in range(1, self._lanes):
            level, _ = sign_parent(lane)
            agrees.append(self._active(m, shadow[lane].agrees, first_adder + level - 1, f"agrees_{lane}"))

        late_words = {
            lane: self._active(m, shadow[lane].word, 1, f"late_weight_{lane}") for lane in range(1, self._lanes, 2)
        }
        for plane in range(self._planes):
            products = []
            for lane in range(self._lanes):
                name = f"lane_{plane}_{lane}"
                activation = activations[plane * self._lanes + lane]
                if self._multiplier.form == "table" and lane in late_words:
                    late = late_words[lane], delayed(m, activation, 1, name=f"{name}_late")
                    products.append(self._multiplier.late_product(m, platform, words[lane], activation, *late, name))
                else:
                    products.append(self._multiplier.product(m, platform, words[lane], activation, name))
            root = adder_tree(m, products, agrees, name=f"tree_{plane}")
            m.d.sync += self.sums_out[plane].eq(add_signed(self.sums_in[plane], root, agrees[0]))
        return m

    def _active(self, m, shadow, stage, name):
        """Register of a stage that takes the shadow when the swap tag gets there."""
        active = Signal.like(shadow, name=name, reset_less=True)
        with m.If(self.swap[stage]):
            m.d.sync += active.eq(shadow)
        return active
