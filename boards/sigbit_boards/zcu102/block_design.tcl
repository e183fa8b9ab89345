# Block design: processing system, DMA without scatter-gather, accelerator, interrupts, one clock.
# Sourced by build.tcl in an open project; `sigbit` is the array of settings.tcl.

proc cell {name vlnv settings} {
    create_bd_cell -type ip -vlnv $vlnv $name
    if {[llength $settings]} {
        set_property -dict $settings [get_bd_cells $name]
    }
}

proc bus {from to} {
    connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
}

proc wire {from args} {
    foreach to $args {
        connect_bd_net [get_bd_pins $from] [get_bd_pins $to]
    }
}

create_bd_design sigbit_system

# Processing system with the DDR memory, pins and clocks of the board.
cell ps xilinx.com:ip:zynq_ultra_ps_e {}
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} [get_bd_cells ps]
set_property -dict [list \
    CONFIG.PSU__FPGA_PL0_ENABLE 1 \
    CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $sigbit(clock_mhz) \
    CONFIG.PSU__USE__IRQ0 1 \
    CONFIG.PSU__USE__M_AXI_GP0 1 \
    CONFIG.PSU__USE__M_AXI_GP1 0 \
    CONFIG.PSU__USE__M_AXI_GP2 0 \
    CONFIG.PSU__MAXIGP0__DATA_WIDTH 32 \
    CONFIG.PSU__USE__S_AXI_GP2 1 \
    CONFIG.PSU__SAXIGP2__DATA_WIDTH 128 \
    CONFIG.PSU__USE__S_AXI_GP3 1 \
    CONFIG.PSU__SAXIGP3__DATA_WIDTH 128 \
] [get_bd_cells ps]

cell accelerator sigbit:user:accelerator:1.0 {}
cell axi_dma xilinx.com:ip:axi_dma [list \
    CONFIG.c_include_sg 0 \
    CONFIG.c_sg_length_width 26 \
    CONFIG.c_addr_width 40 \
    CONFIG.c_include_mm2s 1 \
    CONFIG.c_include_mm2s_dre 0 \
    CONFIG.c_m_axi_mm2s_data_width $sigbit(stream_bits) \
    CONFIG.c_m_axis_mm2s_tdata_width $sigbit(stream_bits) \
    CONFIG.c_mm2s_burst_size 16 \
    CONFIG.c_include_s2mm 1 \
    CONFIG.c_include_s2mm_dre 0 \
    CONFIG.c_m_axi_s2mm_data_width $sigbit(stream_bits) \
    CONFIG.c_s_axis_s2mm_tdata_width $sigbit(stream_bits) \
    CONFIG.c_s2mm_burst_size 16 \
]
cell reset xilinx.com:ip:proc_sys_reset {}
cell control xilinx.com:ip:smartconnect {CONFIG.NUM_SI 1 CONFIG.NUM_MI 3}
cell memory_read xilinx.com:ip:smartconnect {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1}
cell memory_write xilinx.com:ip:smartconnect {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1}
cell interrupts xilinx.com:ip:xlconcat {CONFIG.NUM_PORTS 3}
# PYNQ waits for interrupts behind an interrupt controller only.
cell axi_intc xilinx.com:ip:axi_intc {CONFIG.C_IRQ_CONNECTION 1}

# Streams.
bus axi_dma/M_AXIS_MM2S accelerator/s_axis
bus accelerator/m_axis axi_dma/S_AXIS_S2MM

# Memory: each direction has a port of its own.
bus axi_dma/M_AXI_MM2S memory_read/S00_AXI
bus memory_read/M00_AXI ps/S_AXI_HP0_FPD
bus axi_dma/M_AXI_S2MM memory_write/S00_AXI
bus memory_write/M00_AXI ps/S_AXI_HP1_FPD

# Registers.
bus ps/M_AXI_HPM0_FPD control/S00_AXI
bus control/M00_AXI accelerator/s_axil
bus control/M01_AXI axi_dma/S_AXI_LITE
bus control/M02_AXI axi_intc/s_axi

# Interrupts; the numbers are found by name at run time.
wire accelerator/irq interrupts/In0
wire axi_dma/mm2s_introut interrupts/In1
wire axi_dma/s2mm_introut interrupts/In2
wire interrupts/dout axi_intc/intr
wire axi_intc/irq ps/pl_ps_irq0

# One clock for all, and its resets.
wire ps/pl_clk0 reset/slowest_sync_clk accelerator/aclk \
    axi_dma/s_axi_lite_aclk axi_dma/m_axi_mm2s_aclk axi_dma/m_axi_s2mm_aclk \
    control/aclk memory_read/aclk memory_write/aclk axi_intc/s_axi_aclk \
    ps/maxihpm0_fpd_aclk ps/saxihp0_fpd_aclk ps/saxihp1_fpd_aclk
wire ps/pl_resetn0 reset/ext_reset_in
wire reset/peripheral_aresetn accelerator/aresetn axi_dma/axi_resetn axi_intc/s_axi_aresetn
wire reset/interconnect_aresetn control/aresetn memory_read/aresetn memory_write/aresetn

# Addresses: registers as the processors see them, DDR as the DMA sees it.
assign_bd_address -offset 0xA0000000 -range 64K -target_address_space [get_bd_addr_spaces ps/Data] \
    [get_bd_addr_segs axi_dma/S_AXI_LITE/Reg]
assign_bd_address -offset 0xA0010000 -range 64K -target_address_space [get_bd_addr_spaces ps/Data] \
    [get_bd_addr_segs accelerator/s_axil/reg0]
assign_bd_address -offset 0xA0020000 -range 64K -target_address_space [get_bd_addr_spaces ps/Data] \
    [get_bd_addr_segs axi_intc/S_AXI/Reg]
assign_bd_address -offset 0x00000000 -range 2G -target_address_space [get_bd_addr_spaces axi_dma/Data_MM2S] \
    [get_bd_addr_segs ps/SAXIGP2/HP0_DDR_LOW]
assign_bd_address -offset 0x800000000 -range 2G -target_address_space [get_bd_addr_spaces axi_dma/Data_MM2S] \
    [get_bd_addr_segs ps/SAXIGP2/HP0_DDR_HIGH]
assign_bd_address -offset 0x00000000 -range 2G -target_address_space [get_bd_addr_spaces axi_dma/Data_S2MM] \
    [get_bd_addr_segs ps/SAXIGP3/HP1_DDR_LOW]
assign_bd_address -offset 0x800000000 -range 2G -target_address_space [get_bd_addr_spaces axi_dma/Data_S2MM] \
    [get_bd_addr_segs ps/SAXIGP3/HP1_DDR_HIGH]

validate_bd_design
save_bd_design
