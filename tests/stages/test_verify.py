"""verify: a package that was damaged in one way fails for that reason, and the others beside it do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.compression.bf16 import Bf16
from distill.compression.bnb_nf4 import BnbNf4
from distill.compression.gguf_q8_0 import FILE_NAME, GgufQ8_0
from distill.encoding import encode_prompt, encode_response
from distill.runtime.hf import Transformers
from distill.stages._verify_process import _HeldOut
from distill.stages.verify import verify_packages

NEXT = 7


@pytest.fixture(scope="module")
def examples():
    from distill.data.word_problems import WordProblems

    return WordProblems(kind="word_problems", num_rows=20).load().train[:6]


def edited(file: Path, change: Callable[[dict], None]) -> None:
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))


def test_of_a_long_text_no_more_is_read_than_is_compared(shared_data):
    text = (shared_data / "wikitext2/valid.txt").read_text("utf-8")[:2000]
    checkpoint = shared_data / "stories260k"  # of 512 positions
    request = {"student": str(checkpoint), "prompts": ["", ""], "prompt_texts": ["", ""], "responses": [text, text]}
    with Transformers(checkpoint) as student:
        held_out = _HeldOut(student, {**request, "positions": 40, "greedy_tokens": 1})
        ids = encode_prompt(student.tokenizer, "") + encode_response(student.tokenizer, text)
        whole_NV = student.logprobs([ids[:512]], held_out.positions)
    assert held_out.positions == [list(range(40))] and [len(row) for row in held_out.rows] == [40]
    assert np.abs(held_out.logprobs_NV - whole_NV).max() < 1e-4


def no_template(package: Path) -> None:
    (package / "chat_template.jinja").unlink()


def another_end(package: Path) -> None:
    edited(package / "generation_config.json", lambda said: said.update(eos_token_id=NEXT))


def other_words(package: Path) -> None:
    """Without its last hundred merges, the same words fall into more tokens."""
    edited(package / "tokenizer.json", lambda said: said["model"].update(merges=said["model"]["merges"][:-100]))


def other_weights(package: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = package / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(weights, file, metadata={"format": "pt"})


def half_a_file(package: Path) -> None:
    file = next(iter([*package.glob("*.safetensors"), *package.glob("*.gguf")]))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    no_template: "other prompts",
    another_end: "ends its answers at other tokens",
    other_words: "other token ids",
    other_weights: "nats",
    half_a_file: "does not load",
}


def test_each_damage_is_what_the_verdict_names(tiny_teacher, examples, tmp_path):
    option = Bf16(kind="bf16", max_kl_nats=0.01)
    option.make(tiny_teacher, tmp_path / "whole")
    packages = {"whole": (tmp_path / "whole", option)}
    for damage in DAMAGES:
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / damage.__name__))
        damage(folder)
        packages[damage.__name__] = (folder, option)
    proofs = verify_packages("transformers", tiny_teacher, packages, examples, tmp_path / "proof", 4)
    assert proofs["whole"]["verified"] and proofs["whole"]["detail"] == ""
    assert proofs["whole"]["prompts_equal"] is True and proofs["whole"]["ends_equal"] is True
    for damage, word in DAMAGES.items():
        proof = proofs[damage.__name__]
        assert proof["verified"] is False and word in proof["detail"], (damage.__name__, proof)
    assert ";" not in proofs["no_template"]["detail"] and ";" not in proofs["another_end"]["detail"]


def test_weights_that_are_not_the_quantised_student_s_fail_below_any_bar(tiny_teacher, examples, tmp_path):
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file, save_file

    option = BnbNf4(kind="bnb_nf4", max_kl_nats=100)
    option.make(tiny_teacher, tmp_path / "package")
    file = tmp_path / "package" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    packages = {"bnb_nf4": (tmp_path / "package", option)}
    proof = verify_packages("transformers", tiny_teacher, packages, examples, tmp_path / "proof", 4)["bnb_nf4"]
    assert proof["verified"] is False and proof["bit_equal_reload"] is False
    assert proof["detail"] == "what was saved is not what quantising the student gives"


def test_a_gguf_with_another_template_fails(tiny_teacher, examples, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    option = GgufQ8_0(kind="gguf_q8_0", max_kl_nats=0.01)
    # made of a student whose template is another, and whose weights are the same
    other = Path(shutil.copytree(tiny_teacher, tmp_path / "other"))
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("'<|assistant|>'", "'<|assistant|> '"))
    packages = {}
    for name, source in {"whole": tiny_teacher, "other": other, "half": tiny_teacher}.items():
        option.make(source, tmp_path / "packages" / name)
        packages[name] = (tmp_path / "packages" / name, option)
    half_a_file(tmp_path / "packages" / "half")
    proofs = verify_packages("llama.cpp", tiny_teacher, packages, examples, tmp_path / "proof", 4)
    assert (tmp_path / "packages" / "whole" / FILE_NAME).is_file()
    assert proofs["whole"]["verified"] and proofs["whole"]["prompts_equal"], proofs["whole"]
    assert proofs["other"]["verified"] is False and proofs["other"]["detail"].count("other prompts") == 1
    assert proofs["half"]["verified"] is False and "cannot load" in proofs["half"]["detail"]


LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("chat", [False, True])
def test_a_sentencepiece_student_s_gguf_is_right_where_its_prompts_are(shared_data, examples, tmp_path, chat):
    """llama.cpp puts a blank before all text or before none; a student that chats needs none, one without needs it."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.encoding import load_tokenizer

    stories260k = shared_data / "stories260k"  # a real trained Llama with SentencePiece's tokenizer
    student = Path(shutil.copytree(stories260k, tmp_path / "student"))
    tokenizer = load_tokenizer(stories260k)
    tokenizer.chat_template = LLAMA_2 if chat else None
    tokenizer.save_pretrained(student)  # as training does; transformers 5 writes Metaspace with "first"
    option = GgufQ8_0(kind="gguf_q8_0")  # and of a real model, by its own bar
    option.make(student, tmp_path / "package")
    packages = {"gguf_q8_0": (tmp_path / "package", option)}
    proof = verify_packages("llama.cpp", student, packages, examples, tmp_path / "proof", 4)["gguf_q8_0"]
    assert proof["verified"], proof
