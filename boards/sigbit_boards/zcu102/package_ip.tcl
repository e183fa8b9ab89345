# Packages sigbit.v as IP in the folder ip: buses by the names of the ports, clock, reset, interrupt, address block.
# Sourced by build.tcl; `here` is the folder of the scripts, `sigbit` the array of settings.tcl.

create_project -force package_ip [file join $here package_ip] -part $sigbit(part)
add_files -norecurse [file join $here sigbit.v]
add_files -fileset constrs_1 -norecurse [file join $here sigbit_ooc.xdc]
set_property USED_IN {out_of_context synthesis implementation} [get_files sigbit_ooc.xdc]
set_property top sigbit [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir [file join $here ip] -vendor sigbit -library user -taxonomy /UserIP \
    -import_files -set_current true -force
set core [ipx::current_core]
set_property name accelerator $core
set_property version 1.0 $core
set_property display_name "sigbit accelerator" $core
set_property description "Configuration $sigbit(configuration_hash)" $core
set_property supported_families {zynquplus Production} $core

ipx::infer_bus_interface aclk xilinx.com:signal:clock_rtl:1.0 $core
ipx::infer_bus_interface aresetn xilinx.com:signal:reset_rtl:1.0 $core
ipx::infer_bus_interface irq xilinx.com:signal:interrupt_rtl:1.0 $core
ipx::infer_bus_interfaces xilinx.com:interface:axis_rtl:1.0 $core
ipx::infer_bus_interfaces xilinx.com:interface:aximm_rtl:1.0 $core
foreach bus {s_axis m_axis s_axil} {
    if {[llength [ipx::get_bus_interfaces $bus -of_objects $core]] != 1} {
        error "sigbit.v has no bus $bus that Vivado infers"
    }
    ipx::associate_bus_interfaces -busif $bus -clock aclk $core
}
ipx::associate_bus_interfaces -clock aclk -reset aresetn $core
set interrupt [ipx::get_bus_interfaces irq -of_objects $core]
if {![llength [ipx::get_bus_parameters -quiet SENSITIVITY -of_objects $interrupt]]} {
    ipx::add_bus_parameter SENSITIVITY $interrupt
}
set_property value LEVEL_HIGH [ipx::get_bus_parameters SENSITIVITY -of_objects $interrupt]

ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
