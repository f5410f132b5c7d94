"""Site: a recipe, its facts and its hardware; how a need of memory becomes a Stage, with the changes that fit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from distill.planning import rates
from distill.planning.changes import Change
from distill.planning.facts import Facts
from distill.planning.hardware import Hardware
from distill.planning.memory import Memory
from distill.planning.model import Model
from distill.planning.result import Remedy, Stage
from distill.planning.volume import Volume
from distill.recipe import Recipe

Need = Callable[[Recipe, Hardware], Memory]
WorkOf = Callable[[Recipe, Hardware], rates.Work]


@dataclass(frozen=True)
class Site:
    """What is planned, and where."""

    recipe: Recipe
    facts: Facts
    hardware: Hardware

    @property
    def volume(self) -> Volume:
        return self.facts.volume

    def finished(
        self,
        name: str,
        what: str,
        layout: str,
        need: Need,
        tries: Iterator[Change],
        work_of: WorkOf,
        *,
        tokens: float,
        disk_bytes: float = 0.0,
    ) -> Stage:
        """The stage; when it does not fit, the smallest change, and beside it the one that leaves weights on the host.

        When it fits because weights wait in the machine's memory, the smallest change that spares them the way.
        """
        memory, work, hardware = need(self.recipe, self.hardware), work_of(self.recipe, self.hardware), self.hardware
        change = instead = None
        if not _fits(memory, hardware):
            tried = list(tries)
            change = _first(need, work_of, tried)
            if change and not change.offloads:
                instead = _first(need, work_of, (c for c in tried if c.offloads))
        elif memory.offloads:
            instead = _first(need, work_of, (c for c in tries if not c.offloads))
        return Stage(
            name=name,
            what=what,
            layout=layout,
            memory=memory,
            available_bytes=hardware.device.memory_bytes,
            host_available_bytes=hardware.host_bytes,
            change=change,
            instead=instead,
            tokens=tokens,
            flops=work.flops,
            seconds=work.seconds,
            bound=work.bound,
            disk_bytes=disk_bytes,
        )


def _first(need: Need, work_of: WorkOf, tries: Iterable[Change]) -> Remedy | None:
    """Of the first try that fits. One that was not meant to leave weights in the machine's memory must not do so."""
    for change in tries:
        memory = need(change.recipe, change.hardware)
        if _fits(memory, change.hardware) and (change.offloads or not memory.offloads):
            seconds = work_of(change.recipe, change.hardware).seconds
            return Remedy(" ".join(change.words), memory.total, memory.host, seconds, memory.offloads)
    return None


def _fits(memory: Memory, hardware: Hardware) -> bool:
    return memory.total <= hardware.device.memory_bytes and memory.host <= hardware.host_bytes


def size_of(model: Model) -> str:
    """ "65.3B" or "124M"."""
    return f"{model.parameters / 1e9:.3g}B" if model.parameters >= 1e9 else f"{model.parameters / 1e6:.3g}M"


def asked_rows(site: Site) -> float:
    """Rows that the student learns from: several answers to a prompt count each."""
    return site.volume.rows * getattr(site.recipe.teacher, "samples", 1)
