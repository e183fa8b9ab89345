"""Size of a whole accelerator: every distinct module synthesized once, times its instances."""

import re
from collections import Counter

from sigbit_hw.emit import emit_verilog
from sigbit_hw.lib.ultrascale import ULTRASCALE

from .synthesis import run_synthesis

__all__ = ["boxed", "estimate"]

_MODULE = re.compile(r"^module (\\\S+ |[^\\\s(]+)\(.*?^endmodule$", re.MULTILINE | re.DOTALL)
_INSTANCE = re.compile(r"^  (sigbit_\w+) \S+ *\(", re.MULTILINE)
_PORT = re.compile(r"^ *(?:input|output)\b.*?;", re.MULTILINE)
_SUMMED = ("lut", "lc", "ff", "carry", "dsp", "srl", "lutram", "bram")


def estimate(config):
    """Cells of the accelerator on UltraScale+, without optimization across the modules that occur many times.

    Parameters
    ----------
    config : AcceleratorConfig

    Returns
    -------
    dict
        The figures of :func:`~.synthesis.run_synthesis` (``lut``, ``lc``, ``ff``, ``carry``, ``dsp``, ``srl``,
        ``lutram``, ``bram``) over all instances, ``srl`` and ``lutram`` also in ``lut``; ``modules``: the same per
        distinct module with its ``instances``; ``yosys``.

    Raises
    ------
    :exc:`~.synthesis.SynthesisError`
        As :func:`~.synthesis.run_synthesis`.
    """
    texts = {match[1].strip().lstrip("\\"): match[0] for match in _MODULE.finditer(emit_verilog(config, ULTRASCALE))}
    shared = [name for name in texts if "." not in name]
    own = {
        name: "\n".join(text for other, text in texts.items() if f"{other}.".startswith(f"{name}.")) for name in shared
    }
    inside = {name: Counter(_INSTANCE.findall(own[name])) for name in shared}
    instances = Counter({"sigbit": 1})
    for name in shared:  # a module stands before those inside it
        for kind, count in inside[name].items():
            instances[kind] += count * instances[name]
    modules = {}
    for name in shared:
        boxes = "\n".join(_black_box(kind, texts[kind]) for kind in inside[name])
        figures = run_synthesis(f"{boxes}\n{own[name]}", name, boxes=inside[name])
        modules[name] = {key: figures[key] for key in _SUMMED} | {"instances": instances[name]}
        modules[name]["lut"] += figures["srl"] + figures["lutram"]
    total = {key: sum(module[key] * module["instances"] for module in modules.values()) for key in _SUMMED}
    return {**total, "modules": modules, "yosys": figures["yosys"]}


def boxed(verilog, prefix):
    """Verilog whose modules with names that begin with ``prefix`` are black boxes, and these names."""
    boxes = {match[1]: match[0] for match in _MODULE.finditer(verilog) if match[1].startswith(prefix)}
    for name, text in boxes.items():
        verilog = verilog.replace(text, _black_box(name, text))
    return verilog, tuple(boxes)


def _black_box(name, text):
    header = text[: text.index(";") + 1]
    ports = "\n".join(_PORT.findall(text)).replace("output reg", "output")
    return f"(* blackbox *) {header}\n{ports}\nendmodule"
