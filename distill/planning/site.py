"""Site: a recipe, its facts and its hardware; how a need of memory becomes a Stage, with the change that fits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill.planning import rates
from distill.planning.changes import Change, smallest_change
from distill.planning.facts import Facts
from distill.planning.hardware import Hardware
from distill.planning.memory import Memory
from distill.planning.model import Model
from distill.planning.result import Stage
from distill.planning.volume import Volume
from distill.recipe import Recipe


@dataclass(frozen=True)
class Site:
    """What is planned, and where."""

    recipe: Recipe
    facts: Facts
    hardware: Hardware

    @property
    def volume(self) -> Volume:
        return self.facts.volume

    def room(self, hardware: Hardware) -> float:
        return hardware.device.memory_bytes

    def finished(
        self,
        name: str,
        what: str,
        layout: str,
        need: Callable[[Recipe, Hardware], Memory],
        tries: Iterator[Change],
        work: rates.Work,
        *,
        tokens: float,
        disk_bytes: float = 0.0,
    ) -> Stage:
        """The stage, and the smallest change when it does not fit."""
        memory, change = need(self.recipe, self.hardware), None
        if memory.total > self.room(self.hardware):
            change = smallest_change(need, tries, self.room)
        words, after = (change[0], change[1].total) if change else (None, None)
        return Stage(
            name=name,
            what=what,
            layout=layout,
            memory=memory,
            available_bytes=self.room(self.hardware),
            change=words,
            changed_bytes=after,
            tokens=tokens,
            flops=work.flops,
            seconds=work.seconds,
            bound=work.bound,
            disk_bytes=disk_bytes,
        )


def size_of(model: Model) -> str:
    """ "65.3B" or "124M"."""
    return f"{model.parameters / 1e9:.3g}B" if model.parameters >= 1e9 else f"{model.parameters / 1e6:.3g}M"


def asked_rows(site: Site) -> float:
    """Rows that the student learns from: several answers to a prompt count each."""
    return site.volume.rows * getattr(site.recipe.teacher, "samples", 1)
