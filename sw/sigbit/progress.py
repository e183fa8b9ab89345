"""Progress of long work, for people, on standard error."""

import sys
import time

__all__ = ["Progress"]

_LINE_SECONDS = 10.0
_REWRITE_SECONDS = 0.2


class Progress:
    """Prints steps, and counted work with the time that is left.

    On a terminal counted work rewrites one line; elsewhere a line appears every ten seconds and at the end.

    Parameters
    ----------
    stream : text file, optional
        Standard error if left out.
    """

    def __init__(self, stream=None):
        self._stream = stream
        self._open = False
        self._text = None
        self._done = 0

    def __call__(self, text, done=None, total=None):
        """Report a step, or ``done`` of ``total`` of one."""
        if done is None:
            self._print(text)
            return
        now = time.monotonic()
        if text != self._text or done <= self._done:
            self._text, self._start, self._shown = text, now, now
        self._done = done
        terminal = self._output.isatty()
        finished = done == total
        if not finished and now - self._shown < (_REWRITE_SECONDS if terminal else _LINE_SECONDS):
            return
        self._shown = now
        elapsed = now - self._start
        if finished:
            self._print(f"{text}: {done} of {total}, {_duration(elapsed)}", rewrite=terminal)
            self._text = None
        else:
            left = _duration(elapsed / done * (total - done))
            self._print(f"{text}: {done} of {total}, about {left} left", rewrite=terminal, stay=terminal)

    @property
    def _output(self):
        return sys.stderr if self._stream is None else self._stream

    def _print(self, text, rewrite=False, stay=False):
        if self._open:
            print("\r\033[K" if rewrite else "\n", end="", file=self._output)
        self._open = stay
        print(f"  {text}", end="" if stay else "\n", file=self._output, flush=True)

    def close(self):
        """End a line that was to be rewritten, so that the next text starts a new one."""
        if self._open:
            print(file=self._output, flush=True)
        self._open = False


def _duration(seconds):
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
