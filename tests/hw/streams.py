"""Coroutines that drive Amaranth streams in pysim, with seeded stalls."""

import random

#: The stall matrix: name -> (idle cycles of the sender, back-pressure of the receiver).
STALLS = {"none": (False, False), "idle": (True, False), "back-pressure": (False, True), "both": (True, True)}


class Stall:
    """Seeded source of pauses: mostly short, sometimes long; always 0 if not ``active``."""

    def __init__(self, active, seed=1):
        self._random = random.Random(seed) if active else None

    def __call__(self):
        if self._random is None or self._random.random() < 0.5:
            return 0
        return self._random.choice((1, 1, 2, 3, 12))


def stall_pair(name, seed=1):
    """Stalls of sender and receiver for one row of :data:`STALLS`."""
    idle, pressure = STALLS[name]
    return Stall(idle, seed), Stall(pressure, seed + 1)


async def put(ctx, source, payloads, stall=None):
    """Send ``payloads`` on the stream ``source``; every one is held until it is taken."""
    for payload in payloads:
        for _ in range(stall() if stall else 0):
            await ctx.tick()
        ctx.set(source.payload, payload)
        ctx.set(source.valid, 1)
        await ctx.tick().until(source.ready)
        ctx.set(source.valid, 0)


async def get(ctx, sink, count, stall=None):
    """``count`` payloads of the stream ``sink``, checking that an offered payload stays as it is until it is taken."""
    payloads = []
    for _ in range(count):
        for _ in range(stall() if stall else 0):
            before = ctx.get(sink.valid) and (ctx.get(sink.payload),)
            await ctx.tick()
            if before:
                assert ctx.get(sink.valid), "valid fell without a transfer"
                assert ctx.get(sink.payload) == before[0], "payload changed without a transfer"
        ctx.set(sink.ready, 1)
        (payload,) = await ctx.tick().sample(sink.payload).until(sink.valid)
        ctx.set(sink.ready, 0)
        payloads.append(payload)
    return payloads
