"""Hardware is read as it is written, wherever it is written, and what is not known can be described."""

import re

import pytest

from distill import _hydra
from distill.devices import DEVICES
from distill.errors import RecipeError
from distill.hardware import EXAMPLE, hardware_of, typed
from distill.recipe import parse
from distill.record import gpu_name


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


DRIVER = """#!/bin/sh
# a machine with an H200 and an RTX 4090: the question, -i and what is visible, as nvidia-smi has them
case $* in *memory*) first=', 143771' second=', 24564';; esac
while [ $# -gt 0 ] && [ "$1" != -i ]; do shift; done
case $2 in ''|0|GPU-aaaa) echo "NVIDIA H200$first"; known=yes;; esac
case $2 in ''|1|GPU-bbbb) echo "NVIDIA GeForce RTX 4090$second"; known=yes;; esac
[ "$known" ] || { echo "No devices were found"; exit 6; }
"""
H200, RTX = ("NVIDIA H200", "h200-141gb"), ("NVIDIA GeForce RTX 4090", "rtx4090-24gb")


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, [H200, RTX]),
        ("0", [H200]),
        ("1", [RTX]),
        ("1,0", [RTX, H200]),
        ("GPU-bbbb", [RTX]),
        ("1,-1,0", [RTX]),
        ("MIG-cccc", [H200, RTX]),
        ("7", []),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_that_no_process_may_use_are_not_there(visible, gpus, tmp_path, monkeypatch):
    """Scores of one card, or of the CPU beside it, must not be reused as another's, nor a plan made for it."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text(DRIVER)
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_name.__wrapped__() == (gpus[0][0] if gpus else None)
    here = hardware_of(None)
    assert here.is_cpu if not gpus else (here.count, here.device.name) == (len(gpus), gpus[0][1])


@pytest.mark.parametrize(
    ("name", "mebibytes", "device", "gigabytes"),
    [
        # as nvidia-smi names and counts them
        ("NVIDIA H100 80GB HBM3", 81_559, "h100-80gb", 80),
        ("NVIDIA H100 NVL", 95_830, "h100-80gb:memory_gb=100", 100.5),
        ("NVIDIA A100-SXM4-40GB", 40_960, "a100-40gb", 40),
        ("NVIDIA A10G", 23_028, "a10-24gb", 24),
        ("NVIDIA L4", 23_034, "l4-24gb", 24),
        ("NVIDIA L40S", 46_068, "l40s-48gb", 48),
        ("Tesla V100-SXM2-16GB", 16_384, "v100-16gb", 16),
        ("Tesla T4", 15_360, "t4-16gb", 16),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16_376, "rtx4090-24gb:memory_gb=17", 17.2),
        ("NVIDIA L40", 46_068, None, None),
        ("NVIDIA T400 4GB", 4096, None, None),
        ("NVIDIA GH200 480GB", 97_871, None, None),
    ],
)
def test_a_gpu_is_taken_for_no_other_one(name, mebibytes, device, gigabytes, monkeypatch):
    """An L40 was planned as an L4 of 24 GB, and a laptop's RTX 4090 with the desktop's memory."""
    monkeypatch.setattr("distill.hardware.told_by_driver", lambda query: [f"{name}, {mebibytes}"] * 2)
    if device is None:
        with pytest.raises(RecipeError, match="not in the table of devices"):
            hardware_of(None)
    else:
        here = hardware_of(None)
        assert str(here) == f"2x{device}" and here.device.memory_bytes == pytest.approx(gigabytes * 1e9, rel=0.01)


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


@pytest.mark.parametrize(
    "asked", ["8xh100-80gb", "h100", "cpu-64gb", "2xrtx4090-24gb:host_gb=128", EXAMPLE], ids=lambda asked: asked[:24]
)
def test_a_recipe_takes_what_a_plan_takes(asked):
    argument = typed(asked).strip('"')  # without the shell's quotes
    recipe = parse(_hydra.compose(["recipe=quickstart", argument]).config)
    assert recipe.hardware == asked and hardware_of(recipe.hardware) == hardware_of(asked)


@pytest.mark.parametrize("asked", ["8xh1000-80gb", "0xh100-80gb", "'2xmine:memory_gb=48'"])
def test_a_recipe_refuses_what_a_plan_refuses_in_the_same_words(asked):
    with pytest.raises(RecipeError) as of_plan:
        hardware_of(asked.strip("'"))
    with pytest.raises(RecipeError) as of_recipe:
        parse(_hydra.compose(["recipe=quickstart", f"hardware={asked}", "until=teach"]).config)
    assert str(of_recipe.value) == str(of_plan.value)
    # the advice can be typed
    (advised,) = re.findall(r"\"(hardware='[^']*')\"", str(of_recipe.value))
    assert parse(_hydra.compose(["recipe=quickstart", advised]).config).hardware == EXAMPLE


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


def test_devices_that_cannot_be_are_refused():
    for asked in ("1xmine:memory_gb=24,bf16_tflops=1,bandwidth_gb=9,per_node=0.5", "1xcpu-0gb"):
        with pytest.raises(RecipeError) as error:
            hardware_of(asked)
        assert asked in str(error.value)


def test_a_cpus_memory_stays_in_its_name():
    asked = hardware_of("2xcpu-16gb")
    assert str(asked) == "2xcpu-16gb" and asked.is_cpu and hardware_of(str(asked)).device.memory_bytes == 16e9


def test_links_between_nodes_are_the_devices_own():
    # DGX A100: eight ports of 200 Gbit/s; Frontier: 4 x 200 Gbit/s for eight; a workstation: 10 Gbit/s for four
    assert hardware_of("16xa100-80gb").link_bandwidth == 200e9 / 8
    assert hardware_of("16xmi250x").link_bandwidth == 4 * 200e9 / 8 / 8
    assert hardware_of("8xrtx4090").link_bandwidth == pytest.approx(10e9 / 8 / 4, rel=0.05)
    assert hardware_of("8xrtx4090-24gb:net_gb=12.5").link_bandwidth == 12.5e9
    described = "8xmine:memory_gb=24,bf16_tflops=1,bandwidth_gb=9,per_node=4"
    assert hardware_of(described).link_bandwidth == 10e9 / 8 / 4
    assert hardware_of("4xrtx4090").link_bandwidth == 32e9


def test_torch_sees_two_devices_of_an_mi250x():
    node = hardware_of("8xmi250x")
    assert (node.nodes, node.device.memory_bytes, node.host_bytes) == (1, 64e9, 512e9)
    assert node.device.bf16_flops == 383e12 / 2
