"""What Hydra is taught about us: where recipes live, how a run folder is named, what the help screen lists.

Hydra looks for `recipe=NAME` as recipe/NAME.yaml on its search path. Ours live in recipes/NAME.yaml, and a user's
anywhere. A search path entry of our own covers both; it is added by a plugin, because a user's `hydra.searchpath`
replaces the list of the configuration, but not what plugins add.
"""

import textwrap
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from distill import shipped
from distill._new_run import new_run_folder
from distill._slurm_tasks import submitted_task


def register() -> None:
    """Makes the recipe source and the resolvers of conf/config.yaml known to Hydra; may be called again."""
    for plugin in (RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
    # cached, or every look at hydra.run.dir would make one more folder
    OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_subfolder", _run_subfolder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("help_recipes", _help_recipes, replace=True)
    OmegaConf.register_new_resolver("help_groups", _help_groups, replace=True)


class RecipeSource(ConfigSource):
    """`recipe/NAME` → <folder>/NAME.yaml, and `recipe//absolute/path.yaml` → that file."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        if file is None or not file.is_file():
            raise ConfigLoadError(f"Config not found : {config_path}")
        text = file.read_text(encoding="utf-8")
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create(text) if text.strip() else OmegaConf.create({}),
            header=self._get_header_dict(text),
        )

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") in {"", "recipe"}

    def is_config(self, config_path: str) -> bool:
        file = self._file(config_path)
        return file is not None and file.is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        path = config_path.rstrip("/")
        if path == "" and results_filter is not ObjectType.CONFIG:
            return ["recipe"]
        if path == "recipe" and results_filter is not ObjectType.GROUP:
            return sorted(file.stem for file in Path(self.path).glob("*.yaml"))
        return []

    def _file(self, config_path: str) -> Path | None:
        """The YAML file behind a path of Hydra's, existing or not; None where it is not a recipe."""
        group, _, name = config_path.partition("/")
        if group != "recipe" or not name:
            return None
        # joining with an absolute path gives the absolute path
        file = Path(self.path) / name
        return file if file.suffix in {".yaml", ".yml"} else file.with_name(file.name + ".yaml")


class RecipeSearchPath(SearchPathPlugin):
    """Adds the shipped recipes to every search path of ours; other Hydra applications keep theirs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours = str(shipped.conf_folder())
        if any(element.path == ours for element in search_path.get_path()):
            search_path.append(provider="distill", path=f"{RecipeSource.scheme()}://{shipped.recipes_folder()}")


def recipe_name(name: str | None, recipe: str) -> str:
    """The run's name: what the recipe says, or its file's name."""
    return name or Path(recipe).stem


def _run_folder(parent: str, name: str | None, recipe: str) -> str:
    return str(new_run_folder(Path(parent) / recipe_name(name, recipe)))


def _run_subfolder(parent: str, name: str | None, recipe: str) -> str:
    if submitted_task().rank > 0:
        return "."  # the first task of a job chooses the run folder
    return Path(_run_folder(parent, name, recipe)).relative_to(parent).as_posix()


def _help_recipes() -> str:
    recipes = shipped.recipes()
    width = max(map(len, recipes), default=0)
    # of 80 columns; `python -m distill.recipes` says the whole
    said = {name: textwrap.shorten(line, 76 - width, placeholder=" …") for name, line in recipes.items()}
    return "".join(f"  {name:<{width}}  {line}\n" for name, line in said.items())


def _help_groups() -> str:
    groups = shipped.groups()
    width = max(map(len, groups), default=0)
    return "".join(f"  {group:<{width}}  {', '.join(options)}\n" for group, options in groups.items())
