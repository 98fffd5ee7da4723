"""A quick start: modules that libraries import but we rarely need are loaded on first use.

Diffusers and transformers import torch's compiler, peft, sharded tensors, scipy and models of all
kinds, which takes as long as everything else, to mark functions and to ask whether a thing is of
some class. A stand-in answers that. Whatever else is asked of it, it loads the module and passes
the question on.

Only the program's own process has them, see `main`; whoever imports conceptry gets the libraries
as they are.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, new_class
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc would be loaded for the name alone

NAMES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": (),
    "diffusers.models.autoencoders": (),
    "diffusers.models.transformers": (),
    "peft": ("PeftModel",),
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners": (),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "torch._dynamo": (),
    "torch._dynamo.eval_frame": ("OptimizedModule",),
    "torch.distributed._composable.fsdp": ("fully_shard",),
    "torch.distributed.checkpoint": (),
    "torch.distributed.checkpoint.hf_storage": (
        "HuggingFaceStorageReader",
        "HuggingFaceStorageWriter",
    ),
    "torch.distributed.fsdp": (
        "CPUOffloadPolicy",
        "FullyShardedDataParallel",
        "MixedPrecisionPolicy",
    ),
    "torch.distributed.tensor": ("DTensor", "Partial", "Replicate", "Shard", "distribute_tensor"),
    "torch.distributed.tensor._utils": ("compute_local_shape_and_global_offset",),
    "torch.distributed.tensor.placement_types": ("Shard", "_StridedShard"),
    "transformers.distributed.expert_parallel": ("apply_expert_parallelism",),
    "transformers.distributed.tensor_parallel": (
        "apply_tensor_parallelism",
        "gather_state_dict_for_save",
        "get_kv_heads_per_rank",
    ),
    "transformers.models": (),
}
"""The modules that have a stand-in, with the classes and functions that are imported of them."""
ROOTS = tuple(name for name in NAMES if not any(name.startswith(f"{other}.") for other in NAMES))
ALONE = (
    "diffusers.models.autoencoders.",
    "diffusers.models.transformers.",
    "torch._dynamo._trace_wrapped_higher_order_op",
    "transformers.models.",
)
"""Beginnings of the names of modules that do not need what their package does when it is loaded."""


SPINS = "1000"
"""How often one of torch's threads looks whether the others are done before it sleeps.

By default it looks for ten milliseconds: on a machine with other work to do, where the others have
to wait for a core, a training then takes five times as long.
"""


def _as_it_is(
    function: Callable[..., object] | None = None, *_: object, **__: object
) -> Callable[..., object]:
    """Mark a function for the compiler; called with options alone, return a decorator."""
    return function or _as_it_is


def _nothing(*_: object, **__: object) -> None:
    """Tell the compiler something, or check a plan that there is none of."""


ANSWERS: Mapping[str, Mapping[str, object]] = {
    "torch._dynamo": {
        "allow_in_graph": _as_it_is,
        "assume_constant_result": _as_it_is,
        "disable": _as_it_is,
        "graph_break": _nothing,
    },
    "transformers.distributed.tensor_parallel": {"verify_tp_plan": _nothing},
}
"""What some do where nothing is compiled and no model is spread over several devices."""


def install() -> None:
    """Install the stand-ins for modules that are not loaded yet; and let idle threads sleep."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    sys.meta_path.insert(0, _Finder(root for root in ROOTS if root not in sys.modules))
    atexit.register(_collect_at_the_end)


def _collect_at_the_end() -> None:
    """Triton's binding complains, in dozens of lines, of what is still there when Python ends."""
    if "triton" in sys.modules:
        gc.unfreeze()


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import libraries without garbage collection: they leave no garbage.

    The program's own process does not look through them later either.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            gc.freeze()
        if was_on:
            gc.enable()


def check_only_what_is_given() -> None:
    """Let typer load pydantic for words of the command line, and not for its own defaults.

    It would for every option of a command, which takes a third of the time that `list` needs.
    """
    from typer import core

    name = "build_runtime_param"
    build: Callable[[Any], Any] | None = getattr(core, name, None)
    if build is not None:  # typer's own, and private
        setattr(core, name, partial(_Coercion, build))


class _Coercion:
    """Stands for what turns the words of a parameter into values, until there are any."""

    def __init__(self, build: Callable[[Any], Any], descriptor: Any) -> None:
        self._make = cache(partial(build, descriptor))
        self._is_text = descriptor.annotation is str and descriptor.parameter_info.parser is None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """As typer's own."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        is_default = type(value) is type(param.default) and value == param.default
        if is_default or (self._is_text and isinstance(value, str)):
            return value
        return self._make().coerce(value, param, ctx)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in NAMES:
            return import_module(f"{self.__name__}.{name}")
        return getattr(_real(self.__name__), name)


class _Later(type):
    """Stands for a class or function that was imported by name; nothing is an instance yet."""

    __module__: str

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> type:
        """A stand-in; or, where somebody derives from one, a class of the real ones."""
        if not bases:
            return super().__new__(mcs, name, bases, namespace)
        return new_class(
            name,
            tuple(base._real() if isinstance(base, mcs) else base for base in bases),
            exec_body=lambda body: body.update(namespace),
        )

    def _real(cls) -> Any:
        return getattr(_real(cls.__module__), cls.__name__)

    def __call__(cls, *arguments: object, **options: object) -> object:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return cls._is_loaded and isinstance(instance, cls._real())

    def __subclasscheck__(cls, other: type) -> bool:
        return cls._is_loaded and issubclass(other, cls._real())

    @property
    def _is_loaded(cls) -> bool:
        return not isinstance(sys.modules.get(cls.__module__), _StandIn | None)


class _Finder(Loader):
    """Finds stand-ins, as long as nobody has needed the real thing."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = set(roots)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root = _root_of(fullname)
        if root not in self.roots or fullname.startswith(ALONE):
            return None
        if fullname not in NAMES:
            _real(root)
            return ModuleSpec(fullname, _Present()) if fullname in sys.modules else None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        for each in NAMES[name]:
            setattr(module, each, _Later(each, (), {"__module__": name}))
        vars(module).update(ANSWERS.get(name, {}))


class _Present(Loader):
    """Gives a module that was loaded while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It was run already."""


def _root_of(name: str) -> str:
    return next((root for root in ROOTS if f"{name}.".startswith(f"{root}.")), "")


def _forget(stand_in: ModuleType) -> None:
    """Let it pass on every question from now on; some may have it under its name."""
    for name in (*NAMES[stand_in.__name__], *ANSWERS.get(stand_in.__name__, ())):
        delattr(stand_in, name)


def _real(name: str) -> ModuleType:
    """A module itself; with it, those of its root take the places of their stand-ins."""
    root = _root_of(name)
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and root in finder.roots:
            finder.roots.remove(root)
            for each in NAMES:
                if _root_of(each) == root and each in sys.modules:
                    _forget(sys.modules.pop(each))
            import_module(root)
    return import_module(name)
