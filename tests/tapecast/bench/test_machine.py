"""What a run was measured on."""

import os

from tapecast.bench.machine import cpu_model, this_machine


def test_a_processor_is_named_with_what_tells_it_from_its_kin() -> None:
    lines = ["processor\t: 0", "cpu family\t: 26", "model\t\t: 2", "model name\t: AMD EPYC", "model\t\t: 3"]
    assert cpu_model(lines) == "AMD EPYC (family 26, model 2)"


def test_a_processor_without_family() -> None:
    assert cpu_model(["Processor : ARMv8", "Features : fp"]) == "ARMv8"
    assert cpu_model([]) == os.uname().machine


def test_this_machine_is_told_whole() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert machine.kernel.startswith("Linux ")
    assert {"python", "numpy", "numba", "picows"} <= machine.versions.keys()
