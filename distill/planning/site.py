"""Site: a recipe, its facts and its hardware; how a need of memory becomes a Stage, with the changes that fit."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distill.hardware import Hardware
from distill.planning import rates
from distill.planning.changes import Change
from distill.planning.facts import Facts
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
        beside: Need | None = None,
        tokens: float,
        disk_bytes: float = 0.0,
    ) -> Stage:
        """The stage; when it does not fit, the smallest change, and beside it the one that leaves weights on the host.

        When it fits because weights wait in the machine's memory, the smallest change that spares them the way.

        `beside`: of another stage that the same changes alter. A change that serves both comes before a smaller one
        that serves this stage alone: a run has one command.
        """
        memory, work, hardware = need(self.recipe, self.hardware), work_of(self.recipe, self.hardware), self.hardware
        change = instead = None
        first = functools.partial(_first, need, work_of, beside)
        if not fits(memory, hardware):
            tried = list(tries)
            change = first(tried)
            if change and not change.offloads:
                instead = first([c for c in tried if c.offloads])
        elif memory.offloads:
            instead = first([c for c in tries if not c.offloads])
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


def _first(need: Need, work_of: WorkOf, beside: Need | None, tries: Sequence[Change]) -> Remedy | None:
    """Of the first try that fits; `beside` with it, where any try does that."""
    fitting = (change for change in tries if _serves(need, change))
    chosen = next(fitting, None)
    if beside is not None and chosen is not None and not _fits_too(beside, chosen):
        chosen = next((change for change in fitting if _fits_too(beside, change)), chosen)
    if chosen is None:
        return None
    memory, seconds = need(chosen.recipe, chosen.hardware), work_of(chosen.recipe, chosen.hardware).seconds
    return Remedy(" ".join(chosen.words), memory.total, memory.host, seconds, memory.offloads)


def _serves(need: Need, change: Change) -> bool:
    """Whether it fits, and leaves weights in the machine's memory if and only if that is what was meant."""
    memory = need(change.recipe, change.hardware)
    return fits(memory, change.hardware) and change.offloads == memory.offloads


def _fits_too(need: Need, change: Change) -> bool:
    return fits(need(change.recipe, change.hardware), change.hardware)


def fits(memory: Memory, hardware: Hardware) -> bool:
    """Whether it can run there."""
    held = memory.total <= hardware.device.memory_bytes and memory.host <= hardware.host_bytes
    return held and not memory.lacks


def size_of(model: Model) -> str:
    """ "65.3B" or "124M"."""
    return f"{model.parameters / 1e9:.3g}B" if model.parameters >= 0.9995e9 else f"{model.parameters / 1e6:.3g}M"


def asked_rows(site: Site) -> float:
    """Rows that the student learns from: several answers to a prompt count each."""
    return site.volume.rows * getattr(site.recipe.teacher, "samples", 1)
