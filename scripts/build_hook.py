"""Ships conf/ and recipes/ inside the wheel as distill/_conf and distill/_recipes.

An editable install reads both from the checkout (distill/shipped.py), so nothing is copied there:
a copy would go stale, and a forced include shadows the package in an exact editable install.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShipConfigs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":
            build_data["force_include"]["conf"] = "distill/_conf"
            build_data["force_include"]["recipes"] = "distill/_recipes"
