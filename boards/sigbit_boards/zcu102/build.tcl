# From sigbit.v to sigbit.bit, sigbit.hwh and sigbit.xsa:  vivado -mode batch -source build.tcl
# Exit status 1 and a sentence if the clock is missed; there is no bitstream then, the reports are written.

set here [file dirname [file normalize [info script]]]
source [file join $here settings.tcl]
set reports [file join $here reports]
file mkdir $reports

set found [version -short]
if {[lsearch -exact $sigbit(vivado_versions) $found] < 0} {
    puts "sigbit: these scripts were designed for Vivado $sigbit(vivado_versions), this is $found"
}
set board [lindex [get_board_parts -quiet -latest_file_version *:zcu102:*] 0]
if {$board eq ""} {
    puts "sigbit: Vivado has no board files of the ZCU102; install them with: xhub::install xilinx_board_store zcu102"
    exit 2
}

source [file join $here package_ip.tcl]

create_project -force sigbit_zcu102 [file join $here project] -part $sigbit(part)
set_property board_part $board [current_project]
set_property ip_repo_paths [list [file join $here ip]] [current_project]
update_ip_catalog -rebuild
source [file join $here block_design.tcl]
add_files -norecurse [make_wrapper -files [get_files sigbit_system.bd] -top]
set_property top sigbit_system_wrapper [current_fileset]
update_compile_order -fileset sources_1
set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]

launch_runs synth_1 -jobs $sigbit(jobs)
wait_on_run synth_1
if {[get_property PROGRESS [get_runs synth_1]] ne "100%"} {
    puts "sigbit: synthesis failed; see project/sigbit_zcu102.runs/synth_1/runme.log"
    exit 1
}
launch_runs impl_1 -jobs $sigbit(jobs)
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    puts "sigbit: implementation failed; see project/sigbit_zcu102.runs/impl_1/runme.log"
    exit 1
}

open_run impl_1
report_utilization -file [file join $reports utilization.rpt]
report_utilization -hierarchical -file [file join $reports utilization_hierarchical.rpt]
report_timing_summary -delay_type min_max -max_paths 10 -report_unconstrained -file [file join $reports timing.rpt]
report_clock_interaction -file [file join $reports clock_interaction.rpt]
report_drc -file [file join $reports drc.rpt]
report_methodology -file [file join $reports methodology.rpt]
if {[file exists [file join $here activity.saif]]} {
    read_saif -strip_path sigbit_system_wrapper [file join $here activity.saif]
}
report_power -file [file join $reports power.rpt]

foreach {kind delay} {setup max hold min} {
    set path [get_timing_paths -delay_type $delay -max_paths 1]
    set slack [get_property SLACK $path]
    if {$slack < 0} {
        puts "sigbit: timing is missed: worst $kind slack is $slack ns at $sigbit(clock_mhz) MHz, from\
            [get_property STARTPOINT_PIN $path] to [get_property ENDPOINT_PIN $path]; see reports/timing.rpt"
        exit 1
    }
}

write_bitstream -force [file join $here sigbit.bit]
write_hw_platform -fixed -include_bit -force -file [file join $here sigbit.xsa]
file copy -force [file join $here project sigbit_zcu102.gen sources_1 bd sigbit_system hw_handoff sigbit_system.hwh] \
    [file join $here sigbit.hwh]
puts "sigbit: wrote sigbit.bit, sigbit.hwh and sigbit.xsa"
exit 0
