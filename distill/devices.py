"""DEVICES: what a plan must know of an accelerator, each figure from its maker's data sheet.

Memory is what the name says in decimal gigabytes; the driver reports a little more and keeps some of it. Rates are
dense, not sparse. Links are one direction of what the data sheet counts in both. A node's own memory and its network
are not on the device's data sheet: they are what such nodes are usually built or rented with, and `host_gb=` and
`net_gb=` say others. Memory: DGX has 512 GB with V100, 1 TB with A100 of 40 GB, 2 TB since; AWS g4dn, g5, g6 and g6e
of 4 or 8 GPUs; Frontier 512 GB for four MI250X modules; a workstation 64 GB for each card. Network: DGX has four ports
of 100 Gbit/s with eight V100, one of 200 for each A100, one of 400 for each H100 and since; Frontier four of 200 for
eight devices; AWS 50 Gbit/s for four T4 or A10, 100 for eight L4, 400 for eight L40S; a workstation 10 Gbit/s for all.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator, or all cores of a machine."""

    name: str
    memory_bytes: float
    bf16_flops: float
    """Dense products per second in bfloat16; float16 where `has_bf16` is False."""
    float32_flops: float
    memory_bandwidth: float
    """Bytes per second."""
    link_bandwidth: float
    """Bytes per second to the other devices of a node, one direction."""
    node_link: float
    """This device's share of what its node sends to other nodes, bytes per second, one direction."""
    per_node: int
    """Devices of a usual node."""
    host_bytes: float
    """This device's share of its node's own memory."""
    source: str
    has_bf16: bool = True
    """Whether it multiplies bfloat16 in hardware: without it, training computes in float32."""
    described: str = ""
    """The words behind its name, where a user described it."""


def _device(
    name, memory_gb, bf16, float32, bandwidth_gb, link_gb, net_gb, per_node, host_gb, source, has_bf16=True
) -> Device:
    return Device(
        name,
        memory_gb * 1e9,
        bf16 * 1e12,
        float32 * 1e12,
        bandwidth_gb * 1e9,
        link_gb * 1e9,
        net_gb * 1e9,
        per_node,
        host_gb * 1e9,
        source,
        has_bf16,
    )


CPU_FLOPS = 60e9
"""Per core, in either dtype, as training gets it: two cores with AVX-512 did 0.1 to 0.2 TFLOP/s in our runs."""
CPU_BANDWIDTH = 20e9
"""Bytes per second and process, a usual share of a server's memory channels."""

_LISTED = (
    # name, GB, bf16 and float32 TFLOP/s, memory GB/s, GB/s one way to neighbours and (its share) to other nodes,
    # devices per node, GB of host memory for each
    _device("t4-16gb", 16, 65, 8.1, 320, 16, 1.5, 4, 48, "NVIDIA T4 data sheet, 2019", False),
    _device("v100-16gb", 16, 125, 15.7, 900, 150, 6.25, 8, 64, "NVIDIA V100 SXM2 data sheet, 2020", False),
    _device("v100-32gb", 32, 125, 15.7, 900, 150, 6.25, 8, 64, "NVIDIA V100 SXM2 data sheet, 2020", False),
    _device("a10-24gb", 24, 125, 31.2, 600, 32, 1.5, 4, 48, "NVIDIA A10 data sheet, 2021"),
    _device("l4-24gb", 24, 121, 30.3, 300, 32, 1.5, 8, 96, "NVIDIA L4 data sheet, 2023"),
    _device("rtx3090-24gb", 24, 71, 35.6, 936, 32, 0.3, 4, 64, "NVIDIA Ampere GA102 white paper, 2021"),
    _device("rtx4090-24gb", 24, 165, 82.6, 1008, 32, 0.3, 4, 64, "NVIDIA Ada GPU architecture white paper, 2022"),
    _device("a6000-48gb", 48, 155, 38.7, 768, 56, 0.3, 4, 64, "NVIDIA RTX A6000 data sheet, 2021"),
    _device("l40s-48gb", 48, 362, 91.6, 864, 32, 6.25, 8, 192, "NVIDIA L40S data sheet, 2023"),
    _device("a100-40gb", 40, 312, 19.5, 1555, 300, 25, 8, 128, "NVIDIA A100 SXM data sheet, 2021"),
    _device("a100-80gb", 80, 312, 19.5, 2039, 300, 25, 8, 256, "NVIDIA A100 SXM data sheet, 2021"),
    _device("h100-80gb", 80, 989, 67, 3350, 450, 50, 8, 256, "NVIDIA H100 SXM data sheet, 2023"),
    _device("h200-141gb", 141, 989, 67, 4800, 450, 50, 8, 256, "NVIDIA H200 SXM data sheet, 2024"),
    _device("b200-180gb", 180, 2250, 75, 8000, 900, 50, 8, 256, "NVIDIA HGX B200 data sheet, 2025"),
    # one of the two that torch sees of each module: half of the module's figures, and one link of two between modules
    _device("mi250x-64gb", 64, 191.5, 23.95, 1638, 50, 12.5, 8, 64, "AMD Instinct MI250X data sheet, 2021"),
    _device("mi300x-192gb", 192, 1307, 163, 5300, 448, 50, 8, 256, "AMD Instinct MI300X data sheet, 2023"),
)
DEVICES = {device.name: device for device in _LISTED}
HOST_LINK = 10e9
"""Bytes per second from a node's memory to one device: unpinned pages over PCIe, as accelerate's hooks copy them; an
assumption."""
NODE_LINK = 1.25e9
"""Bytes per second between nodes of which nothing else is known, for all their devices together: 10 Gbit/s Ethernet."""


def cpu(cores: int, memory_bytes: float, name: str = "cpu") -> Device:
    """A machine without a GPU as one device; no memory lies beside its own."""
    flops = cores * CPU_FLOPS
    source = f"{cores} cores, this machine's; rates as measured on two AVX-512 cores"
    return Device(name, memory_bytes, flops, flops, CPU_BANDWIDTH, CPU_BANDWIDTH, NODE_LINK, 1, 0.0, source)
