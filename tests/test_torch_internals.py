"""Every private name of torch is still there and still means what its docstring says."""

from __future__ import annotations

import ast
import contextlib
import inspect
import logging
from pathlib import Path

import house
import pytest
import torch
from torch import nn

from attnpass import torch_internals as internals

ADD = torch.ops.aten.add.Tensor


class Graphs(list):
    """A backend that keeps what Dynamo gives it: the graph and its inputs."""

    def __call__(self, gm, inputs):
        self.append((gm, inputs, internals.TracingContext.try_get()))
        return gm.forward


def traced(model, *inputs, dynamic=False):
    """Dynamo's graph of a model, the inputs and the tracing context."""
    torch._dynamo.reset()
    graphs = Graphs()
    torch.compile(model, backend=graphs, dynamic=dynamic)(*inputs)
    return graphs[0]


@pytest.fixture
def sizes():
    """A fake tensor with one symbolic and one fixed size, as a backend meets it."""
    found = []

    def backend(gm, inputs):
        values = (n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder"))
        found.extend(x for x in values if isinstance(x, torch.Tensor))
        return gm.forward

    torch._dynamo.reset()
    x = torch.ones(6, 4)
    internals.maybe_dynamic(x, 0)
    torch.compile(lambda x: x * 2, backend=backend)(x)
    return found[0].shape


def test_every_entry_has_a_test():
    """The name of a test holds the entry's, so that a new entry needs a new test."""
    tree = ast.parse(inspect.getsource(internals))
    entries = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)] + internals.__all__
    tests = [n for n in globals() if n.startswith("test_")]
    missing = [e for e in entries if not any(e.lower() in t.lower() for t in tests)]
    assert missing == []


def test_gpu_sleep_is_there_and_runs_where_there_is_a_gpu():
    assert callable(torch.cuda._sleep)
    if torch.cuda.is_available():
        internals.gpu_sleep(1000)
        torch.cuda.synchronize()


def test_private_modules_of_torch_are_imported_in_that_file_alone():
    users = {
        name
        for name, path in house.modules().items()
        for target in house.imports(path)
        if target.startswith("torch.") and any(part[0] == "_" for part in target.split("."))
    }
    assert users == {"torch_internals"}


def test_pytree_flattens_what_dynamo_does():
    leaves, spec = internals.pytree.tree_flatten({"a": (1, [2]), "b": None})
    assert leaves == [1, 2, None]
    assert internals.pytree.tree_unflatten(leaves, spec) == {"a": (1, [2]), "b": None}


def test_OpOverload_OpOverloadPacket_and_HigherOrderOperator_tell_targets_apart():
    assert isinstance(ADD, internals.OpOverload)
    assert isinstance(torch.ops.higher_order.cond, internals.HigherOrderOperator)
    assert not isinstance(torch.ops.higher_order.cond, internals.OpOverload)
    assert not isinstance(torch.relu, internals.OpOverload)
    assert isinstance(torch.ops.aten.add, internals.OpOverloadPacket)


def test_FakeTensor_and_unset_fake_temporarily_compute_a_constant():
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        fake = torch.ones(2)
        with internals.unset_fake_temporarily():
            real = torch.ones(2)
    assert isinstance(fake, internals.FakeTensor) and not isinstance(real, internals.FakeTensor)
    assert real.sum() == 2


def test_TracingContext_knows_the_fake_mode_of_a_compile():
    assert internals.TracingContext.try_get() is None
    _, _, context = traced(nn.Linear(2, 2), torch.ones(1, 2))
    assert context.fake_mode is not None


def test_schema_says_what_is_written():
    node = torch.fx.Graph().call_function(torch.ops.aten.add_.Tensor, (1, 2))
    arguments = internals.schema(node).arguments
    assert arguments[0].alias_info.is_write and not arguments[1].alias_info
    assert internals.schema(torch.fx.Graph().call_function(len, ((),))) is None
    assert internals.schema(torch.fx.Graph().placeholder("x")) is None


def test_GRAD_MODE_is_the_node_that_switches_gradients():
    def run(x):
        with torch.no_grad():
            return x * 2

    names = [
        getattr(n.target, "__name__", "")
        for n in internals.make_fx(run, torch.ones(2)).graph.nodes
    ]
    assert names.count(internals.GRAD_MODE) == 2


def test_PARAMETERS_is_how_sources_spell_a_weight():
    gm, _, _ = traced(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    names = [internals.dynamo_source(n).name for n in gm.graph.find_nodes(op="placeholder")]
    names = [name() if callable(name) else name for name in names]
    assert sum(f"{internals.PARAMETERS}['weight']" in name for name in names) == 1


def test_overload_name_finds_the_functional_twin():
    assert internals.overload_name(torch.ops.aten.add_.Tensor) == "Tensor"
    assert getattr(torch.ops.aten.add, internals.overload_name(torch.ops.aten.add_.Scalar))


def test_storage_id_is_shared_by_views_also_fake_ones():
    with torch._subclasses.FakeTensorMode():
        fake, other = torch.ones(4), torch.ones(4)
    for x, y in ((torch.ones(4), torch.ones(4)), (fake, other)):
        assert internals.storage_id(x) == internals.storage_id(x[1:])
        assert internals.storage_id(x) != internals.storage_id(y)


def test_version_counts_writes_but_not_those_through_data():
    x = torch.ones(2)
    before = internals.version(x)
    x.add_(1)
    assert internals.version(x) == before + 1
    x[:1].mul_(2)
    assert internals.version(x) == before + 2
    x.data.add_(1)
    assert internals.version(x) == before + 2


def test_expression_and_hint_of_a_symbolic_size_divided(sizes):
    symbolic, fixed = sizes
    assert isinstance(symbolic, torch.SymInt)
    assert internals.expression(symbolic).free_symbols
    assert internals.expression(symbolic) == internals.expression(symbolic * 2) / 2
    assert internals.hint(symbolic) == 6
    assert internals.expression(fixed) == internals.hint(fixed) == 4
    assert internals.expression("text") == "text"
    assert internals.expression(symbolic**2 // symbolic) == internals.expression(symbolic)
    assert internals.expression((symbolic * 6 + 3) // 3) == internals.expression(symbolic * 2 + 1)
    half = internals.expression((symbolic + 1) // 2)
    assert half != internals.expression(symbolic + 1) / 2
    assert half.subs(dict.fromkeys(half.free_symbols, 4)) == 2


def test_argument_fakes_and_size_guards_say_what_a_trace_took_for_granted():
    seen = []

    def run(args, kwargs):
        return args[0].view(-1) * kwargs["y"].shape[1] if args[0].shape[0] < 9 else args[0]

    def backend(gm, inputs):
        like = [n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")]
        like = next(x for x in like if isinstance(x, torch.Tensor))
        found = internals.argument_fakes(like, args, kwargs)
        fakes = {name: fake for (_, fake), name in zip(found, "xy", strict=True)}
        seen.extend(([x for x, _ in found], internals.size_guards(fakes)))
        return gm.forward

    args, kwargs = (torch.ones(4, 3),), {"y": torch.ones(2, 5)}
    torch._dynamo.reset()
    torch.compile(run, backend=backend, dynamic=True)(args, kwargs)
    assert seen[0][0] is args[0] and seen[0][1] is kwargs["y"]
    assert "2 <= L['x'].size()[0] and L['x'].size()[0] <= 8" in seen[1]
    assert "L['y'].stride()[1] == 1" in seen[1]
    assert not any("storage_offset" in text for text in seen[1])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_any_convolution_leaves_out_thresholds_of_kernels_of_one_format(form):
    """Where the format of the result may depend on the kernel, they stay conditions."""

    def conditions():
        torch._dynamo.reset()
        seen = []

        def backend(gm, inputs):
            env = internals.TracingContext.get().fake_mode.shape_env
            seen.extend(str(guard.expr) for guard in env.guards)
            return gm.forward

        x, layer = torch.randn(20, 4, 6, 7).to(memory_format=form), torch.nn.Conv2d(4, 4, 3)
        torch.compile(layer.to(memory_format=form), backend=backend, dynamic=True)(x)
        return [text for text in seen if "16" in text]

    plain = conditions()
    with internals.any_convolution():
        inside = conditions()
    assert inside == (plain if form is torch.channels_last else [])
    assert conditions() == plain


def test_statically_known_true_holds_for_every_size(sizes):
    symbolic, _ = sizes
    known = internals.statically_known_true
    guards = len(symbolic.node.shape_env.guards)
    assert known(symbolic + 1 > symbolic) and known(True)
    assert not known(symbolic == 6) and not known(False)
    assert len(symbolic.node.shape_env.guards) == guards


def test_make_fx_below_autograd_records_what_vmap_runs():
    x = torch.ones(3, 2, 4)
    gm = internals.make_fx_below_autograd(torch.vmap(lambda a: a @ a.T), x)
    names = [getattr(n.target, "__name__", "") for n in gm.graph.nodes]
    assert "bmm.default" in names
    assert torch.equal(gm(x), x @ x.mT)


def test_make_fx_keeps_differentiable_operators():
    gm = internals.make_fx(lambda x: torch.nn.functional.linear(x, x), torch.ones(2, 2))
    targets = [
        n.target
        for n in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    ]
    assert len(targets) == 1, "after autograd's dispatch it would be mm and t"


def test_proxy_mode_track_tensor_tree_and_disable_proxy_modes_tracing_record_one_call():
    def opaque(x):
        return (x.sin().cos(),)

    def run(x):
        mode = internals.proxy_mode()
        proxy = mode.tracer.unwrap_proxy(x)
        out = mode.tracer.create_proxy("call_function", opaque, (proxy,), {})
        with internals.disable_proxy_modes_tracing():
            values = (torch.empty_like(x),)
        (y,) = internals.track_tensor_tree(values, out, mode.tracer)
        return y + 1

    assert internals.proxy_mode() is None
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
    gm = internals.make_fx(run, fake)
    called = [n.target for n in gm.graph.find_nodes(op="call_function", target=opaque)]
    assert called == [opaque]
    others = [str(n.target) for n in gm.graph.nodes if n.target is not opaque]
    assert not any("empty" in x or "sin" in x for x in others)
    x = torch.rand(2)
    torch.testing.assert_close(gm(x), opaque(x)[0] + 1)


def test_fake_mode_of_computes_beside_a_trace():
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2, 3)
    with internals.fake_mode_of(fake):
        out = torch.relu(fake)
    assert isinstance(out, internals.FakeTensor) and out.shape == (2, 3)


def test_current_meta_is_given_to_the_nodes_that_are_recorded():
    def run(x):
        with torch.fx.traceback.preserve_node_meta():
            internals.current_meta()["nn_module_stack"] = {"k": ("a.b", nn.Linear)}
            y = x * 2
            del internals.current_meta()["nn_module_stack"]
        return y

    gm = internals.make_fx(run, torch.ones(2))
    stacks = [n.meta.get("nn_module_stack") for n in gm.graph.nodes if n.op == "call_function"]
    assert stacks == [{"k": ("a.b", nn.Linear)}]


def test_encoder_layer_operator_is_the_fused_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        gm, _, _ = traced(layer, torch.ones(1, 3, 8))
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    assert internals.encoder_layer_operator() in targets


def test_next_checkpoint_id_is_fresh():
    first, second = internals.next_checkpoint_id(), internals.next_checkpoint_id()
    assert isinstance(first, int) and second > first


def test_dynamo_source_and_set_dynamo_source():
    node = torch.fx.Graph().placeholder("x")
    assert internals.dynamo_source(node) is None
    internals.set_dynamo_source(node, "here")
    assert internals.dynamo_source(node) == "here"
    gm, _, _ = traced(nn.Linear(2, 2), torch.ones(1, 2))
    assert all(internals.dynamo_source(n) for n in gm.graph.find_nodes(op="placeholder"))


def test_is_static_input_and_set_added_input_mark_weights():
    gm, _, _ = traced(nn.Linear(2, 2), torch.ones(1, 2))
    nodes = gm.graph.find_nodes(op="placeholder")
    static = [n.meta["example_value"].dim() for n in nodes if internals.is_static_input(n)]
    assert sorted(static) in ([1, 2], []), "the weight and the bias, the input is not"
    assert len(static) == len(nodes) - 1
    added = torch.fx.Graph().placeholder("x")
    assert not internals.is_static_input(added)
    internals.set_added_input(added, "here")
    assert internals.is_static_input(added) and internals.dynamo_source(added) == "here"


def test_weight_sources_are_carried():
    old, _, _ = traced(nn.Linear(2, 2), torch.ones(1, 2))
    assert set(getattr(old, internals.WEIGHT_SOURCES)), "Dynamo's graph has them"
    new, bare = (torch.fx.GraphModule(nn.Module(), torch.fx.Graph()) for _ in "ab")
    internals.weight_sources(old, new)
    assert getattr(new, internals.WEIGHT_SOURCES) == getattr(old, internals.WEIGHT_SOURCES)
    new.register_buffer("_tensor_constant0", torch.ones(1))
    internals.weight_sources(old, new)
    added = set(getattr(new, internals.WEIGHT_SOURCES)) - set(
        getattr(old, internals.WEIGHT_SOURCES)
    )
    assert added == {"_tensor_constant0"}, "a constant is its own origin"
    internals.weight_sources(bare, bare)
    assert not hasattr(bare, internals.WEIGHT_SOURCES)


def test_mark_static_makes_new_parameters_known_to_a_compile():
    added, found = nn.Parameter(torch.ones(3)), []
    internals.mark_static([added])  # outside a compile there is nothing to tell

    def backend(gm, inputs):
        internals.mark_static([added])
        context = internals.TracingContext.try_get()
        found.append(context.tensor_to_context[added])
        fake = context.fake_mode.from_tensor(added, symbolic_context=found[0])
        found.append(fake.shape)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.ones(2))
    context, shape = found
    assert context.tensor_source.source_name == "attnpass_parameter_0"
    assert [type(size) for size in shape] == [int]


def test_reparametrized_computes_with_other_values_inside_alone():
    model, zero = nn.Sequential(nn.Linear(2, 2, bias=False)), torch.zeros(2, 2)
    weight, x = model[0].weight, torch.ones(1, 2)
    with internals.reparametrized(model, {"0.weight": zero}):
        assert not model(x).any() and not model[0](x).any()
    assert model[0].weight is weight and model(x).any()


def test_maybe_dynamic_and_unmark_dynamic(sizes):
    assert isinstance(sizes[0], torch.SymInt) and isinstance(sizes[1], int)
    x = torch.ones(6, 4)
    before = set(x.__dict__)
    internals.maybe_dynamic(x, 0)
    assert set(x.__dict__) > before
    internals.unmark_dynamic(x)
    assert set(x.__dict__) == before
    internals.maybe_dynamic(x, 0)
    torch._dynamo.reset()
    # a model that fixes the size is no error, as it would be with mark_dynamic
    assert torch.compile(lambda x: x + torch.ones(6, 4), backend="eager")(x).shape == (6, 4)


def test_raise_recompile_limits_keep_recompile_limits_and_is_recompile_limit(monkeypatch):
    config = torch._dynamo.config
    before = {name: getattr(config, name) for name in internals.RECOMPILES}
    with internals.raise_recompile_limits():
        assert {n: getattr(config, n) for n in internals.RECOMPILES} == internals.RECOMPILES
    assert {n: getattr(config, n) for n in internals.RECOMPILES} == before
    try:
        internals.keep_recompile_limits()
        assert {n: getattr(config, n) for n in internals.RECOMPILES} == internals.RECOMPILES
    finally:
        for name, value in before.items():
            setattr(config, name, value)
    monkeypatch.setitem(internals.RECOMPILES, "recompile_limit", 1)
    torch._dynamo.reset()
    run = torch.compile(lambda x: x + x.shape[0], backend="eager", dynamic=False)
    with internals.raise_recompile_limits():
        run(torch.ones(2))
        with pytest.raises(Exception, match="recompile") as caught:
            run(torch.ones(3))
    assert internals.is_recompile_limit(caught.value)
    assert not internals.is_recompile_limit(RuntimeError("recompile"))


def test_inductor_modes():
    modes = internals.inductor_modes()
    assert {"default", "reduce-overhead", "max-autotune"} <= modes.keys()
    assert internals.inductor_modes("max-autotune")["max_autotune"] is True


def test_aot_eager_runs_a_graph_with_gradients():
    weight = nn.Parameter(torch.ones(2, 2))
    torch._dynamo.reset()
    run = torch.compile(lambda x: (x @ weight).sin(), backend=internals.aot_eager)
    x = torch.rand(3, 2)
    torch.testing.assert_close(run(x), (x @ weight).sin())
    run(x).sum().backward()
    assert weight.grad is not None


@pytest.mark.slow
def test_compile_fx_takes_changes_to_its_settings():
    """Adds a compile by inductor itself, with one setting changed for this graph alone."""
    seen = []

    def passes(graph):
        seen.append(len(graph.nodes))

    def backend(gm, inputs):
        return internals.compile_fx(gm, inputs, {"post_grad_custom_pre_pass": passes})

    torch._dynamo.reset()
    x = torch.rand(4)
    torch.testing.assert_close(torch.compile(torch.sin, backend=backend)(x), x.sin())
    assert seen and torch._inductor.config.post_grad_custom_pre_pass is None


def test_cpu_extensions_are_known_to_the_cpu():
    found = internals.cpu_extensions()
    assert set(found) <= {"bf16", "amx"}
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    if "flags" in flags:
        assert ("bf16" in found) == ("avx512_bf16" in flags)


def test_in_forward_mode_inside_a_dual_level_alone():
    def inside(x):
        assert internals.in_forward_mode()
        return x

    assert not internals.in_forward_mode()
    torch.func.jvp(inside, (torch.ones(1),), (torch.ones(1),))
    with torch.autograd.forward_ad.dual_level():
        inside(None)
    assert not internals.in_forward_mode()


def test_custom_ops_holds_a_CustomOpDef_and_custom_op_functions_all_that_it_runs():
    def own(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def fake(x):
        return torch.empty_like(x)

    made = torch.library.custom_op("internals_test::add", own, mutates_args=())
    made.register_fake(fake)
    made.register_kernel("cpu", lambda x: x + 2)
    assert internals.custom_ops()["internals_test::add"] is made
    assert isinstance(made, internals.CustomOpDef)
    first, kernels, shape, *_ = internals.custom_op_functions(made)
    assert first is own and "cpu" in kernels and shape is fake


def test_side_effects_hold_assertions_and_no_arithmetic():
    assert torch.ops.aten._assert_async.msg in internals.side_effects()
    assert torch.ops.aten.add.Tensor not in internals.side_effects()


def test_dynamo_exceptions_are_restarts_and_graph_breaks():
    from torch._dynamo import exc

    steering = (exc.RestartAnalysis, exc.TensorifyScalarRestartAnalysis, exc.Unsupported)
    assert all(issubclass(e, internals.dynamo_exceptions()) for e in steering)
    assert not issubclass(RuntimeError, internals.dynamo_exceptions())


def test_traced_function_is_named_and_new_once():
    seen = []

    def backend(gm, inputs):
        seen.append(internals.traced_function())
        return gm.forward

    def double(x):
        return x * 2

    assert internals.traced_function() is None
    torch._dynamo.reset()
    run = torch.compile(double, backend=backend, dynamic=False)
    run(torch.ones(2)), run(torch.ones(3))
    assert [name.split(" ")[0] for name, _ in seen] == ["'double'"] * 2
    assert [new for _, new in seen] == [True, False]


def test_on_recompile_limit_tells_the_function():
    told = []
    log = logging.getLogger("torch._dynamo.convert_frame")
    before, level = list(log.filters), log.level
    try:
        log.setLevel("WARNING")
        for _ in range(2):
            internals.on_recompile_limit(told.append)
        assert len(log.filters) == len(before) + 1
        given = ("recompile_limit", 8, "'f' (file.py:3)", "why", "url")
        log.warning("torch._dynamo hit config.%s (%s) %s %s %s", *given)
        log.warning("something else")
    finally:
        log.setLevel(level)
        for f in log.filters[len(before) :]:
            log.removeFilter(f)
    assert told == ["'f' (file.py:3)"]


def test_TorchDispatchMode_hears_operators():
    heard = []

    class Mode(internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            heard.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2).softmax(-1)
    assert any("softmax" in name for name in heard)


def test_hooks_set_aside_are_those_of_a_checkpoint():
    from torch.utils.checkpoint import checkpoint

    saved = []

    def pack(x):
        saved.append(x)
        return x

    def twice(x, aside):
        with internals.hooks_set_aside() if aside else contextlib.nullcontext():
            y = x.detach().requires_grad_()
            (y * y).sum()
        return x * 2

    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), internals.hooks_set_aside():
        (x * x).sum()
    assert saved, "others stay"
    checkpoint(twice, x, True, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))


def test_graph_breaks_tell_reason_and_lines():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    before = len(internals.graph_breaks())
    torch.compile(broken, backend="eager")(torch.ones(2))
    (reason, lines), *_ = internals.graph_breaks()[before:]
    assert reason and any("test_torch_internals.py:" in line for line in lines)


def test_ends_in_break_and_given_tensor_are_told_while_a_graph_is_compiled():
    told = []

    def backend(gm, inputs):
        (node, *_) = gm.graph.find_nodes(op="placeholder")
        told.append((internals.ends_in_break(gm), internals.given_tensor(node)))
        return gm

    def broken(x):
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    x = torch.ones(2)
    torch.compile(broken, backend=backend)(x)
    (first, second) = told
    assert first[0] and first[1] is x and not second[0] and torch.equal(second[1], x + 1)
    assert internals.given_tensor(torch.fx.Graph().placeholder("x")) is None


def test_is_wrapper_subclass_tells_tensors_that_hold_others():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert internals.is_wrapper_subclass(nested)
    assert not internals.is_wrapper_subclass(torch.ones(2)) and not internals.is_wrapper_subclass(
        3
    )


def test_ENTER_AUTOCAST_and_EXIT_AUTOCAST_are_what_a_graph_marks_a_region_with():
    found = []

    def backend(gm, inputs):
        found.extend(n.target for n in gm.graph.nodes if n.op == "call_function")
        return gm

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    torch._dynamo.reset()
    torch.compile(run, backend=backend)(torch.ones(2, 2))
    assert internals.ENTER_AUTOCAST in found and internals.EXIT_AUTOCAST in found


def test_set_autocast_restores_an_autocast_state():
    before: internals.Autocast = internals.autocast_state("cpu")
    with torch.autocast("cpu", torch.float16):
        inside = internals.autocast_state("cpu")
    assert inside[:2] == (True, torch.float16) and before[0] is False
    internals.set_autocast("cpu", inside)
    try:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    finally:
        internals.set_autocast("cpu", before)
    assert internals.autocast_state("cpu") == before
