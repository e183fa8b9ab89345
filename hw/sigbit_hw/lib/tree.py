"""Pipelined adder trees over unsigned words, optionally with signs that are applied relative to a neighbour.

Our definition. A tree over signed lanes would need an XOR with the lane's sign at *both* inputs of its first adders, and a
carry chain accepts logic at only one of its two inputs for free. So the tree adds ``left + (right XOR d)`` at every node,
where ``d`` tells whether the sign of the right subtree's first lane differs from that of the left subtree's first lane,
and the sign of lane 0 is applied to the root by the caller. All words stay unsigned: the complement of a word of
``w`` bits is ``2**w - 1 - word``, so the root differs from the relative sum by a constant that depends on the signs
alone, namely by what the tree gives when every lane is zero.
"""

from amaranth import *

__all__ = ["adder_tree", "sign_parent", "tree_levels"]


def tree_levels(count):
    """Levels of adders, and cycles, of a tree over ``count`` words."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"A tree must have 1 or more words, not {count!r}")
    return (count - 1).bit_length()


def sign_parent(lane):
    """Where the sign of ``lane`` (1 or more) enters: ``(level, parent)``.

    At ``level`` (1 is the first adder) the subtree that starts at ``lane`` is added to the one that starts at ``parent``.
    """
    return (lane & -lane).bit_length(), lane & (lane - 1)


def adder_tree(m, words, differs=None, name="tree"):
    """Sum of equally wide unsigned ``words``, one register per level.

    Parameters
    ----------
    words : list of unsigned values
        All valid in the same cycle.
    differs : None or list of 1-bit values
        ``differs[lane]`` complements the subtree that starts at ``lane``; it must be valid in the cycle in which level
        ``sign_parent(lane)[0]`` adds. Entry 0 is not used. ``None`` is a plain sum.

    Returns
    -------
    Signal
        The root, ``tree_levels(len(words))`` cycles after the words and as many bits wider.
    """
    for level in range(1, tree_levels(len(words)) + 1):
        width = max(len(word) for word in words) + 1
        sums = []
        for index in range(0, len(words), 2):
            node = Signal(width, name=f"{name}_{level}_{index // 2}", reset_less=True)
            left = words[index]
            if index + 1 == len(words):
                m.d.sync += node.eq(left)
            elif differs is None:
                m.d.sync += node.eq(left + words[index + 1])
            else:
                right = words[index + 1]
                inverted = differs[(index + 1) << (level - 1)].replicate(width - 1)
                m.d.sync += node.eq(left + (right ^ inverted))
            sums.append(node)
        words = sums
    return words[0]
