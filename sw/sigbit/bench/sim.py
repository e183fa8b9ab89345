"""Speed of the simulation: RTL and emulator on the digits network."""

import platform
import time

from sigbit_hw.spec.config import PRESETS

from ..compiler import compile
from ..demo import digits_network
from ..device import EmulatorDevice, RtlDevice
from ..quantize import input_levels
from ..session import Session
from .table import markdown

__all__ = ["bench"]

#: Images on RTL: enough for some seconds each.
_SIM_IMAGES = {"tiny": 50, "small": 400}


def bench(progress):
    """Simulated cycles per second of the RTL, and images per second of RTL and emulator, on the digits network."""
    network, images, _ = digits_network()
    levels = input_levels(network, images)
    rows = []
    for name, count in _SIM_IMAGES.items():
        config = PRESETS[name]
        program = compile(network, config)
        progress(f"{name}: {count} images")
        seconds = {}
        for kind, device in (("rtl", RtlDevice(config, progress=progress)), ("emulator", EmulatorDevice(config))):
            start = time.perf_counter()
            with Session(device, program) as session:
                session.run(levels[:count])
                counters = session.counters()
            seconds[kind] = time.perf_counter() - start
            if kind == "rtl":
                cycles = counters["cycles"] + counters["idle_cycles"]
        rows.append(
            {
                "configuration": name,
                "mac_lanes": config.mac_lanes,
                "images": count,
                "cycles": cycles,
                "cycles_per_second": cycles / seconds["rtl"],
                "images_per_second": count / seconds["rtl"],
                "emulator_images_per_second": count / seconds["emulator"],
            }
        )
    table = markdown(
        rows,
        {
            "configuration": lambda row: row["configuration"],
            "MAC lanes": lambda row: row["mac_lanes"],
            "images": lambda row: row["images"],
            "cycles": lambda row: row["cycles"],
            "cycles/s": lambda row: f"{row['cycles_per_second'] / 1e3:.0f} k",
            "lane cycles/s": lambda row: f"{row['cycles_per_second'] * row['mac_lanes'] / 1e6:.0f} M",
            "images/s RTL": lambda row: f"{row['images_per_second']:.0f}",
            "images/s emulator": lambda row: f"{row['emulator_images_per_second']:.0f}",
        },
    )
    note = (
        f"Digits network, one process, builds not counted, wall clock of a shared machine ({platform.machine()}): "
        "compare only within the table."
    )
    return rows, f"{table}\n\n{note}"
