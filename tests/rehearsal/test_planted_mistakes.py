"""A mistake that would stop the real run in its ninth hour stops the rehearsal, in words that say what to do.

What a mistake is planted into passes without it: the shipped recipes in test_recipes.py, the user's own files here.
"""

import json

import pytest

from distill.encoding import load_tokenizer
from distill.errors import DistillError
from distill.rehearsal._data import sample
from distill.rehearsal._sources import source
from distill.rehearsal.check import check_rehearsal, gated_unproven


@pytest.fixture
def stopped(rehearse_here):
    def run(*overrides, words):
        with pytest.raises(DistillError) as refused:
            rehearse_here(*overrides)
        message = str(refused.value)
        assert all(word in message for word in words), message
        assert len(message.splitlines()) <= 6
        return refused.value

    return run


@pytest.mark.slow
def test_without_a_mistake_the_users_own_files_pass(rehearse_here, chat_recipe):
    folder = rehearse_here(*chat_recipe)
    assert "chat_model: llama (llama) at a width of 64, its own tokenizer" in (folder / "rehearsal.md").read_text()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["recipe=bloom176b_to_560m", "data.subset=20231101.sw", "data.split=validation"], None),
        (["recipe=bloom176b_to_560m", "data.subset=20231101.simple", "data.split=validation"], "no such split"),
        (["recipe=bloom176b_to_560m", "data.subset=null"], "data.subset=20231101.simple"),
    ],
)
def test_another_subset_of_a_known_data_set_is_no_mistake_and_has_splits_of_its_own(compose, typed, said):
    if said is None:
        check_rehearsal(compose(*typed))
    else:
        with pytest.raises(DistillError, match=said):
            check_rehearsal(compose(*typed))


def test_what_stands_in_for_another_subset_is_said(compose, tmp_path):
    other, own = (sample(compose("recipe=bloom176b_to_560m", *typed), tmp_path) for typed in (["data.subset=sw"], []))
    assert "that wikimedia/wikipedia has sw: the columns of 20231101.simple stood in" in other.not_proven
    assert not any("stood in" in words for words in own.not_proven)


SHIPPED = [
    pytest.param(
        ["recipe=qwen3_32b_to_0b6", "student.model=openai-community/gpt2", "training.max_length=1024"],
        ["tokenizers of teacher and student differ", "Qwen3-32B", "gpt2", "loss=text"],
        id="vocabulary of another family",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "adapter=qlora", "adapter.target_modules=[q_proj,v_proj]"],
        ["adapter.target_modules", "q_proj", "c_attn"],
        id="QLoRA on layers that are not there",
    ),
    pytest.param(
        ["recipe=qwen3_32b_to_0b6", "adapter=qlora", "adapter.target_modules=[q_proj,lm_head]"],
        ["adapter.target_modules", "lm_head", "output head"],
        id="QLoRA on the layer that stays in 16 bits",
    ),
    pytest.param(
        ["recipe=qwen3_32b_to_0b6", "adapter=qlora", "adapter.target_modules=[q_proj,input_layernorm]"],
        ["input_layernorm", "not the name of a linear layer", "down_proj"],
        id="QLoRA on a norm",
    ),
    pytest.param(
        ["recipe=opt66b_to_1b3", "compression=[bf16,gguf_q8_0]"],
        ["gguf_q8_0", "llama.cpp has no architecture for opt"],
        id="an export that the architecture lacks",
    ),
    pytest.param(
        ["recipe=low_resource_news", "data.response_field=topic"],
        ["No", "answer", "data.response_field"],
        id="an evaluation field missing",
    ),
    pytest.param(
        ["recipe=qwen3_32b_to_0b6", "data.prompt_template=null", "data.prompt_field=question"],
        ["no field 'question'", "data.prompt_field"],
        id="a prompt field missing",
    ),
    pytest.param(
        ["recipe=qwen3_32b_to_0b6", "teacher=vllm", "teacher.tensor_parallel_size=6"],
        ["teacher.tensor_parallel_size=6", "64 heads", "8 for keys and values", "pipeline_parallel_size"],
        id="a tensor-parallel size that does not divide the heads",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "training.max_length=2048"],
        ["training.max_length=2048", "1024 positions"],
        id="a context longer than the model's",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "training.num_train_epochs=0.0001"],
        ["training.num_train_epochs=0.0001", "not one optimizer step"],
        id="a learning-rate schedule with zero steps",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "hardware=9xfoo-12gb"],
        ["hardware=9xfoo-12gb", "no device 'foo-12gb'", "h100-80gb", "Describe any other one:", "hardware='4xmine:"],
        id="a device that nobody knows",
    ),
    pytest.param(
        ["recipe=opt66b_to_1b3", "teacher.model=facebook/opt-3b"],
        ["teacher.model=facebook/opt-3b", "OPT was published in 125M", "facebook/opt-1.3b"],
        id="a size that does not exist",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "data.split=trian"],
        ["data.split=trian", "databricks/databricks-dolly-15k", "train"],
        id="a split that does not exist",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "data.rows='20000:'"],
        ["data.rows=20000:", "leaves no row"],
        id="a slice beyond the data",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "teacher.targets=dense"],
        ["teacher.targets=dense", "50,257", "top_k"],
        id="whole distributions of a large vocabulary",
    ),
    pytest.param(
        ["recipe=gpt2xl_to_gpt2", "student.layers=[0,5,12]", "compression=[bf16]"],
        ["student.layers", "0 to 11", "12"],
        id="layers that the student does not have",
    ),
    pytest.param(
        ["recipe=math_assistant", "student.model=Qwen/Qwen2.5-1.5B", "student.revision=null"],
        ["tokenizers of teacher and student differ", "Qwen2.5-7B-Instruct", "Qwen2.5-1.5B-1", "loss=text"],
        id="a base student of a chat teacher, with another end",
    ),
    pytest.param(
        ["recipe=opt175b_to_1b3", "teacher.model=facebook/opt-175b"],
        ["teacher.model=facebook/opt-175b: no hub has the weights of OPT 175B", "checkpoints/opt-175b", "on request"],
        id="weights that no hub has",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), SHIPPED)
def test_a_mistake_in_a_shipped_recipe(stopped, overrides, words):
    stopped(*overrides, words=words)


def test_a_warm_up_as_long_as_the_training_is_said_and_stops_nothing(compose):
    """The trainer warms up for half of the steps at most, so a real run goes on too."""
    steps = ["recipe=gpt2xl_to_gpt2", "compression=[bf16]", "training.max_steps=80"]
    (said,) = check_rehearsal(compose(*steps, "training.warmup_steps=100"))
    assert all(word in said for word in ("training.warmup_steps=100", "80 steps", "after 40 of them"))
    assert check_rehearsal(compose(*steps, "training.warmup_steps=40")) == ()


def test_a_template_that_drops_the_agents_turns(stopped, chat_recipe, chat_model):
    template = (chat_model / "chat_template.jinja").read_text()
    planted = "{% for message in messages if message['role'] != 'assistant' %}"
    (chat_model / "chat_template.jinja").write_text(template.replace("{% for message in messages %}", planted, 1))
    stopped(*chat_recipe, words=["chat template", "assistant said", "What is its number?", "chat_template.jinja"])


def test_a_template_that_refuses_the_datas_turns(stopped, chat_recipe, chat_model):
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    file = chat_model / "chat_template.jinja"
    file.write_text(refuses + file.read_text())
    stopped(*chat_recipe, words=["chat template", "one turn only", "user, assistant, user"])


def test_a_template_that_drops_system_turns(stopped, chat_recipe, chat_model, dialogues):
    file = chat_model / "chat_template.jinja"
    planted = "{% for message in messages if message['role'] != 'system' %}"
    file.write_text(file.read_text().replace("{% for message in messages %}", planted, 1))
    row = json.loads(dialogues.read_text().splitlines()[0])
    turns = [{"role": "system", "content": "You work for a parcel service."}, *row["messages"]]
    dialogues.write_text("".join(json.dumps({"messages": turns, "number": n}) + "\n" for n in range(40)))
    stopped(*chat_recipe, words=["chat template", "system said", "You work for a parcel service."])


def test_a_template_without_a_generation_prompt(stopped, chat_recipe, chat_model):
    file = chat_model / "chat_template.jinja"
    file.write_text(file.read_text().partition("{% if add_generation_prompt %}")[0])
    stopped(*chat_recipe, words=["chat_model", "no generation prompt", "'<|assistant|>'", "chat_template.jinja"])


def test_tokens_that_the_embedding_has_no_row_for(stopped, chat_recipe, chat_model):
    tokenizer = load_tokenizer(chat_model)
    num_rows = len(tokenizer)
    tokenizer.add_tokens(["parcel"])
    tokenizer.save_pretrained(chat_model)
    words = ["chat_model", f"{num_rows + 1} tokens", f"{num_rows} rows", "'parcel'", "resize_token_embeddings"]
    stopped(*chat_recipe, words=words)


def test_rotary_positions_of_an_unknown_kind(stopped, chat_recipe, chat_model):
    config = json.loads((chat_model / "config.json").read_text())
    rope = {"rope_type": "yarnn", "rope_theta": 10_000.0, "factor": 2.0}
    (chat_model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    stopped(*chat_recipe, words=["teacher.model", "'yarnn'", "yarn, longrope"])


def test_prompts_that_are_all_too_long(stopped, chat_recipe, chat_model, dialogues):
    lines = [json.loads(line) for line in dialogues.read_text().splitlines()]
    for line in lines:
        line["messages"][0]["content"] = "My parcel is late. " * 20
    dialogues.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 40 dialogues, a tenth of them held out; none is without an answer
    words = ["No row is left", "of 36, 36 have prompts", "training.max_length=160.", "Raise training.max_length"]
    said = str(stopped(*chat_recipe, "teacher.responses=data", words=words))
    assert "no answer" not in said


def test_answers_that_are_the_prompts(stopped, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"How much is {n} + 1?", "answer": n + 1}) + "\n" for n in range(40))
    )
    fields = ["data.prompt_field=question", "data.response_field=question"]
    recipe = ["recipe=customer_service_teacher", f"data.path={rows}", "data.rows=null"]
    stopped(*recipe, *fields, words=["answers equal their prompts", "data.response_field", "'question'"])


def test_a_response_field_with_lists(stopped, tmp_path):
    # far behind what a sample would see
    rows = [{"text": f"Case {n}", "label_text": ["late", "lost"] if n == 170 else "late"} for n in range(200)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ["recipe=customer_service_teacher", f"data.path={file}", "data.rows=null"]
    stopped(*recipe, words=["line 171", "label_text", "list", "data.messages_field"])


def test_labels_shifted_by_one(stopped, tmp_path, tiny_teacher):
    """Targets for each token, written as Axolotl 0.18.0 did and read as newer ones do."""
    ids, rows = _encoded(tiny_teacher)
    # row j is of token j: the log-probability of the token itself, and little for a few others
    lines = []
    for row in ids:
        targets = [[token, *(other for other in (1, 2, 3) if other != token)][:3] for token in row]
        lines.append(
            {
                "input_ids": row,
                "labels": row,
                "target_token_ids": targets,
                "target_logprobs": [[-0.1, -3.0, -4.0]] * len(row),
                "target_mask": [[1, 1, 1]] * len(row),
            }
        )
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = _file_recipe(tmp_path, rows, tiny_teacher)
    stopped(*recipe, "teacher.layout=axolotl_prepared", words=["one position off", "axolotl_prepared_legacy"])


def test_a_store_of_another_tokenizers_tokens(stopped, tmp_path, tiny_teacher):
    from distill.checkpoint import BUNDLED

    other = BUNDLED / "quickstart_teacher"
    ids, rows = _encoded(other)
    lines = [
        {
            "input_ids": row,
            "labels": row,
            "target_token_ids": [[t] for t in row],
            "target_logprobs": [[-0.1]] * len(row),
        }
        for row in ids
    ]
    lines = [{**line, "target_mask": [[1]] * len(line["input_ids"])} for line in lines]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = _file_recipe(tmp_path, rows, tiny_teacher)
    stopped(*recipe, "teacher.layout=axolotl_prepared_legacy", words=["teacher.tokenizer", "answers.jsonl"])


@pytest.mark.slow
def test_an_export_that_forgets_the_order_of_a_heads_rows(stopped, monkeypatch):
    """Llama's rotary halves left as transformers has them: the file loads, and says something else."""
    monkeypatch.setattr("distill.compression._gguf_llama.rearranged", lambda array, source, config: array)
    recipe = ["recipe=llama2_70b_to_7b", "compression=[gguf_q8_0]", "baselines=[]"]
    stopped(*recipe, words=["Verification failed", "gguf_q8_0", "mean divergence", "0.01 is allowed"])


def test_a_gated_repository_without_a_token(stopped, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    words = ["teacher.model=meta-llama/Llama-2-70b-hf", "gated", "hf auth login", "folder", "HF_HUB_OFFLINE=1"]
    stopped("recipe=llama2_70b_to_7b", words=words)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    stopped("recipe=llama2_70b_to_7b", "training.max_length=9999", words=["training.max_length=9999"])


def test_a_repository_that_may_be_gated_is_not_proven(monkeypatch):
    monkeypatch.setattr("distill.rehearsal.check.has_token", lambda: False)
    models = ["mistralai/Mistral-7B-v0.1", "mistralai/Mistral-Small-24B-Base-2501", "meta-llama/Llama-2-7b-hf"]
    said = gated_unproven([source("student.model", model, None) for model in models])
    why = "gated, and there is no token here"
    assert [words.partition(": it ")[2] for words in said] == [f"was for a time, and may be, {why}", f"is {why}"]


def test_an_architecture_that_nobody_knows(stopped, chat_recipe, chat_model):
    config = json.loads((chat_model / "config.json").read_text())
    (chat_model / "config.json").write_text(json.dumps({**config, "model_type": "brand_new"}))
    stopped(*chat_recipe, words=["teacher.model", "'brand_new'", "llama", "qwen3", "bf16"])


def test_a_folder_without_a_tokenizer(stopped, chat_recipe, chat_model):
    for file in chat_model.glob("*token*"):
        file.unlink()
    stopped(*chat_recipe, words=["chat_model", "tokenizer", "config.json"])


def _encoded(folder):
    """Token ids of 40 short rows as this folder's tokenizer renders them, and the rows."""
    from distill.encoding import encode_prompt, encode_response, load_tokenizer

    tokenizer = load_tokenizer(folder)
    rows = [{"prompt": f"Ada has {n} pens. Ben has 3.", "response": f"{n}+3={n + 3}\n#### {n + 3}"} for n in range(40)]
    ids = [encode_prompt(tokenizer, row["prompt"]) + encode_response(tokenizer, row["response"]) for row in rows]
    return ids, rows


def _file_recipe(tmp_path, rows, folder):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("recipe=quickstart", "data=local", f"data.path={tmp_path / 'rows.jsonl'}", "baselines=[]"),
        *("teacher=file", f"teacher.path={tmp_path / 'answers.jsonl'}", f"teacher.tokenizer={folder}"),
        *("compression=[bf16]", "training.warmup_steps=2"),
    ]
