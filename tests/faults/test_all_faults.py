"""No fault of the list is left out."""

from __future__ import annotations

from p2pft_flower.lab.supervisor import Functions
from tests.faults import test_accuracy, test_disks, test_links, test_processes
from tests.faults.digits import read_images
from tests.faults.federation import Fault
from tests.namespaces.network import PRELOADED


def test_every_fault_is_injected_by_a_test():
    injected = set()
    for module in (test_processes, test_links, test_disks, test_accuracy):
        for test in vars(module).values():
            injected |= faults_of(getattr(test, "pytestmark", []))
    assert injected == set(Fault)


def say_how_often_images_were_read(pipe):
    pipe.send(read_images.cache_info().currsize)


def test_a_peers_process_begins_with_the_images_and_need_not_import_scikit_learn_to_read_them():
    with Functions(PRELOADED) as processes:
        processes.start(0, say_how_often_images_were_read)
        assert processes.pipe(0).recv() == 1


def faults_of(marks):
    found = {fault for mark in marks if mark.name == "injects" for fault in mark.args}
    for mark in marks:
        if mark.name == "parametrize":
            for case in mark.args[1]:
                found |= faults_of(getattr(case, "marks", []))
    return found
