"""Pipelined adder trees, optionally with signs that are applied relative to a neighbour.

Our definition. A tree over lanes with signs would need an XOR with the lane's sign at *both* inputs of its first
adders, and a carry chain accepts logic at only one of its two inputs for free. So a node is ``left + right`` if the
first lanes of both subtrees have the same sign and ``left + ~right`` if not, and the sign of lane 0 is applied to the
root by the caller, in the same way. All words are unsigned, the complement of a word of ``w`` bits is ``2**w - 1 -
word``, and no word needs a sign extension. The root differs from the sum with signs by a number that depends on the
signs alone: what the same tree gives when every lane is zero.
"""

from functools import cache
from itertools import combinations
from typing import NamedTuple

from amaranth import *

from .delay import delayed
from .ultrascale import Addend, add_three

__all__ = [
    "Term",
    "add_signed",
    "adder_tree",
    "sign_parent",
    "ternary_excess",
    "ternary_levels",
    "ternary_luts",
    "ternary_tree",
    "tree_levels",
]


def tree_levels(count):
    """Levels of adders, and cycles, of a tree over ``count`` words."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"A tree must have 1 or more words, not {count!r}")
    return (count - 1).bit_length()


def sign_parent(lane):
    """Where the sign of ``lane`` (1 or more) enters: ``(level, parent)``.

    At ``level`` (1 is the first adder) the subtree that starts at ``lane`` is added to the one that starts at
    ``parent``.
    """
    return (lane & -lane).bit_length(), lane & (lane - 1)


def add_signed(left, right, agrees):
    """``left + right`` if ``agrees``, else ``left + ~right``, as many bits as ``left``; minus ``2**len(right)``.

    It is written as a subtraction, with a bit below the words that makes it one less: synthesizers may swap the
    operands of an addition, but not of a subtraction, and ``left`` must be the one that stays free of logic.
    """
    inverted = right ^ agrees.replicate(len(right))
    return (Cat(C(0, 1), left) - Cat(C(1, 1), inverted))[1 : len(left) + 1]


def adder_tree(m, words, agrees=None, name="tree"):
    """Sum of equally wide unsigned ``words``, one register per level.

    Parameters
    ----------
    words : list of values
        All valid in the same cycle.
    agrees : None or list of 1-bit values
        ``agrees[lane]``: the sign of ``lane`` is that of its parent (:func:`sign_parent`), valid in the cycle in
        which that level adds. Entry 0 is not used. ``None`` is a plain sum.

    Returns
    -------
    Signal
        The root, ``tree_levels(len(words))`` cycles after the words and as many bits wider.
    """
    for level in range(1, tree_levels(len(words)) + 1):
        sums = []
        for index in range(0, len(words), 2):
            left = words[index]
            if index + 1 == len(words):
                total = left
            elif agrees is None:
                total = left + words[index + 1]
            else:
                total = add_signed(Cat(left, C(1, 1)), words[index + 1], agrees[(index + 1) << (level - 1)])
            node = Signal(len(left) + 1, name=f"{name}_{level}_{index // 2}", reset_less=True)
            m.d.sync += node.eq(total)
            sums.append(node)
        words = sums
    return words[0]


class Term(NamedTuple):
    """What is known of a word of a ternary tree: it stands for ``value << shift``, or with ``negative`` the negative.

    ``value`` is unsigned and at most ``largest``.
    """

    shift: int
    largest: int
    negative: bool = False

    @property
    def bits(self):
        """Bits of the value."""
        return self.largest.bit_length()

    @property
    def ones(self):
        """What the complement of the value adds to its negative."""
        return (1 << self.bits) - 1


def _joined(terms):
    """Sum of terms: negative if all are; else the negative ones enter as complements."""
    shift = min(term.shift for term in terms)
    negative = all(term.negative for term in terms)
    parts = [term.ones if term.negative and not negative else term.largest for term in terms]
    return Term(shift, sum(part << term.shift - shift for part, term in zip(parts, terms, strict=True)), negative)


def _luts(terms):
    """Look-up tables of one ternary adder of :func:`~.ultrascale.add_three`."""
    longest = max(term.bits + term.shift for term in terms)
    total = _joined(terms)
    return longest - sorted(term.shift for term in terms)[1] + (total.bits + total.shift > longest)


@cache
def _plan(terms):
    """Levels of a tree, each a tuple of ``(sources, term)``: which words of the level before become which.

    A look-up table can remove two bits. In every level those three words come first whose adder wastes least of that.
    """
    levels = []
    while len(terms) > 2:
        left = {}
        for index, term in enumerate(terms):
            left.setdefault(term, []).append(index)
        level = []
        while sum(map(len, left.values())) > 2:
            kinds = sorted(term for term, indices in left.items() for _ in indices[:3])
            choices = sorted(set(combinations(kinds, 3)))
            best = max(choices, key=lambda choice: _saved(choice) - 2 * _luts(choice))
            level.append((tuple(left[term].pop() for term in best), _joined(best)))
        level += [((index,), term) for term, indices in sorted(left.items()) for index in indices]
        levels.append(tuple(level))
        terms = tuple(term for _, term in level)
    return tuple(levels)


def _saved(terms):
    return sum(term.bits for term in terms) - _joined(terms).bits


def ternary_levels(count):
    """Cycles of :func:`ternary_tree` over ``count`` words, the addition to the carried sum included."""
    tree_levels(count)
    levels = 1
    while count > 2:
        count = count // 3 + count % 3
        levels += 1
    return levels


def _additions(terms):
    """Terms of every adder of a tree that makes a word of several, and of the last, to the carried sum."""
    for level in _plan(terms):
        for sources, _ in level:
            if len(sources) > 1:
                yield tuple(terms[index] for index in sources)
        terms = tuple(term for _, term in level)
    yield (*terms, Term(0, 0))


def ternary_excess(terms):
    """By how much the root of :func:`ternary_tree` is greater than the carried sum with all terms added."""
    excess = 0
    for added in _additions(tuple(terms)):
        if not all(term.negative for term in added):
            excess += sum(term.ones << term.shift for term in added if term.negative)
    return excess


def ternary_luts(terms, carried_bits):
    """Look-up tables of :func:`ternary_tree` on UltraScale+."""
    *inner, _ = _additions(tuple(terms))
    return sum(map(_luts, inner)) + carried_bits


def ternary_tree(m, platform, words, carried, terms=None, name="tree"):
    """``carried`` plus the sum of unsigned ``words``, three words per adder and one register per level.

    Parameters
    ----------
    platform
        What :func:`~.ultrascale.add_three` chooses its adders by.
    words : list of values
        All valid in the same cycle.
    carried : value
        Valid one cycle before the result, which is as wide and wraps around.
    terms : list of :class:`Term`
        What the words stand for; by default each for itself. With negative ones the result is greater by
        :func:`ternary_excess`.

    Returns
    -------
    Signal
        ``ternary_levels(len(words))`` cycles after the words.
    """
    if terms is None:
        terms = [Term(0, (1 << len(word)) - 1) for word in words]
    terms = tuple(terms)
    for depth, level in enumerate(_plan(terms), 1):
        sums = []
        for position, (sources, term) in enumerate(level):
            node = f"{name}_{depth}_{position}"
            if len(sources) == 1:
                total = words[sources[0]]
            else:
                parts = [(words[index], terms[index]) for index in sources]
                addends = [
                    Addend(word, part.shift - term.shift, part.negative and not term.negative) for word, part in parts
                ]
                total = add_three(m, platform, addends, term.bits, f"{node}_total")
            # Bits that wait have a reset, so that they stay flip-flops and use no look-up table as shift register.
            waits = len({terms[index].shift for index in sources}) > 1 or len(sources) == 1
            sums.append(delayed(m, total, 1, name=node, clear=waits))
        words, terms = sums, tuple(term for _, term in level)
    addends = [Addend(word, term.shift, term.negative) for word, term in zip(words, terms, strict=True)]
    total = add_three(m, platform, [Addend(carried), *addends], len(carried), f"{name}_total")
    return delayed(m, total, 1, name=f"{name}_root")
