"""Pipelined adder trees, optionally with signs that are applied relative to a neighbour.

Our definition. A tree over lanes with signs would need an XOR with the lane's sign at *both* inputs of its first
adders, and a carry chain accepts logic at only one of its two inputs for free. So a node is ``left + right`` if the
first lanes of both subtrees have the same sign and ``left + ~right`` if not, and the sign of lane 0 is applied to the
root by the caller, in the same way. All words are unsigned, the complement of a word of ``w`` bits is ``2**w - 1 -
word``, and no word needs a sign extension. The root differs from the sum with signs by a number that depends on the
signs alone: what the same tree gives when every lane is zero.
"""

from amaranth import *

from .delay import delayed
from .ultrascale import add_three

__all__ = ["add_signed", "adder_tree", "sign_parent", "ternary_levels", "ternary_tree", "tree_levels"]


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


def ternary_levels(count):
    """Cycles of :func:`ternary_tree` over ``count`` words, the addition to the carried sum included."""
    tree_levels(count)
    levels = 1
    while count > 2:
        count = count // 3 + count % 3
        levels += 1
    return levels


def ternary_tree(m, platform, words, carried, name="tree"):
    """``carried`` plus the sum of equally wide unsigned ``words``, three words per adder and one register per level.

    Parameters
    ----------
    platform
        What :func:`~.ultrascale.add_three` chooses its adders by.
    words : list of values
        All valid in the same cycle.
    carried : value
        Valid one cycle before the result, which is as wide and wraps around.

    Returns
    -------
    Signal
        ``ternary_levels(len(words))`` cycles after the words.
    """
    words = [(word, (1 << len(word)) - 1) for word in words]
    level = 0
    while len(words) > 2:
        level += 1
        sums = []
        for index in range(0, len(words) // 3 * 3, 3):
            parts = words[index : index + 3]
            largest = sum(value for _, value in parts)
            node = f"{name}_{level}_{index // 3}"
            total = add_three(m, platform, [word for word, _ in parts], largest.bit_length(), f"{node}_total")
            sums.append((delayed(m, total, 1, name=node), largest))
        for index in range(len(words) // 3 * 3, len(words)):
            word, largest = words[index]
            sums.append((delayed(m, word, 1, name=f"{name}_{level}_rest_{index}"), largest))
        words = sums
    total = add_three(m, platform, [carried, *(word for word, _ in words)], len(carried), f"{name}_total")
    return delayed(m, total, 1, name=f"{name}_root")
