"""Plan: what a recipe needs and costs, stage by stage, in bytes, seconds and FLOP; `as_dict` is what --json says."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from distill.planning.memory import Memory


@dataclass(frozen=True)
class Remedy:
    """A change of a recipe or of its hardware that makes a stage fit."""

    overrides: str
    """As they are typed."""
    device_bytes: float
    """On the fullest device, afterwards."""
    host_bytes: float
    seconds: float
    """Of the stage, afterwards."""
    offloads: bool
    """Whether weights wait in the machine's memory."""
    note: str = ""
    """What else is not the same then."""

    def __str__(self) -> str:
        where = f", {self.host_bytes / 1e9:.3g} GB in the machine's memory" if self.offloads else ""
        return f"{self.overrides} (then {self.device_bytes / 1e9:.3g} GB{where}; {spoken_time(self.seconds)})"


@dataclass(frozen=True)
class Stage:
    """One stage, as its fullest device sees it."""

    name: str
    what: str
    """Which model, in its size's words."""
    layout: str
    """On which devices, and how it lies on them."""
    memory: Memory
    available_bytes: float
    host_available_bytes: float
    """Of the machine's own memory."""
    change: Remedy | None
    """What makes it fit, when it does not; None when it fits, or nothing of ours makes it fit."""
    instead: Remedy | None
    """Beside a change: what leaves weights in the machine's memory. Where it fits because weights lie there: the
    smallest change with which they need not."""
    tokens: float
    flops: float
    seconds: float
    bound: str
    """What its speed is bounded by."""
    disk_bytes: float
    """That it leaves in the store of artifacts."""
    faster: Remedy | None = None
    """Where devices wait for it: what gives them work, and less time than now."""

    @property
    def fits(self) -> bool:
        held = self.memory.total <= self.available_bytes and self.memory.host <= self.host_available_bytes
        return held and not self.memory.lacks

    @property
    def said(self) -> str:
        """Whether it fits, and what to change, in one sentence."""
        return f"{self._needs}: {'fits' if self.fits else 'does not fit'}{self._advice}"

    @property
    def hurried(self) -> str | None:
        """What would make it faster, in one sentence; None where nothing of ours does."""
        if self.faster is None:
            return None
        then = f"{spoken_time(self.faster.seconds)} instead of {spoken_time(self.seconds)}"
        note = f"; {self.faster.note}" if self.faster.note else ""
        return f"{self.name} leaves devices waiting; faster: {self.faster.overrides} ({then}{note})"

    @property
    def _needs(self) -> str:
        there = f"{self.available_bytes / 1e9:.3g} GB"
        memory = self.memory
        largest = getattr(memory, memory.largest.replace(" ", "_"))
        if memory.lacks:
            return f"{self.name}: {memory.lacks}"
        if largest > self.available_bytes:
            needs = f"{self.name} needs {largest / 1e9:.3g} GB for {memory.largest}"
        else:
            needs = f"{self.name} needs {memory.total / 1e9:.3g} GB, {largest / 1e9:.3g} of them for {memory.largest}"
        needs = f"{needs}, {there} is there"
        if memory.offloads or memory.host > self.host_available_bytes:
            host = f"{memory.host / 1e9:.3g} of {self.host_available_bytes / 1e9:.3g} GB"
            needs += f", and {host} of the machine's own memory"
        return needs

    @property
    def _advice(self) -> str:
        if self.fits:
            return f"; without weights in the machine's memory: {self.instead}" if self.instead else ""
        words = f"; smallest change: {self.change or 'none of ours; it takes larger or more devices'}"
        return f"{words}; or, with the weights as they are: {self.instead}" if self.instead else words


@dataclass(frozen=True)
class Together:
    """Changes with which every stage fits."""

    overrides: str
    """As they are typed."""
    seconds: float
    """Of all stages, afterwards."""

    def __str__(self) -> str:
        return f"{self.overrides} (then everything fits; {spoken_time(self.seconds)})"


@dataclass(frozen=True)
class Download:
    """Weights that a run fetches first."""

    name: str
    bytes: float
    dtype: str


@dataclass(frozen=True)
class Plan:
    """Of one recipe on one machine or cluster."""

    recipe: str
    hardware: str
    devices: int
    nodes: int
    device_bytes: float
    teacher_parameters: int | None
    student_parameters: int
    rows: int
    stages: tuple[Stage, ...]
    downloads: tuple[Download, ...]
    store_bytes: float
    disk_bytes: float
    """Everything on disk at its most: downloads and what is converted of them, store, students, packages, and
    training's own checkpoints."""
    price_per_gpu_hour: float | None
    assumptions: tuple[str, ...]
    licence: tuple[str, ...]
    together: Together | None = None
    """What makes all of it fit at once, where several stages ask for different changes; see `planning.together`."""
    refused: str | None = None
    """Why a run with one process for each device would not start, and what to change; None where it would."""

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def hours(self) -> float:
        return sum(stage.seconds for stage in self.stages) / 3600

    @property
    def node_hours(self) -> float:
        return self.hours * self.nodes

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.devices

    @property
    def price(self) -> float | None:
        """Of all devices for the whole time, in the currency of the price; None without a price."""
        return None if self.price_per_gpu_hour is None else self.gpu_hours * self.price_per_gpu_hour

    @property
    def verdict(self) -> str:
        """What is refused; or what does not fit and the smallest change; or that everything fits, and the cost."""
        if self.refused:
            return f"{self.hardware}: one process for each of the {self.devices} devices is refused. {self.refused}"
        wrong = [stage for stage in self.stages if not stage.fits]
        if wrong:
            more = f" (and {', '.join(stage.name for stage in wrong[1:])})" if len(wrong) > 1 else ""
            all_of_it = f". All together: {self.together}" if self.together else ""
            return f"{self.hardware}: {wrong[0].said}{more}{all_of_it}."
        if not self.stages:
            return f"{self.hardware}: nothing to load: until=teach ends here, and no teacher is asked on this hardware."
        fullest = max(self.stages, key=lambda stage: stage.memory.total)
        cost = f"about {spoken_time(self.hours * 3600)}"
        if self.nodes > 1 or self.hours >= 1:
            cost += f", {self.node_hours:,.3g} node-hours"
        if self.price is not None:
            cost += f", {self.price:,.0f} in money"
        return (
            f"{self.hardware}: everything fits; {fullest.name} is the fullest with {fullest.memory.total / 1e9:.3g} of "
            f"{fullest.available_bytes / 1e9:.3g} GB; {cost}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the fields, and what follows from them."""
        plain = dataclasses.asdict(self)
        for stage, given in zip(plain["stages"], self.stages, strict=True):
            stage["memory"] |= {"total": given.memory.total, "host": given.memory.host}
            stage["fits"] = given.fits
        names = ("fits", "hours", "node_hours", "gpu_hours", "price", "verdict")
        return {**plain, **{name: getattr(self, name) for name in names}}


def spoken_time(seconds: float) -> str:
    """ "40 s", "12 minutes", "7.5 hours" or "3.2 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.3g} hours"
    return f"{seconds / 86400:.3g} days"
