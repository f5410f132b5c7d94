"""What a recipe needs and costs, before anything is downloaded: `plan(recipe, hardware)`."""

from distill.planning.make import plan
from distill.planning.memory import Memory
from distill.planning.result import Plan, Stage

__all__ = ["Memory", "Plan", "Stage", "plan"]
