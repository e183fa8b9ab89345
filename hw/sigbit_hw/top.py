"""The accelerator with clock, reset and AXI port names, as it goes into a block design."""

from amaranth import *
from amaranth.lib.wiring import Flow

from .bus.axi_lite import AxiLiteSignature
from .core import Accelerator

__all__ = ["Top"]


class Top(Elaboratable):
    """:class:`~sigbit_hw.core.Accelerator` on clock ``aclk`` with active-low synchronous reset ``aresetn``.

    An ``Elaboratable`` and not a component, because its ports have names that no signature gives.

    Attributes
    ----------
    inputs, outputs : dict of str to Signal
        Every port of the Verilog module, by name.
    """

    def __init__(self, config):
        self._config = config
        beat, keep = config.stream_bits, config.stream_bits // 8
        # Vivado's interface inference reads this attribute.
        clocking = {"X_INTERFACE_PARAMETER": "ASSOCIATED_BUSIF s_axis:m_axis:s_axil, ASSOCIATED_RESET aresetn"}
        self.inputs = {"aclk": Signal(name="aclk", attrs=clocking), "aresetn": Signal(name="aresetn")}
        self.outputs = {"irq": Signal(name="irq")}

        def port(group, name, shape=1):
            group[name] = Signal(shape, name=name)

        for name, forward, backward in (("s_axis", self.inputs, self.outputs), ("m_axis", self.outputs, self.inputs)):
            port(forward, f"{name}_tdata", beat)
            port(forward, f"{name}_tkeep", keep)
            port(forward, f"{name}_tlast")
            port(forward, f"{name}_tvalid")
            port(backward, f"{name}_tready")
        for name, member in AxiLiteSignature().members.items():
            # What flows out of a master comes in here.
            port(self.inputs if member.flow == Flow.Out else self.outputs, f"s_axil_{name}", member.shape)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.core = core = Accelerator(self._config)
        i, o = self.inputs, self.outputs
        m.d.comb += [
            ClockSignal().eq(i["aclk"]),
            ResetSignal().eq(~i["aresetn"]),
            o["irq"].eq(core.irq),
            core.s_axis.valid.eq(i["s_axis_tvalid"]),
            o["s_axis_tready"].eq(core.s_axis.ready),
            o["m_axis_tvalid"].eq(core.m_axis.valid),
            core.m_axis.ready.eq(i["m_axis_tready"]),
        ]
        for name in ("data", "keep", "last"):
            m.d.comb += core.s_axis.payload[name].eq(i[f"s_axis_t{name}"])
            m.d.comb += o[f"m_axis_t{name}"].eq(core.m_axis.payload[name])
        for name in AxiLiteSignature().members:
            inner = getattr(core.s_axil, name)
            port = f"s_axil_{name}"
            m.d.comb += inner.eq(i[port]) if port in i else o[port].eq(inner)
        return m
