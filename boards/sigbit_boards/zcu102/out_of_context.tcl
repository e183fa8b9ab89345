# The grid alone at several clocks:  vivado -mode batch -source out_of_context.tcl
# Synthesized once, placed and routed for every clock of settings.tcl; one line per clock in reports/sweep.txt.

set here [file dirname [file normalize [info script]]]
source [file join $here settings.tcl]
set reports [file join $here reports]
file mkdir $reports

read_verilog [file join $here sigbit_grid.v]
read_xdc -mode out_of_context [file join $here sigbit_grid_ooc.xdc]
synth_design -top sigbit_grid -part $sigbit(part) -mode out_of_context -flatten_hierarchy rebuilt
write_checkpoint -force [file join $reports grid_synthesized.dcp]
close_design

set table [open [file join $reports sweep.txt] w]
puts $table "clock_mhz slack_ns"
foreach clock $sigbit(sweep_mhz) {
    open_checkpoint [file join $reports grid_synthesized.dcp]
    create_clock -name clk -period [expr {1000.0 / $clock}] [get_ports clk]
    opt_design
    place_design -directive Explore
    phys_opt_design -directive AggressiveExplore
    route_design -directive Explore
    report_utilization -file [file join $reports grid_${clock}_utilization.rpt]
    report_timing_summary -delay_type max -max_paths 10 -file [file join $reports grid_${clock}_timing.rpt]
    puts $table "$clock [get_property SLACK [get_timing_paths -delay_type max -max_paths 1]]"
    flush $table
    close_design
}
close $table
exit 0
