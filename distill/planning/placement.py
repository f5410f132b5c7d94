"""Placement: where the weights of a model that is asked lie, one device, all of a node, or the node's own memory too.

`device_map=auto` fills the devices (`distill.runtime._placement.room_for_weights`) and leaves the rest in the machine's
memory, from where each pass over the model fetches it.
"""

from dataclasses import dataclass

from distill.devices import HOST_LINK
from distill.hardware import Hardware
from distill.planning.memory import process_bytes
from distill.planning.model import BYTES, Model
from distill.planning.weights import dtype_of, local_bytes
from distill.runtime._placement import WEIGHTS_SHARE
from distill.teacher.hf import Hf

DISK_RATE = 1e9
"""Bytes per second at which checkpoints are read and written: an assumption."""


@dataclass(frozen=True)
class Placement:
    """Bytes of a model's weights."""

    on_device: float
    """On the fullest device, the part that is being fetched included."""
    on_host: float
    devices: int

    def __str__(self) -> str:
        words = f"its layers over {self.devices} devices" if self.devices > 1 else "one device"
        return words + (f", {self.on_host / 1e9:.3g} GB of it in host memory" if self.on_host else "")

    @property
    def seconds_per_pass(self) -> float:
        """Of fetching what waits in the machine's memory, once."""
        return self.on_host / HOST_LINK


def placed(teacher: Hf, model: Model, hardware: Hardware) -> Placement:
    """Of teacher=hf. Quantised weights are never left in the machine's memory: bitsandbytes refuses."""
    whole = local_bytes(teacher, model)
    if teacher.device_map != "auto" or hardware.is_cpu:
        return Placement(whole, 0.0, 1)
    devices = hardware.per_node
    room = WEIGHTS_SHARE * (hardware.device.memory_bytes - process_bytes(hardware))
    each = whole / devices
    if each <= room or teacher.quantization != "none":
        return Placement(each, 0.0, devices)
    fetched = BYTES[dtype_of(teacher, model)] * max(model.largest_block, model.head_size)
    return Placement(room + fetched, whole - devices * room, devices)
