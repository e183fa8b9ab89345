"""What goes into the FPGA of a ULX3S: PLL, lamps, and an accelerator behind the UART of its USB port."""

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from ..errors import BuildError
from ..serial import SerialAccelerator

__all__ = ["Platform", "Ulx3s", "pll_dividers"]

#: ECP5 and ECP5-5G data sheet, sysCLOCK PLL timing: limits of phase detector and oscillator, in Hz.
_DETECTOR_HZ = (3.125e6, 400e6)
_OSCILLATOR_HZ = (400e6, 800e6)


class Platform(ULX3S_85F_Platform):
    """The board as amaranth-boards describes it; what programs it is for the user to choose."""

    required_tools = ("yosys", "nextpnr-ecp5", "ecppack")


def pll_dividers(input_hz, output_hz):
    """Dividers ``(input, feedback, output)`` of an EHXPLLL whose feedback is its output.

    Raises
    ------
    :exc:`BuildError`
        If no dividers give exactly this frequency; the message names the nearest that some do.
    """
    found = {}
    for divider in range(1, 129):
        detector = input_hz / divider
        if not _DETECTOR_HZ[0] <= detector <= _DETECTOR_HZ[1]:
            continue
        for feedback in range(1, 81):
            frequency = detector * feedback
            outputs = [o for o in range(1, 129) if _OSCILLATOR_HZ[0] <= frequency * o <= _OSCILLATOR_HZ[1]]
            if outputs:
                # In the middle of the oscillator's range.
                best = min(outputs, key=lambda o: abs(frequency * o - sum(_OSCILLATOR_HZ) / 2))
                found.setdefault(frequency, (divider, feedback, best))
    if output_hz not in found:
        nearest = min(found, key=lambda frequency: abs(frequency - output_hz))
        raise BuildError(
            f"The PLL cannot make {output_hz / 1e6:g} MHz of {input_hz / 1e6:g} MHz; the nearest is "
            f"{nearest / 1e6:.6g} MHz"
        )
    return found[output_hz]


class Ulx3s(Elaboratable):
    """Top of the design.

    Lamps: 0 the PLL is locked, 1 interrupt, 2 the serial link waits for a BREAK.

    Parameters
    ----------
    config : AcceleratorConfig
    clock_hz : int
        Of everything behind the PLL.
    baud : int
    """

    def __init__(self, config, clock_hz, baud):
        self._config, self._clock_hz, self._baud = config, clock_hz, baud

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.clock = clock = io.Buffer("i", platform.request("clk25", 0, dir="-"))
        reference_hz = int(platform.default_clk_frequency)
        divider, feedback, output = pll_dividers(reference_hz, self._clock_hz)
        generated, locked = Signal(), Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=str(reference_hz / 1e6),
            a_FREQUENCY_PIN_CLKOP=str(self._clock_hz / 1e6),
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=output,
            p_CLKOP_CPHASE=output - 1,
            p_CLKOP_FPHASE=0,
            p_FEEDBK_PATH="CLKOP",
            p_CLKI_DIV=divider,
            p_CLKFB_DIV=feedback,
            i_CLKI=clock.i,
            i_CLKFB=generated,
            i_RST=0,
            i_STDBY=0,
            i_PHASESEL0=0,
            i_PHASESEL1=0,
            i_PHASEDIR=1,
            i_PHASESTEP=1,
            i_PHASELOADREG=1,
            i_PLLWAKESYNC=0,
            i_ENCLKOP=0,
            o_CLKOP=generated,
            o_LOCK=locked,
        )
        m.d.comb += ClockSignal().eq(generated)
        m.submodules.reset = ResetSynchronizer(~locked, domain="sync")

        uart = platform.request("uart", 0, dir={"rx": "-", "tx": "-", "rts": "-", "dtr": "-"})
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.submodules.accelerator = accelerator = SerialAccelerator(self._config, self._clock_hz, self._baud)
        m.d.comb += [accelerator.rx.eq(rx.i), tx.o.eq(accelerator.tx)]
        for number, state in enumerate((locked, accelerator.irq, accelerator.dead)):
            m.submodules[f"led_{number}"] = led = io.Buffer("o", platform.request("led", number, dir="-"))
            m.d.comb += led.o.eq(state)
        return m
