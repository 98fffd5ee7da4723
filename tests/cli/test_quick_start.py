"""Stand-ins for modules that are rarely needed: who needs one gets the real thing."""

from importlib import import_module
from pathlib import Path

import pytest
from conceptry.cli.quick_start import ANSWERS, NAMES, ROOTS
from program import run_python


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_has_only_names_that_the_module_has(name: str) -> None:
    module = import_module(name)
    assert not [
        each for each in (*NAMES[name], *ANSWERS.get(name, ())) if not hasattr(module, each)
    ]


@pytest.mark.long
def test_drawing_needs_none_of_them(tmp_path: Path) -> None:
    program = f"""
import sys
from conceptry.cli import main
sys.argv[1:] = ["generate", "a cat", "--steps", "1", "-n", "1", "--out", {str(tmp_path / "out")!r}]
try:
    main()
finally:
    print([name for name in {ROOTS} if type(sys.modules.get(name)).__name__ == "module"])
"""
    output = run_python(program, CONCEPT_REGISTRY=str(tmp_path / "concepts.db"))
    assert output.splitlines()[-1] == "[]"


@pytest.mark.long
def test_the_real_modules_take_their_places() -> None:
    program = """
import sys
from conceptry.cli import quick_start
quick_start.install()
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.lora_base import BaseTunerLayer as early

class Marked:
    @torch.compiler.disable(recursive=True)
    def double(self, x):
        return x + x

assert "peft.auto" not in sys.modules and "torch._dynamo.config" not in sys.modules
assert not isinstance(torch.nn.Linear(1, 1), early)

class Ours(early):
    adapter_layer_names = ("ours",)

assert "peft.tuners.tuners_utils" in sys.modules and issubclass(Ours, early)
assert Ours.__mro__[1] is sys.modules["peft.tuners.tuners_utils"].BaseTunerLayer

from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners import lora
layer = Linear(torch.nn.Linear(2, 2), "default", config=LoraConfig(r=1), r=1)
assert isinstance(layer, early)
assert issubclass(Linear, early) and not issubclass(torch.nn.Linear, early)
assert sys.modules["peft.tuners.lora"] is lora and lora.Linear is Linear

import torch._dynamo.config
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert torch.compile(lambda x: Marked().double(x) + 1, backend="eager")(torch.ones(1)) == 3

betas = DDIMScheduler(num_train_timesteps=10)
import scipy.stats
assert scipy.stats.beta.ppf(0.5, 2, 2).round(6) == 0.5
from scipy import optimize
from transformers import AutoConfig
from transformers.models.clip.configuration_clip import CLIPConfig
assert isinstance(AutoConfig.for_model("clip"), CLIPConfig)
assert type(sys.modules["transformers.models"]).__name__ == "_StandIn"
from transformers.models import clip, vit
assert clip.CLIPConfig is CLIPConfig and vit.ViTConfig().model_type == "vit"
assert sys.modules["transformers.models"].clip is clip
assert optimize.linear_sum_assignment([[1, 0], [0, 1]])[1].tolist() == [1, 0]
print("as they are")
"""
    assert run_python(program) == "as they are\n"


def test_only_the_programs_own_process_leaves_what_it_imported_uncollected() -> None:
    program = """
import gc
from conceptry.cli import quick_start
def frozen():
    with quick_start.quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    return gc.get_freeze_count() > 1_000
print(frozen())
quick_start.install()
print(frozen())
"""
    assert run_python(program).split() == ["False", "True"]


@pytest.mark.parametrize("name", ["triton", "nothing"])
def test_what_triton_holds_is_collected_at_the_end(name: str) -> None:
    program = f"""
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from conceptry.cli import quick_start
quick_start.install()
with quick_start.quick_imports():
    sys.modules[{name!r}] = sys
"""
    assert run_python(program).split() == [str(name == "nothing")]
