"""Everything private of torch that attnpass uses, in one file.

Read in torch 2.13.0; attnpass supports torch 2.11 and newer. Each entry says why the public API is
not enough. ``tests/test_torch_internals.py`` checks that each exists and still means this. Modules
that are slow to import are imported inside functions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.fx.traceback as fx_traceback
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._guards import TracingContext
from torch._library.custom_ops import OPDEFS, CustomOpDef
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._C import FunctionSchema

__all__ = [
    "CustomOpDef",
    "FakeTensor",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "TorchDispatchMode",
    "TracingContext",
    "pytree",
    "unset_fake_temporarily",
]
# TracingContext: Dynamo's own fake tensors; other fake tensors would add guards nobody checks.
# pytree: the trees that Dynamo itself flattens; torch.utils.pytree is not in 2.13.
# HigherOrderOperator, OpOverload, OpOverloadPacket: how a graph's targets are told apart.
# TorchDispatchMode: to hear which operators run outside every graph.
# CustomOpDef: what torch.library.custom_op returns, to find the functions behind it.
# FakeTensor, unset_fake_temporarily: to run a constant part of a graph on real tensors.

_CONVOLUTIONS = threading.RLock()

GRAD_MODE = "_set_grad_enabled"
"""The name of the node that switches gradients in a traced graph."""

PARAMETERS = "_parameters"
"""The dictionary of a module's parameters, as Dynamo's sources spell it."""


def schema(node: Any) -> FunctionSchema | None:
    """The schema of the operator that a node calls; None where it calls something else.

    Public API: none. The schema says which arguments are written and which results are views.
    """
    found: FunctionSchema | None = getattr(getattr(node, "target", None), "_schema", None)
    return found


def hooks_set_aside() -> AbstractContextManager[Any]:
    """Inside, tensors that a backward will need do not pass the hooks of a checkpoint.

    A checkpoint counts what is saved, and would count what tracing saves. Public API: none that
    says whose hooks are set; those of others stay, as compilers read them.
    """
    from contextlib import nullcontext

    found = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if found is None or getattr(found[0], "__module__", "") != "torch.utils.checkpoint":
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def side_effects() -> Container[Any]:
    """Operators that fx keeps though nothing reads their result: assertions, prints, tokens.

    Public API: none (``torch.fx.node.has_side_effect`` registers, nothing lists).
    """
    from torch.fx.node import _side_effectful_functions

    return _side_effectful_functions


def traced_function() -> tuple[str, bool] | None:
    """``'name' (file:line)`` of the function that Dynamo compiles, and whether it is new to it.

    Public API: none. The name is as Dynamo prints it. None outside of a backend's call.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._guards import CompileContext

    try:
        code = InstructionTranslator.current_tx().output.root_tx.f_code
    except (AttributeError, AssertionError):
        return None
    turn = CompileContext.current_compile_id()
    new = turn is None or not turn.frame_compile_id
    return f"'{code.co_name}' ({code.co_filename}:{code.co_firstlineno})", new


class _RecompileLimit(logging.Filter):
    """Hears what Dynamo logs where it gives up compiling a function."""

    def __init__(self, told: Callable[[str], None]) -> None:
        super().__init__()
        self.told = told

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        if "hit config." in str(record.msg) and isinstance(record.args, tuple):
            self.told(str(record.args[2]))
        return True


def on_recompile_limit(told: Callable[[str], None]) -> None:
    """Call ``told`` with the function that Dynamo compiles no more, whenever it gives one up.

    Public API: none but the log; where it is silenced, nothing is heard. What ``told`` raises
    reaches the caller of the function.
    """
    log = logging.getLogger("torch._dynamo.convert_frame")
    if not any(isinstance(f, _RecompileLimit) and f.told == told for f in log.filters):
        log.addFilter(_RecompileLimit(told))


def dynamo_exceptions() -> tuple[type[BaseException], ...]:
    """What Dynamo raises to steer itself: restarts of its analysis, graph breaks, user errors.

    Public API: none. A backend that swallows a restart compiles a graph that is given up.
    """
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def overload_name(target: OpOverload) -> str:
    """``Tensor`` of ``aten.add_.Tensor``, to find the functional overload of the same name."""
    return str(target._overloadname)


def storage_id(x: Tensor) -> int:
    """What two tensors of one storage share. ``data_ptr`` is 0 for every fake tensor."""
    return int(x.untyped_storage()._cdata)


def version(x: Tensor) -> int:
    """How often autograd saw a tensor written. Writes through ``.data`` are not counted."""
    return int(x._version)


def expression(size: Any) -> Any:
    """A size as ``int`` or sympy expression. Comparing the ``SymInt`` itself would add a guard.

    Divisions that leave no rest are done: of a batch and a length that share one symbol ``s``,
    torch leaves ``s**2 // s``, which no comparison finds equal to ``s``.
    """
    if not isinstance(size, torch.SymInt):
        return size
    from torch.utils._sympy.functions import FloorDiv

    expr = size.node.expr
    return expr.replace(FloorDiv, _divided) if expr.has(FloorDiv) else expr


def _divided(of: Any, by: Any) -> Any:
    """``of // by``, as a polynomial of integers where it is one: exact for all that is not 0."""
    from sympy import Poly, PolynomialError, cancel
    from torch.utils._sympy.functions import FloorDiv

    try:
        exact = Poly(cancel(of / by), *sorted(of.free_symbols | by.free_symbols, key=str))
    except PolynomialError:
        return FloorDiv(of, by)
    return exact.as_expr() if exact.domain.is_ZZ else FloorDiv(of, by)


def argument_fakes(
    like: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[Any, Tensor]]:
    """Each tensor in ``args`` and ``kwargs`` that Dynamo read, with the fake one in its place.

    ``like`` is a fake tensor of the same trace. Public API: none. A graph's inputs leave out a
    tensor of which the model read only the sizes; ``torch.export`` says more, of its own traces.
    A LookupError says that an argument is found by no path.
    """
    scope = {"L": {"args": args, "kwargs": kwargs}}
    found = []
    for tracked in like.fake_mode.shape_env.tracked_fakes or ():  # type: ignore[attr-defined]
        name = tracked.source.name
        name = name() if callable(name) else name
        if not name.startswith(("L['args']", "L['kwargs']")):
            continue
        try:
            x = eval(name, {}, scope)
        except Exception as error:
            raise LookupError(name) from error
        if isinstance(x, Tensor):
            found.append((x, tracked.fake))
    return found


def size_guards(fakes: Mapping[str, Tensor]) -> list[str]:
    """The conditions on sizes and strides of a trace, as Python over ``L['name']``.

    Public API: none. Dynamo checks the same ones before it runs a graph, but says them to nobody.
    An offset in the storage is no condition, as for Dynamo.
    """
    from torch._dynamo.source import LocalSource

    env = next(iter(fakes.values())).fake_mode.shape_env  # type: ignore[attr-defined]
    sources = [LocalSource(name) for name in fakes]
    found = env.produce_guards(list(fakes.values()), sources, ignore_static=False)
    return [text for text in found if ".storage_offset() ==" not in text]


@contextmanager
def any_convolution() -> Iterator[None]:
    """Inside, a trace takes no condition from which kernel a convolution would choose.

    A fake convolution asks torch which one would run, by thresholds such as ``16 <= batch``, to
    learn the memory format of its result and nothing else. Where all kernels give one format,
    the thresholds decide nothing: the operator in the graph chooses anew at every call. Where
    formats differ (channels last) they stay conditions. Public API: none. One thread at a time:
    each puts back what it found.
    """
    with _CONVOLUTIONS, _any_convolution():
        yield


@contextmanager
def _any_convolution() -> Iterator[None]:
    select = torch._C._select_conv_backend
    format_of = torch._C._conv_determine_backend_memory_format
    kinds: Any = torch._C._ConvBackend  # type: ignore[attr-defined]
    # not all of them have a name in Python
    numbers = range(max(int(kind) for kind in kinds.__members__.values()) + 1)

    def chosen(x: Any, weight: Any, *args: Any, **given: Any) -> Any:
        env = x.fake_mode.shape_env if isinstance(x, FakeTensor) else None
        if env is None or x.is_mkldnn or x.is_xpu:
            return select(x, weight, *args, **given)
        rows = (x, weight)
        if weight.ndim == 3:  # torch computes it as one of images, and asks for their format
            rows = x.contiguous().unsqueeze(2), weight.unsqueeze(2)
        if len({format_of(*rows, kinds(i)) for i in numbers}) > 1:
            return select(x, weight, *args, **given)
        with env.suppress_guards():
            return select(x, weight, *args, **given)

    torch._C._select_conv_backend = chosen
    try:
        yield
    finally:
        torch._C._select_conv_backend = select


def hint(size: int | torch.SymInt) -> int | None:
    """A size, or the value that a symbolic one was met with, without a guard on it."""
    return size if isinstance(size, int) else size.node.hint


def statically_known_true(condition: Any) -> bool:
    """Whether a condition on sizes holds for every size that the guards allow; adds no guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    return bool(known(condition))


def make_fx(
    run: Callable[..., Any], *given: Any, opened: dict[Any, Callable[..., Any]] | None = None
) -> fx.GraphModule:
    """``run`` traced before dispatch to autograd: differentiable ATen, module paths kept.

    ``torch.export`` would guard and lift anew; Dynamo's graph needs only another vocabulary.

    Args:
        opened: operator -> what is traced in its place.
    """
    from torch.fx.experimental.proxy_tensor import make_fx as trace

    return trace(run, decomposition_table=opened, pre_dispatch=True)(*given)


def make_fx_below_autograd(run: Callable[..., Any], *given: Any) -> fx.GraphModule:
    """``run`` traced below autograd and functorch: what a transformed function calls in the end.

    Public API: none that traces fake tensors of a mode that is active already.
    """
    from torch.fx.experimental.proxy_tensor import make_fx as trace

    return trace(run)(*given)


def proxy_mode() -> Any:
    """The mode that is recording a graph, to put one opaque call into it as one node."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode()


def disable_proxy_modes_tracing() -> AbstractContextManager[Any]:
    """Inside, what runs is not recorded."""
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.disable_proxy_modes_tracing()


def track_tensor_tree(values: Any, proxy: Any, tracer: Any) -> Any:
    """Fake values as the result of a recorded call."""
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.track_tensor_tree(values, proxy, constant=None, tracer=tracer)


def fake_mode_of(like: Tensor) -> AbstractContextManager[Any]:
    """The mode of a fake tensor, to compute with it outside its trace."""
    mode: AbstractContextManager[Any] = like.fake_mode  # type: ignore[attr-defined]
    return mode


def current_meta() -> dict[str, Any]:
    """The metadata that nodes recorded now will have: where the module path can be extended."""
    meta: dict[str, Any] = fx_traceback.current_meta
    return meta


def encoder_layer_operator() -> Any:
    """The fused inference path of ``nn.TransformerEncoderLayer``: one opaque node to be opened."""
    return torch._transformer_encoder_layer_fwd


def next_checkpoint_id() -> int:
    """A fresh id for a checkpointed region, as activation checkpointing itself draws it."""
    from torch._higher_order_ops import wrap

    return next(wrap.uid)


def dynamo_source(node: fx.Node) -> Any:
    """Where Dynamo says that an input comes from; None where it does not."""
    return getattr(node, "_dynamo_source", None)


def set_dynamo_source(node: fx.Node, source: Any) -> None:
    """Keep the origin of an input that was traced again: inductor asks for it."""
    node._dynamo_source = source  # type: ignore[attr-defined]


STATIC_INPUT = "_dynamo_static_input_type"
"""The mark of an input with a fixed address; without it CUDA graphs copy every weight."""


def is_static_input(node: fx.Node) -> bool:
    """Whether Dynamo marked an input as a parameter or buffer of the model."""
    return bool(node.meta.get("tensor_dict", {}).get(STATIC_INPUT))


def set_added_input(node: fx.Node, source: Any) -> None:
    """Describe an input that Dynamo did not know (a form's parameter) as it describes its own."""
    set_dynamo_source(node, source)
    node.meta["tensor_dict"] = {STATIC_INPUT: "unguarded"}


WEIGHT_SOURCES = "_param_name_to_source"


def weight_sources(old: fx.GraphModule, new: fx.GraphModule) -> None:
    """Carry the origin of every weight from Dynamo's graph to the one traced from it.

    A constant that tracing lifted into the graph is its own origin. Without one the inner compiler
    fails: "not found in param_name_to_source".
    """
    from torch._dynamo.source import ConstantSource

    if hasattr(old, WEIGHT_SOURCES):
        constants = {name: ConstantSource(f"attnpass_{name}") for name, _ in new.named_buffers()}
        setattr(new, WEIGHT_SOURCES, constants | getattr(old, WEIGHT_SOURCES))


def mark_static(parameters: Iterable[nn.Parameter]) -> None:
    """Tell Dynamo's fake mode that these tensors, new to it, have fixed sizes and an origin."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatefulSymbolicContext

    context = TracingContext.try_get()
    if context is None:
        return
    for i, parameter in enumerate(parameters):
        context.tensor_to_context[parameter] = StatefulSymbolicContext(
            dynamic_sizes=[DimDynamic.STATIC] * parameter.dim(),
            tensor_source=ConstantSource(f"attnpass_parameter_{i}"),
        )


def reparametrized(
    module: nn.Module, values: Mapping[str, Tensor]
) -> AbstractContextManager[None]:
    """Inside, the module computes with ``values``; ``functional_call`` takes no sub-calls."""
    context: AbstractContextManager[None] = torch.nn.utils.stateless._reparametrize_module(
        module, dict(values)
    )
    return context


def maybe_dynamic(x: Tensor, dim: int) -> None:
    """Let a size be symbolic where the model allows it; ``mark_dynamic`` raises where not."""
    torch._dynamo.maybe_mark_dynamic(x, dim)  # type: ignore[no-untyped-call]


def unmark_dynamic(x: Tensor) -> None:
    """Take the mark of ``maybe_dynamic`` back: the tensor is the caller's."""
    for mark in ("_dynamo_weak_dynamic_indices", "_has_dynamo_dim_marking"):
        x.__dict__.pop(mark, None)


RECOMPILES: dict[str, Any] = {
    "recompile_limit": 64,
    "accumulated_recompile_limit": 4096,
    "fail_on_recompile_limit_hit": True,
}
"""A model may recompile for 64 shapes; beyond that Dynamo raises.

By default it falls back to eager in silence: another plan than the one in use would run.
"""


def raise_recompile_limits() -> AbstractContextManager[Any]:
    """Inside, the limits above hold."""
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(RECOMPILES)  # type: ignore[no-untyped-call]
    return patch


def keep_recompile_limits() -> None:
    """From now on the limits above hold, in a process of our own."""
    for name, value in RECOMPILES.items():
        setattr(torch._dynamo.config, name, value)


def is_recompile_limit(error: BaseException) -> bool:
    """Whether an error says that the limit above was reached."""
    return isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit)


def compile_fx(gm: fx.GraphModule, inputs: list[Any], patches: Mapping[str, Any]) -> Any:
    """Inductor on a graph that Dynamo gave to another backend, with changes to its settings."""
    from torch._inductor.compile_fx import compile_fx as inductor

    return inductor(gm, inputs, config_patches=dict(patches) or None)


def inductor_modes(mode: str | None = None) -> dict[str, Any]:
    """The settings that a mode stands for; without one, all modes."""
    modes: dict[str, Any] = torch._inductor.list_mode_options(mode)
    return modes


def aot_eager(gm: fx.GraphModule, inputs: list[Any]) -> Any:
    """The graph through AOTAutograd without a compiler; ``torch.compile`` would trace it again."""
    from torch._dynamo.backends.debugging import aot_eager as backend

    return backend(gm, inputs)  # type: ignore[no-untyped-call]


def cpu_extensions() -> tuple[str, ...]:
    """``bf16`` and ``amx`` where this CPU has such instructions; no public function says so."""
    has = {"bf16": torch.cpu._is_avx512_bf16_supported, "amx": torch.cpu._is_amx_tile_supported}
    return tuple(name for name, supported in has.items() if supported())


def gpu_sleep(cycles: int) -> None:
    """Keep the GPU busy for so many cycles, so that launches queue up; no public call does."""
    torch.cuda._sleep(cycles)


def in_forward_mode() -> bool:
    """Whether tangents are being computed: a custom operator drops them without a word."""
    return forward_ad._current_level >= 0


def custom_op_functions(definition: CustomOpDef) -> list[Any]:
    """The Python functions behind a ``torch.library.custom_op``; the first is its own.

    Public API: none. Stored scores depend on them.
    """
    own = definition
    inner = (own._backend_fns, own._abstract_fn, own._vmap_fn, own._torch_dispatch_fns)
    return [own._init_fn, *inner]


def custom_ops() -> dict[str, CustomOpDef]:
    """The operators of ``torch.library.custom_op`` in this process, by ``space::name``.

    Public API: none.
    """
    return dict(sorted(OPDEFS.items()))


def graph_breaks() -> list[tuple[str, list[str]]]:
    """Every graph break of this process: its reason in one line, its stack as ``file:line``."""
    from torch._dynamo.utils import graph_break_reasons

    return [
        (x.reason.strip().splitlines()[0], [f"{f.filename}:{f.lineno}" for f in x.user_stack])
        for x in graph_break_reasons
        if x.reason.strip()
    ]


def ends_in_break(gm: fx.GraphModule) -> bool:
    """Whether Dynamo's graph ends where the function it comes from goes on in another graph."""
    return bool(getattr(getattr(gm, "compile_subgraph_reason", None), "graph_break", False))


def given_tensor(node: fx.Node) -> Tensor | None:
    """The tensor that an input of Dynamo's graph stands for, while the graph is compiled."""
    argument = node.meta.get("grapharg")
    if argument is None or not argument.is_tensor or argument.pass_arg_as_tensor:
        return None
    found = argument.example
    return found if isinstance(found, Tensor) else None


def is_wrapper_subclass(x: object) -> bool:
    """Whether a tensor wraps others (quantised, sharded): a graph may hold it, no trace does."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return is_traceable_wrapper_subclass(x)


ENTER_AUTOCAST, EXIT_AUTOCAST = (
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
)
"""The calls that mark an autocast region in a graph; a trace records and does not run them."""

Autocast = tuple[bool, torch.dtype, bool]
"""Whether a device casts, to which dtype, and whether casts of weights are kept."""


def autocast_state(device: str) -> Autocast:
    """What autocast does now on a kind of device."""
    on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return on, dtype, torch.is_autocast_cache_enabled()


def set_autocast(device: str, state: Autocast) -> None:
    """Switch autocast as ``autocast_state`` said."""
    torch.set_autocast_enabled(device, state[0])
    torch.set_autocast_dtype(device, state[1])
    torch.set_autocast_cache_enabled(state[2])
