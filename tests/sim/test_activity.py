"""Activity files: their place in a design, their times, and what a simulation really counted."""

import re
from dataclasses import replace

import pytest
from sigbit_hw.spec.config import PRESETS
from sigbit_sim.activity import place_activity
from sigbit_sim.rtl import RtlError, RtlModel

RAW = """\
(SAIFILE
(TIMESCALE 1ps)
(DURATION 199)
 (INSTANCE TOP
  (NET
   (aclk (T0 100) (T1 99) (TZ 0) (TX 0) (TB 0) (TC 199))
  )
  (INSTANCE sigbit
   (NET
    (irq (T0 150) (T1 49) (TZ 0) (TX 0) (TB 0) (TC 3))
   )
   (INSTANCE core
   )
  )
 )
)
"""


def test_the_accelerator_is_put_below_other_instances_with_real_times(tmp_path):
    (tmp_path / "raw").write_text(RAW)
    place_activity(tmp_path / "raw", tmp_path / "placed", ("wrapper", "design", "accelerator", "inst"), 200)
    text = (tmp_path / "placed").read_text()
    assert re.findall(r"INSTANCE (\w+)", text) == ["wrapper", "design", "accelerator", "inst", "core"]
    assert text.count("(") == text.count(")")
    assert "(DURATION 497500)" in text
    assert "(irq (T0 375000) (T1 122500) (TZ 0) (TX 0) (TB 0) (TC 3))" in text
    assert "aclk" not in text, "the simulation's own ports"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "raw").write_text("(SAIFILE)")
    with pytest.raises(RtlError, match="not an activity file of an accelerator"):
        place_activity(tmp_path / "raw", tmp_path / "placed", ("a", "b"), 200)


def test_a_simulation_built_without_it_says_so(tmp_path):
    with pytest.raises(RtlError, match="activity=True"):
        RtlModel(PRESETS["tiny"]).record_activity(tmp_path / "raw")


@pytest.mark.slow
def test_the_clock_changes_twice_per_cycle(tmp_path):
    tiny = PRESETS["tiny"]
    model = RtlModel(
        replace(tiny, rows=1, lanes=2, columns=2, post_lanes=2, feature_depth=256, weight_depth=256), activity=True
    )
    model.record_activity(tmp_path / "raw")
    model.run(100)
    model.finish_activity()
    place_activity(tmp_path / "raw", tmp_path / "placed", ("top", "accelerator"), 250)
    text = (tmp_path / "placed").read_text()
    assert text.count("(") == text.count(")")
    ((low, high, changes),) = set(re.findall(r"\(aclk \(T0 (\d+)\) \(T1 (\d+)\).*?\(TC (\d+)\)", text))
    assert int(changes) == pytest.approx(200, abs=2)
    assert int(low) + int(high) == pytest.approx(100 * 4000, abs=4000)
