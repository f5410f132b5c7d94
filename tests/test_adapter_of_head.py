"""`adapter.target_modules=[…, lm_head]` in a recipe: what is refused before anything runs, what is planned, runs."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from distill import _hydra
from distill._shape_checks import check_adapter
from distill.adapter.lora import Lora
from distill.adapter.qlora import Qlora
from distill.checks import check_configs, check_models
from distill.errors import RecipeError
from distill.family.known import FAMILIES
from distill.family.reading import read_stored
from distill.planning.memory import trained
from distill.planning.model import model_of
from distill.recipe import parse
from tests.distributed.processes import alone, torchrun

HEADS = {"gpt_neox": "lm_head", "biogpt": "output_projection"}
"""As transformers 5 calls them; GPT-NeoX's was embed_out before."""


def test_a_layer_that_student_layers_leaves_out_is_refused():
    """PEFT says nothing while another name matches."""
    recipe = recipe_of("adapter=lora", "student.layers=[0]", "adapter.target_modules=[layers.1.mlp.up_proj,lm_head]")
    with pytest.raises(RecipeError, match=r"names layers\.1\.mlp\.up_proj, which is not the name"):
        check_models(recipe, untied_llama())
    check_models(replace(recipe, student=replace(recipe.student, layers=[1, 0])), untied_llama())


def test_a_student_whose_adapter_is_not_merged_is_refused(tmp_path):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text(json.dumps(untied_llama()))
    recipe = recipe_of(f"student.model={tmp_path}", "loss=text", "teacher=none", "baselines=[]")
    with pytest.raises(RecipeError, match=r"not merged \(adapter_config\.json\)(?s:.)*merge_and_unload"):
        check_configs(recipe, read_stored)


def untied_llama(size=2):
    return {
        "model_type": "llama",
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": size,
        "num_attention_heads": 2,
        "max_position_embeddings": 192,
        "tie_word_embeddings": False,
    }


def recipe_of(*overrides):
    student = ["recipe=quickstart", "student=pretrained", "student.model=org/student", "compression=[]"]
    return parse(_hydra.compose([*student, *overrides]).config)


def refused(student, *overrides):
    with pytest.raises(RecipeError) as error:
        check_adapter(recipe_of("adapter=lora", *overrides), student)
    said = str(error.value)
    assert len(said.splitlines()) <= 6
    return said


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("targets", ["lm_head", "q_proj,lm_head", "q_proj,v_proj"])
def test_a_head_of_its_own_may_be_named(adapter, targets):
    check_adapter(recipe_of(f"adapter={adapter}", f"adapter.target_modules=[{targets}]"), untied_llama())


@pytest.mark.parametrize("model_type", HEADS)
def test_a_head_is_known_whatever_it_is_called(model_type):
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    student = {"model_type": model_type, "num_hidden_layers": 1, **shape}
    named = f"adapter.target_modules=[{HEADS[model_type]}]"
    check_adapter(recipe_of("adapter=lora", named), {**student, "tie_word_embeddings": False})
    said = refused({**student, "tie_word_embeddings": True}, named)
    assert HEADS[model_type] in said and "tie_word_embeddings" in said


def published():
    """Of each family the last checkpoint whose head is tied, and the last whose head is its own."""
    for family in FAMILIES:
        always = family.model_type in {"gpt2", "gpt_neo", "opt", "bloom"}
        by_tie = {point.config.get("tie_word_embeddings", always): point for point in family.published}
        for tied, point in by_tie.items():
            student = {"model_type": family.model_type, **point.config}
            yield pytest.param(student, tied, id=f"{family.name}-{point.size}")


@pytest.mark.parametrize(("student", "tied"), published())
def test_a_tied_head_is_refused_and_an_untied_one_is_not(student, tied):
    if tied:
        said = refused(student, "adapter.target_modules=[lm_head]")
        assert "tie_word_embeddings" in said and "merged" in said and "Leave it out" in said
    else:
        check_adapter(recipe_of("adapter=lora", "adapter.target_modules=[lm_head]"), student)


def test_what_would_not_be_trained_as_asked_is_refused_with_advice():
    named = "adapter.target_modules=[q_proj,lm_head]"
    dropped = refused(untied_llama(), named, "adapter.dropout=0.05")
    assert "adapter.dropout=0.05" in dropped and "Set adapter.dropout=0" in dropped
    averaged = refused(untied_llama(), named, "teacher.targets=frozen_head")
    assert "teacher.targets=frozen_head" in averaged and "sampled" in averaged
    # without the head, both are what they were
    for option in ("adapter.dropout=0.05", "teacher.targets=frozen_head"):
        check_adapter(recipe_of("adapter=lora", "adapter.target_modules=[q_proj]", option), untied_llama())
    missing = refused(untied_llama(), "adapter.target_modules=[c_attn]")
    assert "c_attn" in missing and "lm_head" in missing, "the layers that are there are named, the head too"


@pytest.mark.parametrize("kind", [Lora(kind="lora", rank=8), Qlora(kind="qlora", rank=8)])
def test_the_plan_counts_what_peft_makes(kind):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.hardware import hardware_of
    from distill.planning.package_stages import package_bytes

    config = untied_llama()
    planned = model_of("student", config, "float32", on_disk=True)
    recipe = recipe_of("adapter=lora")
    for targets in (None, [], ["lm_head"], ["q_proj", "lm_head"], ["mlp.down_proj"]):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**config))
            settings = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets or "all-linear")
            made = get_peft_model(model, settings)
        expected = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
        adapter = replace(kind, target_modules=targets)
        adapted = replace(recipe, adapter=adapter)
        assert trained(adapted, planned, hardware_of("1xh100-80gb")).parameters == expected
        assert package_bytes(SimpleNamespace(kind="lora"), planned, adapted) == 4 * expected
    assert planned.head_lora_size(["lm_head"]) == 384 + 64


def test_an_adapter_of_a_checkpoint_that_reads_images_names_the_head_too(tmp_path):
    """PEFT takes a string that says all of a layer's name; a list would reach into the vision tower."""
    import torch
    from safetensors.torch import load_file, save_file

    from distill.runtime._adapter_names import _name_as_whole

    file = tmp_path / "adapter_model.safetensors"
    named = {"model.layers.0.self_attn.q_proj": "model.language_model.layers.0.self_attn.q_proj", "lm_head": "lm_head"}
    save_file({f"base_model.model.{name}.lora_A.weight": torch.zeros(1) for name in named}, file)
    settings = {"target_modules": ["q_proj", "lm_head"]}
    _name_as_whole(file, settings)
    assert set(load_file(file)) == {f"base_model.model.{name}.lora_A.weight" for name in named.values()}
    taken = re.compile(settings["target_modules"])
    assert all(taken.fullmatch(name) for both in named.items() for name in both)
    assert not taken.fullmatch("model.vision_tower.encoder.layers.0.self_attn.q_proj")
    assert not taken.fullmatch("model.vision_tower.lm_head")


@pytest.fixture(scope="session")
def untied_student(tiny_teacher, tmp_path_factory):
    """The tiny teacher with a head of its own, which starts as its embeddings."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("untied") / "student"
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    return folder


RUNS = {
    "lora": ["adapter=lora", "loss=jsd", "teacher.targets=top_k", "teacher.top_k=8"],
    "qlora": ["adapter=qlora", "teacher.live=true", "loss=reverse_kl"],
    # its own answers, scored by the teacher
    "on_policy": ["adapter=lora", "loss=reverse_kl", "teacher.live=true", "training.on_policy=0.5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_trains_merges_packs_and_proves_it(run, untied_student, tiny_run_arguments, run_cli, tmp_path):
    import torch
    from safetensors.torch import load_file

    packages = ["bf16"] if run == "qlora" else ["bf16", "bnb_nf4", "bnb_nf4_lora", "lora", "gguf_q8_0"]
    if run == "on_policy":
        packages = ["lora"]
    kept = [a for a in tiny_run_arguments if not a.startswith("student.")]
    done = run_cli(
        *kept,
        *RUNS[run],
        "student=pretrained",
        f"student.model={untied_student}",
        "adapter.target_modules=[q_proj,down_proj,lm_head]",
        "adapter.rank=4",
        "training.learning_rate=0.02",
        "training.on_policy_rounds=2",
        "training.on_policy_max_new_tokens=8",
        "baselines=[]",
        f"compression=[{','.join(packages)}]",
        *(f"compression.{package}.max_kl_nats=0.3" for package in packages if package not in {"bf16", "lora"}),
        *(["compression.bnb_nf4_lora.max_steps=2"] if "bnb_nf4_lora" in packages else []),
        OMP_NUM_THREADS="1",
        DISTILL_STORE=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / "quickstart").iterdir()
    models = {model["name"]: model for model in json.loads((folder / "scores.json").read_text())["models"]}
    assert all(models[package]["verified"] for package in packages)

    (checkpoint,) = (tmp_path / "store").glob("student/*/checkpoint")
    adapter = load_file(checkpoint / "adapter/adapter_model.safetensors")
    assert all(".lora_" in name for name in adapter), "the head's frozen weight is the base's, not the adapter's"
    A, B = (adapter[f"base_model.model.lm_head.lora_{letter}.weight"] for letter in "AB")
    assert (A.shape, B.shape) == ((4, 64), (384, 4)) and B.abs().max() > 0
    settings = json.loads((checkpoint / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(untied_student) and "lm_head" in settings["target_modules"]
    before, after = load_file(untied_student / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    merged = before["lm_head.weight"].double() + 32 / 4 * B.double() @ A.double()
    torch.testing.assert_close(after["lm_head.weight"].double(), merged, rtol=0, atol=1e-6)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.slow
def test_a_rehearsal_takes_the_same_way_or_says_why_not(run_cli):
    """Llama 2's head is its own, Qwen3 0.6B's is its embeddings; neither is downloaded."""
    named = ["adapter=lora", "adapter.target_modules=[q_proj,lm_head]", "rehearse=true", "compression=[bf16,lora]"]
    done = run_cli("recipe=llama2_70b_to_7b", *named, "licence.accept=[llama-2]", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run_cli("recipe=qwen3_32b_to_0b6", *named, OMP_NUM_THREADS="1")
    assert done.returncode == 2 and "tie_word_embeddings" in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_the_adapter_that_one_trains(sharding, untied_student, tiny_run_arguments, tmp_path):
    import torch
    from safetensors.torch import load_file

    kept = [a for a in tiny_run_arguments if not a.startswith("student.")]
    student = ["student=pretrained", f"student.model={untied_student}", "adapter=lora", "baselines=[]"]
    more = ["adapter.target_modules=[q_proj,lm_head]", "training.bf16=false", "until=train"]
    adapters = []
    for start, folder, how in ((alone, "one", "auto"), (torchrun, "two", sharding)):
        (tmp_path / folder).mkdir()
        done = start(["-m", "distill", *kept, *student, *more, f"training.sharding={how}"], tmp_path / folder)
        assert done.returncode == 0, done.stderr[-3000:]
        (file,) = (tmp_path / folder).glob("outputs/store/student/*/checkpoint/adapter/adapter_model.safetensors")
        adapters.append(load_file(file))
    one, two = adapters
    assert one.keys() == two.keys() and one["base_model.model.lm_head.lora_B.weight"].abs().max() > 1e-3
    for name, weight in one.items():
        # Adam divides a gradient by its own size: of one that is nearly zero, rounding is a part of a step (2e-3)
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-5, msg=name)
        assert (two[name] - weight).norm() <= 5e-4 * weight.norm(), name
