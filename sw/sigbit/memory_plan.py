"""Where tensors lie in feature memory, and in which order layers work on them.

Where every tensor fits whole, layers run one after the other. Where that does not fit, consecutive layers become a
*chain*: it makes its last tensor in bands of rows, and in each band every layer of the chain makes just the rows that
the band needs, back through kernels, strides and padding. Tensors that only the chain reads never exist whole: they
have a buffer of a band's rows. Rows at the end of one band that the next needs again are made again or moved to the
front of the buffer. The input is a tensor like the others, made by the host: a band's rows are sent to one of two
regions while the band before is computed from the other.

The last layers may run once for a *group* of images, so that their weights come once. Every tensor that they read or
write is then there for all images, one after the other; the layers before run for each image and know nothing of it.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import gcd

import numpy as np

__all__ = ["Costs", "MemoryPlan", "Move", "Output", "Send", "Shortage", "Window", "Work", "plan_memory"]

#: Longest chain that is tried.
_CHAIN_LAYERS = 12
#: Parts of the memory that the search leaves free, one after the other, until its tensors find a place.
_RESERVES = 8
_RESERVE_UNIT = 16
#: Plans that are tried for each of them.
_PLANS = 8


@dataclass(frozen=True)
class Window:
    """Rows ``first`` to ``end`` of a tensor from address ``base`` on.

    ``plane_words`` are from one channel block to the next, those of the next part included. Of a group there are
    ``images`` tensors, each ``image_words`` behind the one before.
    """

    base: int
    first: int
    end: int
    plane_words: int
    images: int = 1
    image_words: int = 0


@dataclass(frozen=True)
class Send:
    """The host sends rows of the input of an image; ``image`` is its number in the group."""

    window: Window
    image: int


@dataclass(frozen=True)
class Move:
    """``rows`` of the target of a layer move down from ``source`` to ``base``, the front of their buffer."""

    layer: int
    base: int
    source: int
    rows: int
    plane_words: int


@dataclass(frozen=True)
class Work:
    """A layer makes the rows ``first`` to ``end`` of its target; ``windows`` are the tensors it uses, by name.

    Where these hold a group of images, rows are images: every target has one row.
    """

    layer: int
    first: int
    end: int
    windows: dict


@dataclass(frozen=True)
class Output:
    """The accelerator sends the output ``name`` of an image of the group, which lies in the region ``window``."""

    name: str
    window: Window
    image: int


@dataclass(frozen=True)
class MemoryPlan:
    """``groups[i]`` are the steps of every ``len(groups)``-th group of images: two where they differ in the regions of
    the input.
    """

    groups: tuple


@dataclass(frozen=True)
class Shortage:
    """Nothing fits: ``layer`` takes at least ``words``; a memory of ``enough`` words would do.

    If ``words`` are there, the tensors find no place together.
    """

    layer: int
    words: int
    enough: int


@dataclass(frozen=True)
class Costs:
    """What the choice between plans goes by.

    Attributes
    ----------
    cycles : function
        Of the index of a layer and a number of output rows: the cycles that these rows take, and those from then until
        the last results are stored, which a layer that reads them waits for.
    weight_words : sequence of int
        Of every layer.
    weight_depth : int
        Words of weights that can stay from band to band.
    weight_beats : int
        Cycles that a word of weights takes on the stream.
    input_cycles : int
        Cycles that the input of an image takes on the stream.
    """

    cycles: Callable
    weight_words: tuple
    weight_depth: int
    weight_beats: int
    input_cycles: int


def plan_memory(layers, source, outputs, depth, costs, images=1, grouped=None):
    """Choose chains, bands and addresses.

    Whole tensors if they fit, two regions for the input if possible. Otherwise the choice that needs the fewest cycles.

    Parameters
    ----------
    layers : sequence
        In execution order; each has ``target`` and ``reads``, maps with ``name``, ``height``, ``width``, ``blocks``,
        ``parts`` and their product ``planes``; the first of ``reads`` is read through the kernel, others are added.
        And it has ``kernel``, ``stride``, ``dilation`` and ``pads``, unless it is not ``in_bands``: then it works on
        whole tensors only. Maps of one name lie in one region, which has the same sizes in all of them.
    source : map
        The input.
    outputs : dict
        Name of every output -> the name of its map, and the index of the layer behind which it is sent.
    depth : int
        Words of feature memory.
    costs : :class:`Costs`
    images : int
        In a group.
    grouped : int, optional
        The first of the layers that run once per group; they make one row. None: every layer runs for every image.

    Returns
    -------
    :class:`MemoryPlan`, or :class:`Shortage` if nothing fits
    """
    planner = _Planner(layers, source, outputs, costs, images, len(layers) if grouped is None else grouped)
    if plan := planner.plan(depth):
        return plan
    layer, words = planner.tightest(depth)
    enough = 2 * depth
    while not planner.plan(enough):
        enough *= 2
    return Shortage(layer, words, enough)


@dataclass(frozen=True)
class _Chain:
    """Layers ``start`` to ``end`` in bands.

    ``made`` has the first and last rows that each layer makes per band, ``held`` those that the buffer of each tensor
    of the chain holds; ``kept`` are the tensors whose common rows of two bands are moved.
    """

    start: int
    end: int
    bands: int
    made: dict
    held: dict
    kept: frozenset
    cycles: int
    words: int


class _Planner:
    def __init__(self, layers, source, outputs, costs, images, grouped):
        self._layers, self._source, self._outputs, self._costs = layers, source, outputs, costs
        self._images, self._grouped = images, grouped
        self._cycles = cache(costs.cycles)
        self._maps = {source.name: source}
        self._born, self._last = {source.name: -1}, {source.name: 0}
        for index, layer in enumerate(layers):
            # In order of use.
            for tensor in (*layer.reads, layer.target):
                self._maps.setdefault(tensor.name, tensor)
            self._born.setdefault(layer.target.name, index)
            for tensor in (layer.target, *layer.reads):
                self._last[tensor.name] = index
        for name, index in outputs.values():
            self._last[name] = max(self._last[name], index)
        # What is added has the steps of the sum. Where there are steps that both take neither is in a buffer.
        self._whole = {
            tensor.name
            for layer in layers
            for added in layer.reads[1:]
            for tensor in (added, layer.target)
            if max(added.blocks, layer.target.blocks) > 1 or min(added.parts, layer.target.parts) > 1
        }
        writers = Counter(layer.target.name for layer in layers)
        # A buffer has the rows of one layer, and what is sent is whole.
        self._whole |= {name for name, count in writers.items() if count > 1} | {name for name, _ in outputs.values()}
        self._pitches = self._group_pitches()
        for name in self._pitches:
            self._whole.add(name)
            if self._born[name] < grouped:
                # Those of the images before are there already.
                self._born[name] = -1
        self._single = cache(self._single_layer)
        self._chains, self._front = cache(self._all_chains), cache(self._useful_chains)
        self._best = cache(self._best_chains)

    def plan(self, depth):
        whole = [self._single(index) for index in range(len(self._layers))]
        for copies in (2, 1):
            if plan := self._placed(whole, depth, copies):
                return plan
        for reserve in range(_RESERVES):
            limit = depth - depth * reserve // _RESERVE_UNIT
            for _, chains, copies, resident in sorted(self._candidates(limit), key=lambda plan: plan[0])[:_PLANS]:
                if plan := self._placed(chains, depth, copies, resident):
                    return plan
        return None

    def tightest(self, depth):
        """The layer whose smallest chain takes the most words, and these."""
        size, last = self._tensor_words(self._source.name), self._last[self._source.name]
        count = len(self._layers)
        least = [self._single(index).words + (size if index <= last else 0) for index in range(count)]
        for start in range(count):
            for end in range(start + 1, self._chain_end(start) + 1):
                if max(least[start:end]) > depth:
                    whole_input = size if start <= last else 0
                    options = [chain.words + whole_input for chain in self._chains(start, end, False)]
                    if start == 0 and end > last and self._source.name not in self._whole:
                        options.extend(chain.words for chain in self._chains(start, end, True))
                    least[start:end] = [min([known, *options]) for known in least[start:end]]
        return max(enumerate(least), key=lambda layer: layer[1])

    # -- groups of images ----------------------------------------------------------------------------------------------

    def _group_pitches(self):
        """Words from one image to the next of all tensors that the layers of a group use, by name."""
        layers = self._layers[self._grouped :]
        pitches = {
            tensor.name: _words(tensor, tensor.height) for layer in layers for tensor in (*layer.reads, layer.target)
        }
        # What is added has the steps of the sum.
        pairs = [(added.name, layer.target.name) for layer in layers for added in layer.reads[1:]]
        for pair in pairs * len(pairs):
            pitches.update(dict.fromkeys(pair, max(pitches[name] for name in pair)))
        return pitches

    def _tensor_words(self, name):
        """Words of a whole tensor, of all images if it is a group's."""
        tensor = self._maps[name]
        return self._pitches[name] * self._images if name in self._pitches else _words(tensor, tensor.height)

    def _chain_end(self, start):
        """Last end of a chain: those of a group have one layer."""
        limit = self._grouped if start < self._grouped else start + 1
        return min(start + _CHAIN_LAYERS, limit)

    def _single_layer(self, index):
        if index < self._grouped:
            return self._chain(index, index + 1, self._layers[index].target.height, False, False)
        load = self._costs.weight_words[index] * self._costs.weight_beats
        work, drain = self._cycles(index, self._images)
        cost = max(work, load) + drain
        chain = _Chain(index, index + 1, 1, {}, {}, frozenset(), cost, 0)
        return replace(chain, words=self._peak(chain))

    # -- search --------------------------------------------------------------------------------------------------------

    def _candidates(self, limit):
        """Plans ``(cycles, chains, copies of the input, whether it keeps its place)`` whose sums of words fit.

        ``copies`` is 0 for an input in bands.
        """
        name = self._source.name
        size, load = self._tensor_words(name), self._images * self._costs.input_cycles
        for copies in (2, 1):
            # What is not sent during the image before takes time.
            found = self._best(limit, copies * size, len(self._layers) if copies == 2 else self._last[name])[0]
            if found:
                cost, chains = found
                yield cost + (load if copies == 1 else 0), chains, copies, copies == 2
        if name in self._whole:
            return
        for end in range(self._last[name] + 1, self._chain_end(0) + 1):
            for first in self._chains(0, end, True):
                region = self._buffer_words(first, name)
                for resident in (True, False):
                    if first.words <= limit:
                        rest = self._best(limit, region if resident else 0, len(self._layers))[end]
                        if rest:
                            cost = first.cycles + rest[0] + (0 if resident else load // first.bands)
                            yield cost, [first, *rest[1]], 0, resident

    def _best_chains(self, limit, input_words, input_last):
        """For every layer the cheapest chains ``(cycles, chains)`` from there on, or None.

        The input takes ``input_words`` up to layer ``input_last``.
        """
        count = len(self._layers)
        best: list = [None] * count + [(0, [])]

        def room(start):
            return limit - (input_words if start <= input_last else 0)

        tight = [self._single(index).words > room(index) for index in range(count)]
        for start in reversed(range(count)):
            chains = [] if tight[start] else [self._single(start)]
            for end in range(start + 2, self._chain_end(start) + 1):
                # Where every layer fits on its own a chain gains nothing.
                if any(tight[start:end]):
                    words, front = self._front(start, end)
                    if position := bisect(words, room(start)):
                        chains.append(front[position - 1])
            costs = [(chain.cycles + best[chain.end][0], chain) for chain in chains if best[chain.end]]
            if costs:
                cost, chain = min(costs, key=lambda option: option[0])
                best[start] = cost, [chain, *best[chain.end][1]]
        return best

    def _useful_chains(self, start, end):
        """Chains of these layers that need fewer cycles than all that take less space, by their words."""
        front: list[_Chain] = []
        for chain in sorted(self._chains(start, end, False), key=lambda chain: (chain.words, chain.cycles)):
            if not front or chain.cycles < front[-1].cycles:
                front.append(chain)
        return [chain.words for chain in front], front

    def _all_chains(self, start, end, with_input):
        """Chains of these layers, from high bands to low ones; ``with_input``: the input comes in bands too."""
        if not all(layer.in_bands for layer in self._layers[start:end]):
            return []
        height = self._layers[end - 1].target.height
        heights = sorted({-(-height // bands) for bands in range(2, height + 1)}, reverse=True)
        return [
            self._chain(start, end, rows, keep, with_input)
            for rows in heights
            for keep in ((False, True) if end - start > 1 else (False,))
        ]

    def _chain(self, start, end, height, keep, with_input):
        """Layers that make ``height`` rows of the last tensor per band; ``keep``: move rows instead of making them."""
        layers = self._layers[start:end]
        total = layers[-1].target.height
        bands = -(-total // height)
        needs: dict = {}
        made, held, kept = {}, {}, set()
        cost = 0

        def need(tensor, first, stop):
            first = np.clip(first, 0, tensor.height - 1)
            # A band that sees only padding takes one row all the same: no instruction reads a map without rows.
            stop = np.maximum(np.minimum(stop, tensor.height), first + 1)
            known = needs.get(tensor.name, (first, stop))
            needs[tensor.name] = np.minimum(known[0], first), np.maximum(known[1], stop)

        for index, layer in zip(reversed(range(start, end)), reversed(layers), strict=True):
            target = layer.target
            stop = np.minimum(np.arange(1, bands + 1) * height, total) * target.height // total
            first, stop = needs.get(target.name, (stop, stop)) if index < end - 1 else (stop, stop)
            if self._inside(target.name, start, end):
                held[target.name] = first, stop
                if target.name not in needs:
                    held[target.name] = np.append(0, stop[:-1]), np.maximum(stop, 1)
                    first = held[target.name][0]
                elif keep:
                    first = np.maximum(first, np.append(0, stop[:-1]))
                    if (first > held[target.name][0]).any():
                        kept.add(target.name)
                        moved = np.minimum(stop[:-1], stop[1:]) - held[target.name][0][1:]
                        cost += _words(target, int(np.maximum(moved, 0).sum()))
            else:
                # It stays whole, so no row is made twice.
                stop = np.maximum.accumulate(stop)
                stop[-1] = target.height
                first = np.append(0, stop[:-1])
            made[index] = first, stop
            if not layer.in_bands:
                for tensor in layer.reads:
                    need(tensor, np.zeros(bands, int), np.full(bands, tensor.height))
                continue
            (stride, _), (pad, _) = layer.stride, layer.pads
            reach = (layer.kernel[0] - 1) * layer.dilation[0] + 1
            for number, tensor in enumerate(layer.reads):
                if number:
                    need(tensor, first, stop)
                else:
                    need(tensor, first * stride - pad, (stop - 1) * stride - pad + reach)
        if with_input:
            held[self._source.name] = needs[self._source.name]
        # Weights that do not stay come again with every band.
        streamed = sum(self._costs.weight_words[start:end]) > self._costs.weight_depth
        for index, (first, stop) in made.items():
            load = self._costs.weight_words[index] * self._costs.weight_beats
            for band, rows in enumerate((stop - first).tolist()):
                if rows > 0:
                    work, drain = self._cycles(index, rows)
                    cost += max(work, load) if streamed or not band else work
                    # The bands of one layer do not read each other's results.
                    cost += drain if end - start > 1 or not band else 0
        chain = _Chain(start, end, bands, made, held, frozenset(kept), cost * self._images, 0)
        return replace(chain, words=self._peak(chain))

    def _inside(self, name, start, end):
        """Whether a tensor is made and read by these layers only, so that a buffer of rows is enough."""
        return start <= self._born[name] and self._last[name] < end and name not in self._whole

    def _buffer_words(self, chain, name):
        regions = 2 if name == self._source.name else 1
        return regions * _words(self._maps[name], self._buffer_rows(chain, name))

    @staticmethod
    def _buffer_rows(chain, name):
        first, stop = chain.held[name]
        return int((stop - first).max())

    def _span(self, chain, name):
        """First and last layer that find a tensor of a chain in its buffer."""
        if name in chain.kept or name == self._source.name:
            return chain.start, chain.end - 1
        return self._born[name], self._last[name]

    def _peak(self, chain):
        """Most words in use at a time, without a whole input."""
        whole = sum(
            self._tensor_words(name)
            for name in self._maps
            if name != self._source.name
            and name not in chain.held
            and self._born[name] < chain.end
            and self._last[name] >= chain.start
        )
        buffers = [(self._buffer_words(chain, name), *self._span(chain, name)) for name in chain.held]
        times = range(chain.start, chain.end)
        return whole + max(sum(words for words, low, high in buffers if low <= time <= high) for time in times)

    # -- placement -----------------------------------------------------------------------------------------------------

    def _placed(self, chains, depth, copies, resident=True):
        """The plan with addresses, or None if the tensors find no place.

        A ``resident`` input keeps its place from image to image.
        """
        spans, words = {}, {}
        name, count = self._source.name, len(self._layers)
        for chain in chains:
            for buffer in chain.held:
                spans[buffer] = self._span(chain, buffer)
                words[buffer] = self._buffer_words(chain, buffer)
        for tensor in self._maps.values():
            if tensor.name not in spans:
                # In a chain every layer runs in every band.
                born = next((c.start for c in chains if c.start <= self._born[tensor.name] < c.end), -1)
                last = next((c.end - 1 for c in chains if c.start <= self._last[tensor.name] < c.end), count)
                spans[tensor.name] = born, last
                words[tensor.name] = self._tensor_words(tensor.name)
        if copies:
            words[name] *= copies
        spans[name] = (-1, count) if (resident and copies != 1) else (-1, spans[name][1])
        bases = _allocate([(name, words[name], *spans[name]) for name in self._maps], depth)
        if bases is None:
            return None
        different = max(copies, 1) if name in self._pitches else max(copies, 1) // gcd(max(copies, 1), self._images)
        groups = tuple(tuple(self._steps(chains, bases, copies, group)) for group in range(different))
        return MemoryPlan(groups)

    def _steps(self, chains, bases, copies, group):
        name = self._source.name

        def placed(image):
            copy = (group if name in self._pitches else group * self._images + image) % max(copies, 1)
            own = {**bases, name: bases[name] + copy * self._tensor_words(name)}
            return {key: base + image * self._pitches.get(key, 0) for key, base in own.items()}

        for image in range(self._images):
            if copies:
                yield Send(self._window(name, placed(image)[name]), image)
            for chain in chains:
                if chain.start < self._grouped:
                    yield from self._chain_steps(chain, placed(image), image)
                    yield from self._results(chain, placed(image), image)
        for chain in chains:
            if chain.start >= self._grouped:
                layer = self._layers[chain.start]
                names = [tensor.name for tensor in (*layer.reads, layer.target)]
                windows = {key: self._group_window(key, placed(0)[key]) for key in names}
                yield Work(chain.start, 0, self._images, windows)
                for image in range(self._images):
                    yield from self._results(chain, placed(image), image)

    def _results(self, chain, bases, image):
        for output, (name, index) in self._outputs.items():
            if chain.start <= index < chain.end:
                yield Output(output, self._window(name, bases[name]), image)

    def _window(self, name, base):
        """A whole tensor."""
        tensor = self._maps[name]
        return Window(base, 0, tensor.height, tensor.height * tensor.width)

    def _group_window(self, name, base):
        """All images of a group, or a whole tensor."""
        window = self._window(name, base)
        if name not in self._pitches:
            return window
        return replace(window, images=self._images, image_words=self._pitches[name])

    def _chain_steps(self, chain, bases, image):
        name = self._source.name
        banded = name in chain.held
        region = self._buffer_words(chain, name) // 2 if banded else 0
        last_reader = self._last[name]

        def window(key, band):
            if key not in chain.held:
                return self._window(key, bases[key])
            first, stop = (int(rows[band]) for rows in chain.held[key])
            width = self._maps[key].width
            if key == name:
                return Window(bases[key] + band % 2 * region, first, stop, (stop - first) * width)
            return Window(bases[key], first, stop, self._buffer_rows(chain, key) * width)

        if banded:
            yield Send(window(name, 0), image)
        for band in range(chain.bands):
            for index in range(chain.start, chain.end):
                layer = self._layers[index]
                target = layer.target
                first, stop = (int(rows[band]) for rows in chain.made[index])
                if band and target.name in chain.kept:
                    before, now = window(target.name, band - 1), window(target.name, band)
                    rows = min(before.end, now.end) - now.first
                    if rows > 0 and now.first > before.first:
                        source = before.base + (now.first - before.first) * target.width
                        yield Move(index, now.base, source, rows, now.plane_words)
                if first < stop:
                    names = [tensor.name for tensor in (*layer.reads, target)]
                    yield Work(index, first, stop, {key: window(key, band) for key in names})
                # As early as possible: it is sent while the rest of this band is computed.
                if banded and index == last_reader and band + 1 < chain.bands:
                    yield Send(window(name, band + 1), image)


def _words(tensor, rows):
    return rows * tensor.planes * tensor.width


def _allocate(tensors, depth):
    """Addresses of tensors ``(name, words, first and last time of use)``, or None if they find no place."""
    # In order of use; where that leaves holes that are too small, large tensors first.
    for order in (tensors, sorted(tensors, key=lambda tensor: tensor[1], reverse=True)):
        taken: list[tuple[int, int, int, int]] = []
        bases = {}
        for name, words, born, dead in order:
            base = 0
            for low, high, other_born, other_dead in sorted(taken):
                if other_born <= dead and born <= other_dead:
                    if base + words <= low:
                        break
                    base = max(base, high)
            if base + words > depth:
                break
            taken.append((base, base + words, born, dead))
            bases[name] = base
        else:
            return bases
    return None
