"""An adapter of a checkpoint from a hub names that checkpoint, whatever folder it was trained from."""

import json
import subprocess
import sys

from tests.conftest import cli_environment
from tests.hub_stand_in import commit, hub_of

CODE = """
import json, sys
from pathlib import Path
import torch
from distill.checkpoint import local_folder
from distill.runtime._adapter_names import name_base
from distill.runtime._loading import load_model
from distill.runtime.bnb import import_bitsandbytes
import_bitsandbytes()
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

revision, adapter = sys.argv[1], Path(sys.argv[2])
torch.manual_seed(0)
settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", base_model_name_or_path="org/base")
model = get_peft_model(load_model(local_folder("org/base", revision), device="cpu"), settings).eval()
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.1)
model.save_pretrained(adapter)
as_peft_wrote = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
name_base(adapter, "org/base", revision)
ids = torch.arange(5, 25)[None]
with torch.no_grad():
    told = model(input_ids=ids).logits
    theirs = AutoPeftModelForCausalLM.from_pretrained(adapter)(input_ids=ids).logits
    ours = load_model(adapter, device="cpu")(input_ids=ids).logits
    plain = load_model(local_folder("org/base", revision), device="cpu")(input_ids=ids).logits
print(json.dumps({
    "wrote": as_peft_wrote,
    "theirs": (told - theirs).abs().max().item(),
    "ours": (told - ours).abs().max().item(),
    "moved": (told - plain).abs().max().item(),
}))
"""


def test_an_adapter_names_the_hub_s_checkpoint_and_its_revision(tiny_teacher, tmp_path):
    revision, adapter = commit(tiny_teacher), tmp_path / "adapter"
    command = [sys.executable, "-c", CODE, revision, str(adapter)]
    with hub_of({"org/base": {"main": tiny_teacher}}) as (endpoint, _):
        # the second time, what was downloaded at a revision is found without asking
        for offline in ("0", "1"):
            home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
            ran = subprocess.run(command, env=cli_environment(**home), capture_output=True, text=True, timeout=300)
            assert ran.returncode == 0, ran.stderr
            said = json.loads(ran.stdout.splitlines()[-1])
            assert str(tmp_path) in said["wrote"], "PEFT names the cache of this machine"
            settings = json.loads((adapter / "adapter_config.json").read_text())
            assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", revision)
            assert said["moved"] > 0.1 and max(said["theirs"], said["ours"]) < 1e-5
