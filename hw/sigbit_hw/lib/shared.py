"""Identical components, elaborated and emitted once.

Amaranth elaborates every instance of a component anew. A grid of a few thousand equal cells is therefore placed as
black boxes, and the cell itself is converted once under its own name.
"""

import re

from amaranth import *
from amaranth.back import verilog
from amaranth.hdl import Fragment
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

__all__ = ["SharedModules", "component_ports", "emit_modules", "instantiate"]

_WAKE = re.compile(r"^  reg (\\\$auto\$verilog_backend\S+)  = 0;$", re.MULTILINE)


class SharedModules:
    """Platform of a Verilog conversion that collects shared components.

    Attributes
    ----------
    shared_modules : dict
        Module name -> component, in order of first use.
    family : str or None
        Device whose primitives may be used (:mod:`.ultrascale`).
    """

    def __init__(self, family=None):
        self.shared_modules = {}
        self.family = family


def component_ports(component):
    """Ports of a component by name: ``{name: (value, direction)}``, nested members joined by one underscore."""
    ports = {}
    for path, member, value in component.signature.flatten(component):
        direction = PortDirection.Input if member.flow == wiring.In else PortDirection.Output
        ports["_".join(str(part) for part in path)] = (Value.cast(value), direction)
    return ports


def instantiate(m, platform, name, component):
    """Add ``component`` to ``m`` as submodule ``name``.

    On a platform with ``shared_modules`` it becomes an instance of a module named after ``component.module_name``,
    which must be fully determined by the component's parameters; :func:`emit_modules` converts each such module once.
    Everywhere else, as in simulation, it is an ordinary submodule. Its interface is the same either way. The
    component uses the ``sync`` domain only. A component with a method ``verilog(name)`` is emitted as that text.
    """
    shared = getattr(platform, "shared_modules", None)
    if shared is None:
        m.submodules[name] = component
        return
    module = f"sigbit_{component.module_name}"
    shared.setdefault(module, component)
    wires = {
        f"{'i' if direction is PortDirection.Input else 'o'}_{port}": value
        for port, (value, direction) in component_ports(component).items()
    }
    m.submodules[name] = Instance(module, i_clk=ClockSignal("sync"), i_rst=ResetSignal("sync"), **wires)


def emit_modules(top, name, ports=None, family=None):
    """Verilog of ``top`` under the name ``name``, followed by every shared module below it, each once.

    ``ports`` is a dict as :func:`component_ports` returns it, by default the component's own. If the design does not
    define the ``sync`` domain, its ``clk`` and ``rst`` become ports as well. Equal designs give equal text. ``family``
    names the device whose primitives may be used.
    """
    platform = SharedModules(family)
    texts = [_convert(Fragment.get(top, platform), name, component_ports(top) if ports is None else ports)]
    emitted = {name}
    while pending := [module for module in platform.shared_modules if module not in emitted]:
        for module in pending:
            component = platform.shared_modules[module]
            emitted.add(module)
            if hasattr(component, "verilog"):
                texts.append(component.verilog(module))
                continue
            fragment = Fragment.get(component, platform)
            clock = ClockDomain("sync")
            fragment.add_domains(clock)
            clock_ports = {"clk": (clock.clk, PortDirection.Input), "rst": (clock.rst, PortDirection.Input)}
            texts.append(_convert(fragment, module, clock_ports | component_ports(component)))
    return "\n".join(texts)


def _convert(fragment, name, ports):
    text = verilog.convert(fragment, name=name, ports=ports, emit_src=False, strip_internal_attrs=True)
    # Yosys wakes processes without inputs by the first value of a register. As an initializer, SystemVerilog assigns it
    # before any process waits for it; a simulator that follows the rule then leaves their outputs undefined.
    return _WAKE.sub(r"  reg \1 ;\n  initial \1 = 0;", text)
