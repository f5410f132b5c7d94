"""The stages of a recipe, in the order in which they run."""

from distill.planning.evaluate_stage import evaluate
from distill.planning.package_stages import compress, verify
from distill.planning.result import Stage
from distill.planning.site import Site
from distill.planning.teach_stage import teach
from distill.planning.train_stage import train


def stages_of(site: Site) -> list[Stage]:
    """In the order in which they run, up to `recipe.until`; report takes nothing."""
    planned = (teach, train, compress, verify, evaluate)
    return [made for of, _ in zip(planned, site.recipe.stages, strict=False) for made in of(site)]
