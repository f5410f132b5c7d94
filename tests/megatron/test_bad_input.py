"""What cannot be converted is refused by name, in at most six lines, and leaves nothing behind."""

import shutil
import subprocess
import sys

import pytest
import torch

from distill.checkpoint import read_config
from distill.errors import RecipeError
from distill.megatron import convert
from tests.conftest import cli_environment
from tests.megatron.conftest import HEADS, TOKENS


@pytest.fixture
def refused(tmp_path):
    """Runs the conversion; returns the message, after checking its length and that nothing was written."""

    def run(checkpoint, **options):
        out = tmp_path / "new" / "out"
        out.parent.mkdir(exist_ok=True)
        with pytest.raises(RecipeError) as caught:
            convert(checkpoint, out, **{"num_tokens": TOKENS, **options})
        assert not list(out.parent.iterdir())
        said = str(caught.value)
        assert len(said.splitlines()) <= 6
        return said

    return run


def changed(file, change):
    """Rewrites one rank's file after `change(content)`."""
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)


def ranks_of(save):
    return sorted(save.rglob("*.pt"))


@pytest.mark.parametrize(("version", "missing"), [(0, 1), (3.0, 1), (0, 3), (3.0, 3)])
def test_a_missing_rank_is_named(version, missing, written, refused):
    save = written(version, 4)
    shutil.rmtree(save / f"iter_0000500/mp_rank_{missing:02d}")
    assert f"mp_rank_{missing:02d}" in refused(save, heads=HEADS)


def test_a_missing_stage_is_named(written, refused):
    save = written(3.0, 2, 4)
    shutil.rmtree(save / "iter_0000500/mp_rank_01_002")
    assert "mp_rank_01_002" in refused(save)


def test_missing_last_stages_are_noticed(written, refused):
    save = written(3.0, 1, 2)
    shutil.rmtree(save / "iter_0000500/mp_rank_00_001")
    assert "1 pipeline stages of 2" in refused(save)


def test_a_missing_file_in_a_folder_that_is_there_is_counted(written, refused):
    save = written(3.0, 2)
    (save / "iter_0000500/mp_rank_01/model_optim_rng.pt").unlink()
    said = refused(save)
    assert "mp_rank_01/model_optim_rng.pt is missing" in said and "Found 1 of 2 files" in said


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_said(part, zipped, written, refused):
    file = ranks_of(written(3.0, 1))[0]
    torch.save(torch.load(file, weights_only=False), file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    said = refused(file)
    assert file.name in said and ("cut short" in said if zipped else "whole" in said or "damage" in said)


@pytest.mark.parametrize("version", [4.0, 1.5, "3", True])
def test_an_unknown_version_is_not_guessed(version, written, refused):
    save = written(3.0, 2)
    changed(ranks_of(save)[0], lambda content: content.update(checkpoint_version=version))
    said = refused(save)
    assert f"checkpoint_version {version!r}" in said and "0.0, 1.0, 2.0, 3.0" in said


def test_ranks_of_two_versions_do_not_mix(written, refused):
    save = written(3.0, 2)
    changed(ranks_of(save)[1], lambda content: content.update(checkpoint_version=1.0))
    assert "mp_rank_01" in refused(save)


@pytest.mark.parametrize(
    "name",
    ["layers.2.input_layernorm.weight", "layers.0.self_attention.dense.bias", "layers.3.mlp.dense_4h_to_h.bias"],
)
def test_ranks_that_disagree_are_named(name, written, refused):
    save = written(3.0, 4)

    def other(content):
        content["model"]["language_model"]["encoder"][name][3] += 1e-3

    changed(ranks_of(save)[2], other)
    said = refused(save)
    assert name in said and "rank 2" in said


def test_a_weight_that_is_missing_or_unknown_is_named(written, refused):
    save = written(3.0, 1)
    encoder = "layers.1.mlp.dense_h_to_4h.bias"
    changed(ranks_of(save)[0], lambda c: c["model"]["language_model"]["encoder"].pop(encoder))
    assert "transformer.h.1.mlp.c_fc.bias" in refused(save)
    changed(ranks_of(save)[0], lambda c: c["model"]["language_model"]["encoder"].update(extra=torch.ones(1)))
    assert "extra" in refused(save)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": {"weight": torch.ones(2)}}, "state_dict"),
        (torch.ones(3), "Tensor"),
        ({"model": {"decoder.layers.0.mlp.linear_fc1.weight": torch.ones(2)}}, "Megatron-Core"),
        ({"model": {"blocks.0.weight": torch.ones(2)}}, "blocks.0.weight"),
        ({"model0": {}, "model1": {}}, "interleaved pipeline stages"),
    ],
)
def test_what_is_no_megatron_gpt2_is_said(content, named, tmp_path, refused):
    torch.save(content, tmp_path / "model_optim_rng.pt")
    assert named in refused(tmp_path / "model_optim_rng.pt")


def test_a_folder_of_something_else(tmp_path, refused):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "config.json" in refused(folder)
    assert "no such folder" in refused(tmp_path / "nowhere")
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 half a file")
    assert "broken.pt" in refused(folder / "broken.pt")


def test_a_tracker_that_names_nothing(written, refused):
    save = written(2.0, 1)
    (save / "latest_checkpointed_iteration.txt").write_text("900")
    assert "iter_0000900" in refused(save) and "iter_0000500" in refused(save)
    (save / "latest_checkpointed_iteration.txt").write_text("soon")
    assert "'soon'" in refused(save)


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_unread(zipped, written, tmp_path, refused):
    save = written(2.0, 1)
    content = torch.load(ranks_of(save)[0], weights_only=False) | {"optimizer": Payload(tmp_path / "pwned")}
    torch.save(content, ranks_of(save)[0], _use_new_zipfile_serialization=zipped)
    said = refused(save)
    assert "open" in said and "--no-save-optim" in said
    assert not (tmp_path / "pwned").exists()


def test_megatrons_own_objects_are_passed_over_without_its_code(original, written, tmp_path, monkeypatch):
    """An enum among the arguments, a loss scaler and numpy's random state: as real trainings leave them."""
    import enum
    import types

    import numpy

    module = types.ModuleType("megatron.model.enums")

    class PositionEmbeddingType(enum.Enum):
        absolute = 2

    class Scaler:
        def __init__(self):
            self.scale = 65536.0

    for cls in (PositionEmbeddingType, Scaler):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    save = written(3.0, 1)
    with monkeypatch.context() as while_written:
        while_written.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
        while_written.setitem(sys.modules, module.__name__, module)

        def more(content):
            content["args"].position_embedding_type = PositionEmbeddingType.absolute
            content["optimizer"] = {"loss_scaler": Scaler()}
            content["rng_state"] = [{"np_rng_state": numpy.random.get_state(), "random": (3, (1, 2), None)}]

        changed(ranks_of(save)[0], more)
    assert "megatron" not in sys.modules
    convert(save, tmp_path / "out", num_tokens=TOKENS)
    assert "megatron" not in sys.modules


@pytest.mark.parametrize(
    ("switch", "value"),
    [("apply_residual_connection_post_layernorm", True), ("normalization", "RMSNorm"), ("swiglu", True)],
)
def test_a_switch_that_gpt2_lacks_is_named(switch, value, written, refused):
    assert f"{switch}={value}" in refused(written(3.0, 1, **{switch: value}))


def test_heads_that_nobody_says_are_asked_for(written, refused):
    assert "--heads" in refused(written(0, 1))
    assert "--heads 4" in refused(written(2.0, 1), heads=4)


def test_a_vocabulary_that_does_not_fit_is_said(written, refused):
    save = written(3.0, 2)
    assert "256 rows" in refused(save, num_tokens=None) and "50257" in refused(save, num_tokens=None)
    assert "300 tokens" in refused(save, num_tokens=300)


def test_a_recipe_that_names_one_is_told_to_convert_it(written):
    save = written(3.0, 1)
    for folder in (save, save / "iter_0000500"):
        with pytest.raises(RecipeError, match=r"python -m distill\.megatron"):
            read_config(str(folder), None, "teacher.model")


def test_nothing_is_overwritten(written, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="exists"):
        convert(written(3.0, 1), tmp_path / "out", num_tokens=TOKENS)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_command(written, tiny_gpt2_tokenizer, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "distill.megatron", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=cli_environment(),
            cwd=tmp_path,
        )

    save = written(1.0, 2)
    done = run(save, tmp_path / "out", "--tokenizer", tiny_gpt2_tokenizer)
    assert done.returncode == 0, done.stderr
    assert "201 tokens" in done.stdout and "2 tensor-parallel ranks" in done.stdout
    again = run(save, tmp_path / "out")
    assert again.returncode == 2 and "exists" in again.stderr and "Traceback" not in again.stderr
    assert run(save).returncode == 2
    shutil.rmtree(save / "iter_0000500/mp_rank_00")
    gone = run(save, tmp_path / "other", "--vocab-size", TOKENS)
    assert gone.returncode == 2 and "mp_rank_00" in gone.stderr
