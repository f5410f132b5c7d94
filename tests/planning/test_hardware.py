"""Hardware is read as it is written, and what is not known can be described."""

import pytest

from distill.errors import RecipeError
from distill.planning.devices import DEVICES
from distill.planning.hardware import EXAMPLE, hardware_of


def test_a_number_and_a_device_of_the_table():
    node, cluster = hardware_of("8xh100-80gb"), hardware_of("64xh100-80gb")
    assert (node.count, node.nodes, node.per_node, node.device.memory_bytes) == (8, 1, 8, 80e9)
    assert (cluster.count, cluster.nodes, cluster.per_node) == (64, 8, 8)
    # NVLink inside a node; between nodes each GPU has one port of 400 Gbit/s
    assert (node.link_bandwidth, cluster.link_bandwidth) == (450e9, 400e9 / 8)
    assert str(cluster) == "64xh100-80gb"


def test_a_device_may_leave_its_memory_out_where_there_is_one_only():
    assert hardware_of("h200").device is DEVICES["h200-141gb"]
    assert hardware_of("2xt4").count == 2


def test_a_cpu_has_the_memory_that_its_name_says_or_this_machines():
    import os

    assert hardware_of("cpu-64gb").device.memory_bytes == 64e9
    here = hardware_of("cpu").device
    assert here.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert hardware_of("cpu").is_cpu and not hardware_of("8xh100-80gb").is_cpu


def test_any_other_device_is_described_in_place():
    mine = hardware_of(EXAMPLE)
    assert (mine.count, mine.device.name, mine.per_node) == (4, "mine", 4)
    assert (mine.device.memory_bytes, mine.device.bf16_flops) == (48e9, 180e12)
    assert (mine.device.memory_bandwidth, mine.device.link_bandwidth) == (900e9, 32e9)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("8xh100-80g", "Did you mean h100-80gb"),
        ("8xa100", "a100-40gb or a100-80gb"),
        ("8xtpu-v5", "Describe any other one"),
        ("0xh100-80gb", "needs a number and a device"),
        ("x", "no device 'x' is known"),
        ("2xmine:memory_gb=48", "bf16_tflops, bandwidth_gb is needed too"),
        ("2xmine:memory=48", "'memory=48' is none of memory_gb=NUMBER"),
        ("2xmine:memory_gb=nan,bf16_tflops=1,bandwidth_gb=1", "is none of"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_on(asked, said):
    with pytest.raises(RecipeError) as error:
        hardware_of(asked)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 6


def test_what_is_described_of_a_known_device_changes_only_that_and_is_said_again():
    mine, known = hardware_of("2xrtx4090-24gb:host_gb=128"), hardware_of("2xrtx4090-24gb")
    assert (known.host_bytes, mine.host_bytes) == (2 * 64e9, 2 * 128e9)
    assert mine.device.bf16_flops == known.device.bf16_flops and mine.device.memory_bytes == 24e9
    for described in (str(mine), EXAMPLE):  # a plan's advice is typed again
        assert str(hardware_of(described)) == described and hardware_of(str(hardware_of(described))) == hardware_of(
            described
        )


def test_the_table_holds_what_its_names_say():
    for name, device in DEVICES.items():
        assert name == device.name and device.source
        assert device.memory_bytes == float(name.rpartition("-")[2].removesuffix("gb")) * 1e9
        # no accelerator of these reads its memory in less than 4 ms or in more than 60
        assert 0.004 < device.memory_bytes / device.memory_bandwidth < 0.09
