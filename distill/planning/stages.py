"""The stages of a recipe, in the order in which they run."""

from distill.planning.evaluate_stage import evaluate
from distill.planning.package_stages import compress, verify
from distill.planning.result import Stage
from distill.planning.site import Site
from distill.planning.teach_stage import teach
from distill.planning.train_stage import train
from distill.recipe import STAGES


def stages_of(site: Site) -> list[Stage]:
    """In the order in which they run, up to `recipe.until`; report takes nothing."""
    last = STAGES.index(site.recipe.until)
    made: list[Stage] = []
    for number, of in enumerate((teach, train, compress, verify, evaluate)):
        if number <= last:
            made += of(site)
    return made
