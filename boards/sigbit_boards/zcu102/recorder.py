"""Runs Vivado scripts in a Tcl interpreter that knows what Vivado would accept, and fails on what it would not.

Nothing is synthesized. Commands and their options, properties, IP parameters, buses and pins are checked against
:mod:`.catalogue`; the block design is kept as a graph, and ``validate_bd_design`` looks for what is not connected, not
addressed, clocked twice or of another width than the manifest says. The accelerator's buses come from the Verilog.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BuildError
from .catalogue import CATALOGUE, COMMANDS, PROPERTIES, Bus, Ip, Pin

__all__ = ["Recorder", "check_constraints", "verilog_modules"]

_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_AXIS = ("tdata", "tvalid", "tready", "tlast", "tkeep")
_AXI_LITE = tuple(
    f"{channel}{signal}"
    for channel, signals in (
        ("aw", ("addr", "valid", "ready")),
        ("w", ("data", "strb", "valid", "ready")),
        ("b", ("resp", "valid", "ready")),
        ("ar", ("addr", "valid", "ready")),
        ("r", ("data", "resp", "valid", "ready")),
    )
    for signal in signals
)


def verilog_modules(text):
    """Modules of Verilog as Yosys writes it: ``{module: {port: (direction, bits)}}``."""
    modules = {}
    for match in re.finditer(r"^module \\?(\S+?)\s*\(.*?^endmodule", text, re.MULTILINE | re.DOTALL):
        declared = re.findall(r"^  (input|output) (?:reg )?(?:\[(\d+):0\] )?\\?(\S+?)\s*;", match[0], re.MULTILINE)
        modules[match[1]] = {name: (direction, 1 + int(high or 0)) for direction, high, name in declared}
    return modules


def check_constraints(text, ports):
    """What a constraint file names that is no port of its module, as a list of sentences."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0]
        for kind, name in re.findall(r"get_(\w+)\s+(?:-\w+\s+)*\{?([^\]}\s]+)", line):
            if kind != "ports":
                found.append(f"line {number}: get_{kind} is not used here; constrain ports")
            elif name not in ports:
                found.append(f"line {number}: there is no port {name}")
    return found


@dataclass
class _Cell:
    vlnv: str
    ip: Ip
    parameters: dict = field(default_factory=dict)

    @property
    def buses(self):
        return self.ip.buses(self.parameters)

    @property
    def pins(self):
        return self.ip.pins(self.parameters)


class Recorder:
    """One run of Vivado.

    Parameters
    ----------
    folder : path
        Of the scripts, with ``sigbit.v``.
    manifest : dict
        What the hardware has to fit.
    slack_ns : dict, optional
        What ``get_timing_paths`` finds for ``max`` and ``min``.
    runs : dict, optional
        ``PROGRESS`` of a run that does not succeed.

    Attributes
    ----------
    calls : list of (str, tuple)
        Every command with its arguments, in order.
    output : list of str
        Lines of ``puts``.
    exit_status : int or None

    Raises
    ------
    :exc:`BuildError`
        If Python has no Tcl.
    """

    def __init__(self, folder, manifest, slack_ns=None, runs=None):
        try:
            import tkinter
        except ImportError:
            raise BuildError(
                "Checking the scripts needs Tcl, which this Python lacks; on Debian and Ubuntu run: "
                "sudo apt-get install python3-tk"
            ) from None
        self._folder, self._manifest = Path(folder), manifest
        self._slack = {"max": 0.1, "min": 0.01} | (slack_ns or {})
        self._runs = runs or {}
        self.calls, self.output, self.exit_status = [], [], None
        self._catalogue = dict(CATALOGUE)
        self._cells: dict[str, _Cell] = {}
        self._nets: list[set] = []
        self._links: list[tuple] = []
        self._assigned: list[tuple] = []
        self._validated = self._design = False
        self._core_buses: dict = {}
        self._associated: dict = {}
        self._core: dict = {}
        self._bus_parameters: set[str] = set()
        self._files: set[str] = set()
        self._parsed: dict[str, dict] = {}
        self._objects: dict[str, tuple] = {}
        self._tcl = tkinter.Tcl()
        self._tcl.eval("namespace eval ipx {}")
        for number, name in enumerate(COMMANDS):
            # An exception of a Python command reaches Tcl without its message, so the message is a result.
            self._tcl.createcommand(f"sigbit_{number}", self._handler(name))
            self._tcl.eval(
                f"proc {name} args {{"
                f"lassign [sigbit_{number} {{*}}$args] failed result;"
                "if {$failed} {return -code error $result};"
                "return $result}"
            )
        self._tcl.createcommand("sigbit_call", self._builtin)
        # What reaches out of the interpreter is noted, not done.
        self._tcl.eval(
            """
            proc unknown {name args} {error "Vivado has no command $name that is known here"}
            proc exit {{status 0}} {sigbit_call exit $status; return -code error sigbit-exit}
            proc puts {args} {sigbit_call puts {*}$args}
            proc open {args} {return [sigbit_call open {*}$args]}
            proc close {args} {}
            proc flush {args} {}
            rename file sigbit_file
            proc file {action args} {
                if {$action in {mkdir copy delete rename}} {return [sigbit_call file $action {*}$args]}
                return [sigbit_file $action {*}$args]
            }
            """
        )

    def run(self, script):
        """Source a script of the folder.

        Raises
        ------
        :exc:`BuildError`
            With Vivado's words where it has some, and the line of the script.
        """
        import tkinter

        path = self._folder / script
        try:
            self._tcl.call("source", str(path))
        except tkinter.TclError as error:
            if str(error) == "sigbit-exit":
                return self
            trace = self._tcl.eval("set ::errorInfo")
            places = re.findall(r'\(file "([^"]+)" line (\d+)\)', trace)
            where = ", ".join(f"{Path(name).name} line {line}" for name, line in places)
            raise BuildError(f"{where or script}: {error}") from None
        return self

    # -- dispatch ------------------------------------------------------------------------------------------------------

    def _handler(self, name):
        command = COMMANDS[name]
        method = getattr(self, "_" + name.replace("::", "_"), None)

        def handle(*words):
            self.calls.append((name, words))
            options, rest = {}, []
            queue = list(words)
            while queue:
                word = queue.pop(0)
                if word in command.values:
                    if not queue:
                        raise BuildError(f"{name}: {word} needs a value")
                    options[word] = queue.pop(0)
                elif word in command.flags:
                    options[word] = True
                elif re.fullmatch(r"-[a-z]\w*", word):
                    raise BuildError(f"{name}: unknown option {word}")
                else:
                    rest.append(word)
            low, high = command.arguments
            if name == "set_property" and "-dict" in options:
                low = high = 1
            if not low <= len(rest) <= high:
                raise BuildError(f"{name}: {len(rest)} arguments {rest}, not {low} to {high}")
            result = method(rest, options) if method else ""
            return "" if result is None else result

        def answered(*words):
            try:
                return 0, handle(*words)
            except BuildError as error:
                return 1, str(error)

        return answered

    def _builtin(self, name, *words):
        self.calls.append((name, words))
        if name == "puts":
            self.output.append(words[-1])
        elif name == "exit":
            self.exit_status = int(words[0])
        return "file1" if name == "open" else ""

    def _object(self, kind, name):
        """A handle as Vivado gives one; its text is the object's name, so it may be used as text."""
        self._objects[name] = (kind, name)
        return name

    # -- properties ----------------------------------------------------------------------------------------------------

    def _set_property(self, rest, options):
        if "-dict" in options:
            words = self._tcl.splitlist(options["-dict"])
            if len(words) % 2:
                raise BuildError("set_property: -dict needs pairs of names and values")
            pairs, target = list(zip(words[::2], words[1::2], strict=True)), rest[0]
        else:
            if len(rest) != 3:
                raise BuildError(f"set_property: expected name, value and object, not {rest}")
            pairs, target = [(rest[0], rest[1])], rest[2]
        if target not in self._objects:
            raise BuildError(f"set_property: there is no object {target!r}")
        kind, name = self._objects[target]
        for key, value in pairs:
            if kind == "cell":
                self._set_parameter(name, key, value)
            elif key not in PROPERTIES.get(kind, ()):
                raise BuildError(f"set_property: a {kind} has no property {key} that is known here")
            elif kind == "core":
                self._core[key] = value
            elif kind == "fileset" and value not in self._tops():
                raise BuildError(f"set_property: there is no module {value} to be the top")

    def _set_parameter(self, cell, key, value):
        cell_object = self._cells[cell]
        name = key.removeprefix("CONFIG.")
        if name == key or name not in cell_object.ip.parameters:
            raise BuildError(f"set_property: {cell} ({cell_object.vlnv}) has no property {key} that is known here")
        try:
            cell_object.parameters[name] = float(value) if "." in value else int(value, 0)
        except ValueError:
            raise BuildError(f"set_property: {key} of {cell} must be a number, not {value!r}") from None

    def _get_property(self, rest, options):
        key, target = rest
        kind, name = self._objects.get(target, ("", ""))
        if key not in PROPERTIES.get(kind, ()):
            raise BuildError(f"get_property: {target!r} has no property {key} that is known here")
        if kind == "timing path":
            return {"SLACK": str(self._slack[name.rpartition(" ")[2]])}.get(key, "core/register/C")
        if key == "PROGRESS":
            return self._runs.get(name, "100%")
        return ""

    # -- project and packaging -----------------------------------------------------------------------------------------

    def _current_project(self, rest, options):
        return self._object("project", "project_1")

    def _current_fileset(self, rest, options):
        return self._object("fileset", "sources_1")

    def _version(self, rest, options):
        return self._manifest["board"]["vivado_versions"][-1]

    def _get_board_parts(self, rest, options):
        return "xilinx.com:zcu102:part0:3.4"

    def _add_files(self, rest, options):
        for name in self._tcl.splitlist(" ".join(rest)) if len(rest) == 1 else rest:
            if not Path(name).is_file() and Path(name).name != "sigbit_system_wrapper.v":
                raise BuildError(f"add_files: there is no file {name}")
            self._files.add(Path(name).name)

    def _get_files(self, rest, options):
        (name,) = rest
        if name not in self._files:
            raise BuildError(f"get_files: no file {name} was added")
        return self._object("file", name)

    def _tops(self):
        tops = {"sigbit_system_wrapper"} if "sigbit_system_wrapper.v" in self._files else set()
        return tops | {module for name in self._files if name.endswith(".v") for module in self._modules(name)}

    def _modules(self, name):
        path = self._folder / name
        if name not in self._parsed:
            self._parsed[name] = verilog_modules(path.read_text()) if path.is_file() else {}
        return self._parsed[name]

    def _make_wrapper(self, rest, options):
        if not self._validated:
            raise BuildError("make_wrapper: the block design was not validated")
        return str(self._folder / "project" / "sigbit_system_wrapper.v")

    def _ipx_package_project(self, rest, options):
        self._core = {"vendor": options["-vendor"], "library": options["-library"]}

    def _ipx_current_core(self, rest, options):
        if not self._core:
            raise BuildError("ipx::current_core: nothing was packaged")
        return self._object("core", "core")

    def _ports(self):
        return self._modules("sigbit.v").get("sigbit", {})

    def _ipx_infer_bus_interface(self, rest, options):
        port, kind, _ = rest
        kinds = ("clock_rtl", "reset_rtl", "interrupt_rtl")
        if not any(kind == f"xilinx.com:signal:{known}:1.0" for known in kinds):
            raise BuildError(f"ipx::infer_bus_interface: {kind} is not known here")
        if port not in self._ports():
            raise BuildError(f"ipx::infer_bus_interface: sigbit.v has no port {port}")
        self._core_buses[port] = kind.split(":")[2].removesuffix("_rtl")

    def _ipx_infer_bus_interfaces(self, rest, options):
        kinds = {"xilinx.com:interface:axis_rtl:1.0": "axis", "xilinx.com:interface:aximm_rtl:1.0": "aximm"}
        if rest[0] not in kinds:
            raise BuildError(f"ipx::infer_bus_interfaces: {rest[0]} is not known here")
        kind = kinds[rest[0]]
        ports = self._ports()
        signals, first = (_AXIS, "tvalid") if kind == "axis" else (_AXI_LITE, "awvalid")
        for port, (direction, _) in ports.items():
            name, _, signal = port.rpartition("_")
            if signal == first and all(f"{name}_{other}" in ports for other in signals):
                data = ports[f"{name}_{'tdata' if kind == 'axis' else 'wdata'}"][1]
                mode = "master" if direction == "output" else "slave"
                segments = ((f"{name}/reg0", 1 << ports[f"{name}_awaddr"][1]),) if kind == "aximm" else ()
                self._core_buses[name] = Bus(mode, kind, data, "", segments=segments)

    def _ipx_get_bus_interfaces(self, rest, options):
        return self._object("bus interface", rest[0]) if rest[0] in self._core_buses else ""

    def _ipx_associate_bus_interfaces(self, rest, options):
        for option in ("-busif", "-clock", "-reset"):
            if option in options and options[option] not in self._core_buses:
                raise BuildError(f"ipx::associate_bus_interfaces: there is no {options[option]}")
        if "-busif" in options:
            self._associated[options["-busif"]] = options["-clock"]

    def _ipx_add_bus_parameter(self, rest, options):
        if rest[0] in self._bus_parameters:
            raise BuildError(f"ipx::add_bus_parameter: there is {rest[0]} already")
        self._bus_parameters.add(rest[0])

    def _ipx_get_bus_parameters(self, rest, options):
        return self._object("bus parameter", rest[0]) if rest[0] in self._bus_parameters else ""

    def _ipx_save_core(self, rest, options):
        buses = {name: bus for name, bus in self._core_buses.items() if isinstance(bus, Bus)}
        without = sorted(set(buses) - set(self._associated))
        if without:
            raise BuildError(f"ipx::save_core: no clock is associated with {', '.join(without)}")
        pins = {}
        inferred = {name: kind for name, kind in self._core_buses.items() if not isinstance(kind, Bus)}
        for port, (direction, _) in self._ports().items():
            if not any(port.startswith(f"{name}_") for name in buses):
                pins[port] = Pin("in" if direction == "input" else "out", inferred.get(port, "data"))
        buses = {
            name: Bus(bus.mode, bus.kind, bus.bits, self._associated[name], segments=bus.segments)
            for name, bus in buses.items()
        }
        core = self._core
        vlnv = f"{core['vendor']}:{core['library']}:{core['name']}"
        self._catalogue[vlnv] = Ip({}, lambda p: buses, lambda p: pins)

    # -- block design --------------------------------------------------------------------------------------------------

    def _create_bd_design(self, rest, options):
        self._design = True
        self._files.add(f"{rest[0]}.bd")

    def _create_bd_cell(self, rest, options):
        if not self._design:
            raise BuildError("create_bd_cell: no block design is open")
        (name,) = rest
        vlnv = options.get("-vlnv", "")
        key = ":".join(vlnv.split(":")[:3])
        if key not in self._catalogue:
            raise BuildError(f"create_bd_cell: there is no IP {vlnv} that is known here")
        if name in self._cells:
            raise BuildError(f"create_bd_cell: there is a cell {name} already")
        ip = self._catalogue[key]
        self._cells[name] = _Cell(vlnv, ip, dict(ip.parameters))
        return self._object("cell", name)

    def _apply_bd_automation(self, rest, options):
        if options.get("-rule") != "xilinx.com:bd_rule:zynq_ultra_ps_e":
            raise BuildError(f"apply_bd_automation: rule {options.get('-rule')} is not known here")

    def _get_bd_cells(self, rest, options):
        if rest[0] not in self._cells:
            raise BuildError(f"get_bd_cells: there is no cell {rest[0]}")
        return self._object("cell", rest[0])

    def _member(self, path, kind):
        cell, _, name = path.partition("/")
        members = getattr(self._cells[cell], kind) if cell in self._cells else {}
        if name not in members:
            words = {"buses": "interface", "pins": "pin"}[kind]
            known = f"; {cell} has {', '.join(members)}" if members else ""
            raise BuildError(f"there is no {words} {path}{known}")
        return members[name]

    def _get_bd_pins(self, rest, options):
        self._member(rest[0], "pins")
        return self._object("pin", rest[0])

    def _get_bd_intf_pins(self, rest, options):
        self._member(rest[0], "buses")
        return self._object("interface pin", rest[0])

    def _connect_bd_net(self, rest, options):
        for name in rest:
            self._member(name, "pins")
        touched = [net for net in self._nets if net & set(rest)]
        merged = set(rest).union(*touched)
        self._nets = [net for net in self._nets if net not in touched] + [merged]
        drivers = sorted(name for name in merged if self._member(name, "pins").direction == "out")
        if len(drivers) > 1:
            raise BuildError(f"connect_bd_net: {' and '.join(drivers)} drive one net")
        kinds = {self._member(name, "pins").kind for name in merged}
        if len(kinds) > 1:
            raise BuildError(f"connect_bd_net: {', '.join(sorted(kinds))} on one net: {', '.join(sorted(merged))}")

    def _connect_bd_intf_net(self, rest, options):
        ends = [self._member(name, "buses") for name in rest]
        if {end.mode for end in ends} != {"master", "slave"}:
            raise BuildError(f"connect_bd_intf_net: {rest[0]} and {rest[1]} are both {ends[0].mode}s")
        if ends[0].kind != ends[1].kind:
            raise BuildError(f"connect_bd_intf_net: {rest[0]} is {ends[0].kind}, {rest[1]} is {ends[1].kind}")
        used = {name for link in self._links for name in link} & set(rest)
        if used:
            raise BuildError(f"connect_bd_intf_net: {', '.join(sorted(used))} is connected already")
        if ends[0].kind == "axis" and ends[0].bits != ends[1].bits:
            raise BuildError(
                f"connect_bd_intf_net: {rest[0]} has {ends[0].bits} bits of TDATA, {rest[1]} has {ends[1].bits}"
            )
        self._links.append(tuple(sorted(rest, key=lambda name: self._member(name, "buses").mode)))

    def _spaces(self):
        """Address space -> the master's interface."""
        return {
            f"{cell}/{bus.space}": f"{cell}/{name}"
            for cell, found in self._cells.items()
            for name, bus in found.buses.items()
            if bus.space
        }

    def _segments(self):
        """Segment -> the slave's interface and its least size."""
        return {
            f"{cell}/{segment}": (f"{cell}/{name}", size)
            for cell, found in self._cells.items()
            for name, bus in found.buses.items()
            for segment, size in bus.segments
        }

    def _get_bd_addr_spaces(self, rest, options):
        if rest[0] not in self._spaces():
            raise BuildError(f"get_bd_addr_spaces: there is no address space {rest[0]}")
        return self._object("address space", rest[0])

    def _get_bd_addr_segs(self, rest, options):
        if rest[0] not in self._segments():
            raise BuildError(f"get_bd_addr_segs: there is no segment {rest[0]}")
        return self._object("segment", rest[0])

    def _assign_bd_address(self, rest, options):
        try:
            offset = int(options["-offset"], 0)
            text = options["-range"]
            size = int(text[:-1]) * _SIZES[text[-1]] if text[-1] in _SIZES else int(text, 0)
            space = options["-target_address_space"]
        except (KeyError, ValueError) as error:
            raise BuildError(
                f"assign_bd_address: expected -offset, -range and -target_address_space: {error}"
            ) from None
        (segment,) = rest
        slave, least = self._segments()[segment]
        if slave not in self._reached(self._spaces()[space]):
            raise BuildError(f"assign_bd_address: {space} does not reach {segment}")
        if size & (size - 1) or offset % size:
            raise BuildError(f"assign_bd_address: {segment} at {offset:#x} is not aligned to its {size:#x} bytes")
        if size < least:
            raise BuildError(f"assign_bd_address: {segment} needs {least:#x} bytes, not {size:#x}")
        for other_space, other, start, length in self._assigned:
            if other_space == space and start < offset + size and offset < start + length:
                raise BuildError(f"assign_bd_address: {segment} and {other} overlap at {max(start, offset):#x}")
        self._assigned.append((space, segment, offset, size))

    def _reached(self, master):
        """Slaves behind a master's interface, through any SmartConnects."""
        links = dict(self._links)
        slave = links.get(master)
        if slave is None:
            return []
        cell = slave.partition("/")[0]
        if not self._cells[cell].vlnv.startswith("xilinx.com:ip:smartconnect"):
            return [slave]
        masters = (f"{cell}/{name}" for name, bus in self._cells[cell].buses.items() if bus.mode == "master")
        return [found for inner in masters for found in self._reached(inner)]

    def _validate_bd_design(self, rest, options):
        problems = [*self._open_ends(), *self._clocks(), *self._unassigned(), *self._against_manifest()]
        if problems:
            raise BuildError("validate_bd_design: " + "; ".join(problems))
        self._validated = True

    def _open_ends(self):
        linked = {name for link in self._links for name in link}
        wired = set().union(*self._nets) if self._nets else set()
        for cell, found in self._cells.items():
            for name in found.buses:
                if f"{cell}/{name}" not in linked:
                    yield f"interface {cell}/{name} is not connected"
            for name, pin in found.pins.items():
                path = f"{cell}/{name}"
                if pin.direction == "in" and pin.required and path not in wired:
                    yield f"pin {path} is not connected"
                if cell == "accelerator" and pin.direction == "out" and path not in wired:
                    yield f"pin {path} is not connected"
        for net in self._nets:
            if not any(self._member(name, "pins").direction == "out" for name in net):
                yield f"nothing drives {', '.join(sorted(net))}"

    def _clocks(self):
        for master, slave in self._links:
            nets = []
            for path in (master, slave):
                clock = f"{path.partition('/')[0]}/{self._member(path, 'buses').clock}"
                nets.append(next((tuple(sorted(net)) for net in self._nets if clock in net), clock))
            if nets[0] != nets[1]:
                yield f"{master} and {slave} have different clocks"

    def _unassigned(self):
        assigned = {(space, segment) for space, segment, _, _ in self._assigned}
        for space, master in self._spaces().items():
            for slave in self._reached(master):
                for segment, (owner, _) in self._segments().items():
                    if owner == slave and (space, segment) not in assigned:
                        yield f"{segment} has no address in {space}"

    def _against_manifest(self):
        bits = self._manifest["configuration"]["stream_bits"]
        for cell, found in self._cells.items():
            for name, bus in found.buses.items():
                if bus.kind == "axis" and bus.bits != bits:
                    yield f"{cell}/{name} has {bus.bits} bits, the manifest's streams have {bits}"
        accelerators = [cell for cell in self._cells.values() if cell.vlnv.startswith("sigbit:")]
        if len(accelerators) != 1:
            yield f"there are {len(accelerators)} accelerators, not 1"
        for name in self._manifest["buses"]:
            if not any(name in cell.buses for cell in accelerators):
                yield f"the manifest's bus {name} is not on the accelerator"
        for found in self._cells.values():
            asked = found.parameters.get("PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ")
            if asked is not None and asked != self._manifest["board"]["clock_mhz"]:
                yield f"the clock is {asked} MHz, the manifest's is {self._manifest['board']['clock_mhz']} MHz"

    # -- runs and designs ----------------------------------------------------------------------------------------------

    def _get_runs(self, rest, options):
        if rest[0] not in ("synth_1", "impl_1"):
            raise BuildError(f"get_runs: there is no run {rest[0]}")
        return self._object("run", rest[0])

    def _get_timing_paths(self, rest, options):
        return self._object("timing path", f"path {options.get('-delay_type', 'max')}")

    def _read_verilog(self, rest, options):
        self._add_files(rest, options)

    def _read_xdc(self, rest, options):
        self._add_files(rest, options)

    def _synth_design(self, rest, options):
        if options.get("-top") not in self._tops():
            raise BuildError(f"synth_design: there is no module {options.get('-top')}")

    def _get_ports(self, rest, options):
        if not any(
            rest[0] in ports for name in self._files if name.endswith(".v") for ports in self._modules(name).values()
        ):
            raise BuildError(f"get_ports: there is no port {rest[0]}")
        return self._object("port", rest[0])
