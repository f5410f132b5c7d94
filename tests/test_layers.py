"""Imports point only downwards, and what a recipe needs loads nothing heavy."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT, cli_environment

# Lowest first. A module may import from its own layer's line or from the lines below, options never from each other.
LAYERS = [
    ["errors", "papers", "artifact", "shipped", "_new_run", "option", "example", "checkpoint", "_bin_weights"],
    [
        "devices",
        "hardware",
        "targets",
        "_shards",
        "responses",
        "_store_writer",
        "store",
        "served",
        "alignment",
        "record",
        "progress",
        "_command",
        "distributed",
        "_slurm_tasks",
        "_sigterm",
        "_submitting",
        "family",
        "runtime",
        "encoding",
        "windows",
        "run_folder",
        "workspace",
    ],
    ["data", "teacher", "student", "loss", "adapter", "compression", "evaluation", "tracking", "training"],
    ["recipe"],
    [
        "_licences",
        "planning",
        "checks",
        "stages",
        "answer_file",
        "results",
        "_encoding_checks",
        "_process_checks",
        "_shape_checks",
        "_teacher_checks",
        "_weights_check",
        "_teachers",
    ],
    ["pipeline"],
    ["rehearsal"],
    [
        "_hydra_source",
        "_hydra_errors",
        "_dropped",
        "_hydra",
        "_own_recipe",
        "__main__",
        "_recipe_list",
        "recipes",
        "plan",
        "comparing",
        "compare",
        "_chat_models",
        "_chat_dialogue",
        "chat",
        "megatron",
    ],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
OPTIONS = 2
STANDARD_LIBRARY_ONLY = ["errors", "papers", "artifact", "shipped", "_new_run"]


def modules():
    for file in sorted((ROOT / "distill").rglob("*.py")):
        parts = file.relative_to(ROOT / "distill").with_suffix("").parts
        if parts != ("__init__",):
            yield file, parts[0]


def imported(file):
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "distill":
                yield from (f"distill.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(("file", "owner"), list(modules()), ids=lambda value: str(getattr(value, "stem", value)))
def test_imports_point_downwards(file, owner):
    assert owner in LEVEL, f"{file} is in no layer: give it one in {__file__}"
    for name in imported(file):
        package, _, rest = name.partition(".")
        if package == "distill_kernels":
            assert owner == "loss", f"{file.name}: the kernels are reached through distill/loss alone"
        if package != "distill" or not rest:
            continue
        other = rest.split(".")[0]
        assert LEVEL[other] <= LEVEL[owner], f"{file} imports {name}, which lies above it"
        if LEVEL[owner] == OPTIONS and LEVEL[other] == OPTIONS:
            assert other == owner, f"{file}: options do not know each other, but it imports {name}"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_the_lowest_modules_need_the_standard_library_only(name):
    for module in imported(ROOT / "distill" / f"{name}.py"):
        assert module.split(".")[0] in {*sys.stdlib_module_names, "distill"}, module


def test_parsing_a_recipe_loads_neither_torch_nor_its_friends():
    code = (
        "import sys; from distill import _hydra; from distill.recipe import parse; "
        "parse(_hydra.compose(['teacher.model=org/teacher']).config); "
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert ran.returncode == 0, ran.stderr
    heavy = {"torch", "transformers", "bitsandbytes", "peft", "datasets", "wandb", "triton", "matplotlib", "xllamacpp"}
    assert not heavy & set(ran.stdout.split())
