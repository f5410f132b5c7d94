"""Hardware: what a recipe is to run on, from "8xh100-80gb", from a description, or from this machine."""

import difflib
import os
import re
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from distill.devices import DEVICES, NODE_LINK, Device, cpu
from distill.errors import RecipeError

DESCRIBED = {
    "memory_gb": ("memory_bytes", 1e9),
    "bf16_tflops": ("bf16_flops", 1e12),
    "bandwidth_gb": ("memory_bandwidth", 1e9),
    "link_gb": ("link_bandwidth", 1e9),
    "net_gb": ("node_link", 1e9),
    "per_node": ("per_node", 1),
    "host_gb": ("host_bytes", 1e9),
}
"""Words of a description → what of a Device they say, and in which unit."""
OTHER_MEMORY = 0.1
"""By how much of a device's memory the driver's figure may differ: its bytes are binary, and some are kept."""
EXAMPLE = "4xmine:memory_gb=48,bf16_tflops=180,bandwidth_gb=900,link_gb=32,per_node=4"


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind, in nodes."""

    device: Device
    count: int

    @property
    def per_node(self) -> int:
        """Devices that share a node's links."""
        return min(self.count, self.device.per_node)

    @property
    def nodes(self) -> int:
        return -(-self.count // self.device.per_node)

    @property
    def host_bytes(self) -> float:
        """A node's own memory, beside that of its devices."""
        return self.per_node * self.device.host_bytes

    @property
    def is_cpu(self) -> bool:
        return self.device.name.startswith("cpu")

    @property
    def link_bandwidth(self) -> float:
        """Bytes per second and device between all devices, one direction: the slowest link decides."""
        return self.device.link_bandwidth if self.nodes == 1 else min(self.device.link_bandwidth, self.device.node_link)

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}" + (f":{self.device.described}" if self.device.described else "")


def hardware_of(asked: str | None) -> Hardware:
    """`asked`, such as "8xh100-80gb", "cpu-16gb" or a description (`EXAMPLE`); None is this machine.

    A description behind a known device's name changes what it gives: "2xrtx4090-24gb:host_gb=128".

    Raises:
        RecipeError: it names no device that is known and describes none.
    """
    if asked is None:
        return this_machine()
    name, _, described = asked.strip().lower().partition(":")
    found = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9_.-]*)", name)
    if not found or found[1] == "0":
        raise RecipeError(
            f"hardware={asked}: needs a number and a device, such as 8xh100-80gb, or 4xcpu-64gb for machines without.\n"
            f"Describe a device that is not in the table: {typed(EXAMPLE)}"
        )
    count, device = int(found[1] or 1), found[2]
    if described:
        return Hardware(_described(asked, device, described), count)
    if memory := re.fullmatch(r"cpu(?:-(\d+)gb)?", device):
        if memory[1] and int(memory[1]) == 0:
            raise RecipeError(f"hardware={asked}: a machine of 0 GB holds nothing. Give its memory: cpu-16gb.")
        return Hardware(cpu(num_cores(), int(memory[1]) * 1e9, device) if memory[1] else this_cpu(), count)
    return Hardware(DEVICES.get(device) or _only_one(asked, device), count)


def typed(asked: str) -> str:
    """`hardware=…` as it is typed: the signs of a description need quotes for the shell and for Hydra."""
    return f"\"hardware='{asked}'\"" if "=" in asked else f"hardware={asked}"


def this_machine() -> Hardware:
    """Its GPUs, where its driver names any, else its cores and memory."""
    gpus = [line.rsplit(",", 1) for line in told_by_driver("name,memory.total") if "," in line]
    if not gpus:
        return Hardware(this_cpu(), 1)
    name, memory_bytes = gpus[0][0], float(gpus[0][1]) * 2**20
    alike = [device for device in DEVICES.values() if _is_called(device, name)]
    if not alike:
        raise RecipeError(
            f"This machine's {name} is not in the table of devices. Describe it: {typed(EXAMPLE)}\n"
            f"(there are: {', '.join(DEVICES)})"
        )
    device = min(alike, key=lambda device: abs(device.memory_bytes - memory_bytes))
    if abs(memory_bytes / device.memory_bytes - 1) > OTHER_MEMORY:  # a laptop's RTX 4090 has 16 GB, an H100 NVL 94
        device = replace(device, memory_bytes=memory_bytes, described=f"memory_gb={memory_bytes / 1e9:.0f}")
    return Hardware(replace(device, host_bytes=this_cpu().memory_bytes / len(gpus)), len(gpus))


def _is_called(device: Device, name: str) -> bool:
    """Whether the driver's name may be this device's: L40 is no L4, GH200 no H200, T400 no T4; A10G is an A10."""
    model = re.sub(r"([a-z])(\d)", r"\1 ?\2", device.name.partition("-")[0])
    return re.search(rf"(?<![a-z]){model}(?!\d)", name.lower()) is not None


def told_by_driver(query: str) -> list[str]:
    """A line of what nvidia-smi says for each GPU that CUDA_VISIBLE_DEVICES leaves visible; none without nvidia-smi.

    Indices and GPU UUIDs mean the same to both. Indices count in PCI order here, and in CUDA only with
    CUDA_DEVICE_ORDER=PCI_BUS_ID: its default, FASTEST_FIRST, may differ where cards of several kinds are mixed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in {"", "-1"}:
        return []
    ask = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    lines = []
    # one question for each: of several at once, nvidia-smi answers in its own order, and the first one counts
    # and by the name of a MIG slice it finds nothing: then all cards are taken to be visible
    chosen = [] if visible is None or visible.startswith("MIG-") else visible.split(",")
    for which in [["-i", one.strip()] for one in chosen] or [[]]:
        try:
            said = subprocess.run([*ask, *which], capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            break  # as CUDA does: what stands behind an unknown device is hidden too
        lines += said.splitlines()
    return lines


def this_cpu() -> Device:
    """All cores and the memory of this machine."""
    return cpu(num_cores(), float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _only_one(asked: str, device: str) -> Device:
    """The one device of that name when its memory was left out. Raises RecipeError."""
    alike = [known for name, known in DEVICES.items() if name.startswith(f"{device}-")]
    if len(alike) == 1:
        return alike[0]
    near = [known.name for known in alike] or difflib.get_close_matches(device, DEVICES, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise RecipeError(
        f"hardware={asked}: no device {device!r} is known.{hint}\n"
        f"There are: {', '.join(DEVICES)}, cpu, cpu-64gb.\n"
        f"Describe any other one: {typed(EXAMPLE)}"
    )


def _described(asked: str, name: str, words: str) -> Device:
    values: dict[str, float] = {}
    for word in words.split(","):
        key, _, value = word.partition("=")
        if key not in DESCRIBED or not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) == 0:
            raise RecipeError(
                f"hardware={asked}: {word!r} is none of {', '.join(f'{known}=NUMBER' for known in DESCRIBED)}.\n"
                f"An example: {typed(EXAMPLE)}"
            )
        field, unit = DESCRIBED[key]
        values[field] = float(value) * unit
    if not values.get("per_node", 1.0).is_integer():
        raise RecipeError(f"hardware={asked}: per_node is a whole number of devices, 1 or more.")
    known = DEVICES.get(name)
    needed = [key for key in ("memory_gb", "bf16_tflops", "bandwidth_gb") if DESCRIBED[key][0] not in values]
    if needed and not known:
        raise RecipeError(f"hardware={asked}: {', '.join(needed)} is needed too. An example: {typed(EXAMPLE)}")
    fields: dict[str, Any] = dict(values)
    if "bf16_flops" in values:
        fields["float32_flops"] = values["bf16_flops"] / 8
    if "per_node" in values:
        fields["per_node"] = int(values["per_node"])
    # what is not said: PCIe 4.0 x16; a workstation's memory, and its network's share for each device
    per_node = fields.get("per_node", 8)
    rest = known or Device(name, 0.0, 0.0, 0.0, 0.0, 32e9, NODE_LINK / per_node, 8, 64e9, "as described")
    return replace(rest, **fields, described=words)
