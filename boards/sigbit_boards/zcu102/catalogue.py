"""What the generated scripts may say to Vivado: commands with their options, and IP with parameters, buses and pins.

Written from AMD's guides (UG835 Tcl commands; PG021 AXI DMA, PG201 Zynq UltraScale+ MPSoC, PG247 SmartConnect,
PG099 interrupt controller, PG164 reset) and not from the scripts, so that a name misspelt there is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["CATALOGUE", "COMMANDS", "PROPERTIES", "Bus", "Command", "Ip", "Pin"]


@dataclass(frozen=True)
class Command:
    """Options with a value, options without, and how many other arguments."""

    values: frozenset = frozenset()
    flags: frozenset = frozenset()
    arguments: tuple = (0, 0)


def _command(values="", flags="", arguments=(0, 0)):
    return Command(frozenset(values.split()), frozenset(flags.split()), arguments)


COMMANDS = {
    # project
    "create_project": _command("-part", "-force -in_memory -quiet", (0, 2)),
    "close_project": _command(flags="-delete -quiet"),
    "current_project": _command(flags="-quiet", arguments=(0, 1)),
    "current_fileset": _command(flags="-constrset -simset -quiet", arguments=(0, 1)),
    "add_files": _command("-fileset -of_objects", "-norecurse -scan_for_includes -quiet", (1, 100)),
    "get_files": _command("-of_objects -filter", "-all -quiet", (0, 1)),
    "update_compile_order": _command("-fileset", "-quiet"),
    "update_ip_catalog": _command("-repo_path", "-rebuild -scan_changes -quiet"),
    "get_board_parts": _command("-filter", "-quiet -latest_file_version -regexp -nocase", (0, 1)),
    "make_wrapper": _command("-files", "-top -testbench -inst_template -import -force -quiet"),
    "version": _command(flags="-short -quiet"),
    "set_property": _command("-dict", "-quiet", (1, 3)),
    "get_property": _command(flags="-quiet -min -max", arguments=(2, 2)),
    # packaging
    "ipx::package_project": _command(
        "-root_dir -vendor -library -taxonomy -module -set_current", "-import_files -force -quiet"
    ),
    "ipx::current_core": _command(),
    "ipx::infer_bus_interface": _command(arguments=(3, 3)),
    "ipx::infer_bus_interfaces": _command(arguments=(2, 2)),
    "ipx::get_bus_interfaces": _command("-of_objects", "-quiet", (0, 1)),
    "ipx::associate_bus_interfaces": _command("-busif -clock -reset", arguments=(1, 1)),
    "ipx::add_bus_parameter": _command(arguments=(2, 2)),
    "ipx::get_bus_parameters": _command("-of_objects", "-quiet", (0, 1)),
    "ipx::update_checksums": _command(arguments=(1, 1)),
    "ipx::check_integrity": _command(flags="-quiet", arguments=(1, 1)),
    "ipx::save_core": _command(arguments=(1, 1)),
    # block design
    "create_bd_design": _command(flags="-quiet", arguments=(1, 1)),
    "create_bd_cell": _command("-type -vlnv -reference", "-quiet", (1, 1)),
    "apply_bd_automation": _command("-rule -config", arguments=(1, 1)),
    "get_bd_cells": _command(arguments=(1, 1)),
    "get_bd_pins": _command(arguments=(1, 1)),
    "get_bd_intf_pins": _command(arguments=(1, 1)),
    "get_bd_addr_spaces": _command(arguments=(1, 1)),
    "get_bd_addr_segs": _command(arguments=(1, 1)),
    "connect_bd_net": _command("-net", arguments=(2, 100)),
    "connect_bd_intf_net": _command("-intf_net", arguments=(2, 2)),
    "assign_bd_address": _command("-offset -range -target_address_space", "-force", (0, 1)),
    "validate_bd_design": _command(flags="-force"),
    "save_bd_design": _command(),
    # runs
    "get_runs": _command(arguments=(1, 1)),
    "launch_runs": _command("-jobs -to_step", "-quiet", (1, 10)),
    "wait_on_run": _command("-timeout", arguments=(1, 1)),
    "open_run": _command("-name", arguments=(1, 1)),
    # design
    "read_verilog": _command(flags="-sv", arguments=(1, 100)),
    "read_xdc": _command("-mode -cells -ref", "-unmanaged", (1, 100)),
    "synth_design": _command("-top -part -mode -flatten_hierarchy -directive -generic -name", "-rtl -assert"),
    "opt_design": _command("-directive"),
    "place_design": _command("-directive", "-timing_summary"),
    "phys_opt_design": _command("-directive"),
    "route_design": _command("-directive", "-tns_cleanup"),
    "open_checkpoint": _command(arguments=(1, 1)),
    "write_checkpoint": _command(flags="-force", arguments=(1, 1)),
    "close_design": _command(),
    "create_clock": _command("-name -period -waveform", "-add", (0, 1)),
    "get_ports": _command(flags="-quiet", arguments=(1, 1)),
    "get_timing_paths": _command("-delay_type -max_paths -nworst -from -to -through", "-quiet"),
    "report_utilization": _command("-file -hierarchical_depth -cells", "-hierarchical"),
    "report_timing_summary": _command("-delay_type -max_paths -nworst -file", "-report_unconstrained"),
    "report_clock_interaction": _command("-file -delay_type"),
    "report_drc": _command("-file -checks"),
    "report_methodology": _command("-file -checks"),
    "report_power": _command("-file -format -xpe", "-advisory"),
    "read_saif": _command("-strip_path -out_file", "-no_strip", (1, 1)),
    "write_bitstream": _command(flags="-force -bin_file -quiet", arguments=(1, 1)),
    "write_hw_platform": _command("-file", "-fixed -include_bit -force -minimal", (0, 1)),
}

#: Properties of objects that are no cells of the block design.
PROPERTIES = {
    "project": {"board_part", "ip_repo_paths", "target_language", "default_lib"},
    "fileset": {"top"},
    "file": {"USED_IN", "file_type"},
    "core": {"name", "version", "display_name", "description", "vendor_display_name", "supported_families"},
    "bus parameter": {"value"},
    "run": {"strategy", "PROGRESS", "STATUS"},
    "timing path": {"SLACK", "STARTPOINT_PIN", "ENDPOINT_PIN"},
}


@dataclass(frozen=True)
class Bus:
    """An interface: ``mode`` is ``master`` or ``slave``, ``kind`` ``axis`` or ``aximm``; ``clock`` names a pin.

    ``space``: a master's address space; ``segments``: what a slave offers, as ``(name, least size)``.
    """

    mode: str
    kind: str
    bits: int
    clock: str
    space: str = ""
    segments: tuple = ()


@dataclass(frozen=True)
class Pin:
    """``direction`` is ``in`` or ``out``; ``kind`` clock, reset (low), interrupt or data."""

    direction: str
    kind: str
    required: bool = True


@dataclass(frozen=True)
class Ip:
    """``parameters``: names with defaults; ``buses`` and ``pins``: functions of the parameters."""

    parameters: dict = field(default_factory=dict)
    buses: Callable[[dict], dict[str, Bus]] = lambda p: {}
    pins: Callable[[dict], dict[str, Pin]] = lambda p: {}


_GIGABYTE = 1 << 30


def _ps_buses(p):
    buses = {}
    for index, name in enumerate(("M_AXI_HPM0_FPD", "M_AXI_HPM1_FPD", "M_AXI_HPM0_LPD")):
        if p[f"PSU__USE__M_AXI_GP{index}"]:
            clock = name.lower().replace("m_axi_", "maxi") + "_aclk"
            buses[name] = Bus("master", "aximm", p[f"PSU__MAXIGP{index}__DATA_WIDTH"], clock, "Data")
    for index in range(4):
        group = index + 2
        if p[f"PSU__USE__S_AXI_GP{group}"]:
            low, high = (f"SAXIGP{group}/HP{index}_DDR_{part}" for part in ("LOW", "HIGH"))
            segments = ((low, 2 * _GIGABYTE), (high, 2 * _GIGABYTE))
            bits = p[f"PSU__SAXIGP{group}__DATA_WIDTH"]
            buses[f"S_AXI_HP{index}_FPD"] = Bus("slave", "aximm", bits, f"saxihp{index}_fpd_aclk", segments=segments)
    return buses


def _ps_pins(p):
    pins = {bus.clock: Pin("in", "clock") for bus in _ps_buses(p).values()}
    if p["PSU__FPGA_PL0_ENABLE"]:
        pins["pl_clk0"] = Pin("out", "clock")
    pins["pl_resetn0"] = Pin("out", "reset")
    if p["PSU__USE__IRQ0"]:
        pins["pl_ps_irq0"] = Pin("in", "interrupt")
    return pins


def _dma_buses(p):
    buses = {"S_AXI_LITE": Bus("slave", "aximm", 32, "s_axi_lite_aclk", segments=(("S_AXI_LITE/Reg", 4096),))}
    if p["c_include_mm2s"]:
        clock = "m_axi_mm2s_aclk"
        buses["M_AXI_MM2S"] = Bus("master", "aximm", p["c_m_axi_mm2s_data_width"], clock, "Data_MM2S")
        buses["M_AXIS_MM2S"] = Bus("master", "axis", p["c_m_axis_mm2s_tdata_width"], clock)
    if p["c_include_s2mm"]:
        clock = "m_axi_s2mm_aclk"
        buses["M_AXI_S2MM"] = Bus("master", "aximm", p["c_m_axi_s2mm_data_width"], clock, "Data_S2MM")
        buses["S_AXIS_S2MM"] = Bus("slave", "axis", p["c_s_axis_s2mm_tdata_width"], clock)
    if p["c_include_sg"]:
        buses["M_AXI_SG"] = Bus("master", "aximm", 32, "m_axi_sg_aclk", "Data_SG")
    return buses


def _dma_pins(p):
    pins = {bus.clock: Pin("in", "clock") for bus in _dma_buses(p).values()}
    pins["axi_resetn"] = Pin("in", "reset")
    for direction in ("mm2s", "s2mm"):
        if p[f"c_include_{direction}"]:
            pins[f"{direction}_introut"] = Pin("out", "interrupt")
            pins[f"{direction}_prmry_reset_out_n"] = Pin("out", "reset")
    return pins


def _smartconnect_buses(p):
    # The widths follow from what is connected.
    slaves = {f"S{index:02}_AXI": Bus("slave", "aximm", 0, "aclk") for index in range(p["NUM_SI"])}
    return slaves | {f"M{index:02}_AXI": Bus("master", "aximm", 0, "aclk") for index in range(p["NUM_MI"])}


#: By name without version; the accelerator's own entry is made of its Verilog.
CATALOGUE = {
    "xilinx.com:ip:zynq_ultra_ps_e": Ip(
        {
            "PSU__FPGA_PL0_ENABLE": 1,
            "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": 100,
            "PSU__USE__IRQ0": 0,
            "PSU__USE__IRQ1": 0,
            **{f"PSU__USE__M_AXI_GP{index}": int(index < 2) for index in range(3)},
            **{f"PSU__MAXIGP{index}__DATA_WIDTH": 128 for index in range(3)},
            **{f"PSU__USE__S_AXI_GP{index}": 0 for index in range(7)},
            **{f"PSU__SAXIGP{index}__DATA_WIDTH": 128 for index in range(7)},
        },
        _ps_buses,
        _ps_pins,
    ),
    "xilinx.com:ip:axi_dma": Ip(
        {
            "c_include_sg": 1,
            "c_sg_length_width": 14,
            "c_sg_include_stscntrl_strm": 1,
            "c_addr_width": 32,
            "c_micro_dma": 0,
            "c_single_interface": 0,
            "c_include_mm2s": 1,
            "c_include_mm2s_dre": 0,
            "c_m_axi_mm2s_data_width": 32,
            "c_m_axis_mm2s_tdata_width": 32,
            "c_mm2s_burst_size": 16,
            "c_include_s2mm": 1,
            "c_include_s2mm_dre": 0,
            "c_m_axi_s2mm_data_width": 32,
            "c_s_axis_s2mm_tdata_width": 32,
            "c_s2mm_burst_size": 16,
        },
        _dma_buses,
        _dma_pins,
    ),
    "xilinx.com:ip:smartconnect": Ip(
        {"NUM_SI": 1, "NUM_MI": 1, "NUM_CLKS": 1, "HAS_ARESETN": 1},
        _smartconnect_buses,
        lambda p: {"aclk": Pin("in", "clock"), "aresetn": Pin("in", "reset")},
    ),
    "xilinx.com:ip:proc_sys_reset": Ip(
        {"C_AUX_RESET_HIGH": 0, "C_EXT_RST_WIDTH": 4, "C_NUM_PERP_ARESETN": 1},
        pins=lambda p: {
            "slowest_sync_clk": Pin("in", "clock"),
            "ext_reset_in": Pin("in", "reset"),
            "aux_reset_in": Pin("in", "reset", required=False),
            "mb_debug_sys_rst": Pin("in", "reset", required=False),
            "dcm_locked": Pin("in", "data", required=False),
            "peripheral_aresetn": Pin("out", "reset"),
            "interconnect_aresetn": Pin("out", "reset"),
        },
    ),
    "xilinx.com:ip:xlconcat": Ip(
        {"NUM_PORTS": 2},
        pins=lambda p: (
            {f"In{index}": Pin("in", "interrupt") for index in range(p["NUM_PORTS"])}
            | {"dout": Pin("out", "interrupt")}
        ),
    ),
    "xilinx.com:ip:axi_intc": Ip(
        {"C_IRQ_CONNECTION": 0, "C_IRQ_IS_LEVEL": 1, "C_KIND_OF_INTR": 0xFFFFFFFF},
        lambda p: {"s_axi": Bus("slave", "aximm", 32, "s_axi_aclk", segments=(("S_AXI/Reg", 4096),))},
        lambda p: {
            "s_axi_aclk": Pin("in", "clock"),
            "s_axi_aresetn": Pin("in", "reset"),
            "intr": Pin("in", "interrupt"),
            **({"irq": Pin("out", "interrupt")} if p["C_IRQ_CONNECTION"] else {}),
        },
    ),
}
