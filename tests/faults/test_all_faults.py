"""No fault of the list is left out."""

from __future__ import annotations

from tests.faults import test_accuracy, test_disks, test_links, test_processes
from tests.faults.federation import Fault


def test_every_fault_is_injected_by_a_test():
    injected = set()
    for module in (test_processes, test_links, test_disks, test_accuracy):
        for test in vars(module).values():
            injected |= faults_of(getattr(test, "pytestmark", []))
    assert injected == set(Fault)


def faults_of(marks):
    found = {fault for mark in marks if mark.name == "injects" for fault in mark.args}
    for mark in marks:
        if mark.name == "parametrize":
            for case in mark.args[1]:
                found |= faults_of(getattr(case, "marks", []))
    return found
