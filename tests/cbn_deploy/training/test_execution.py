"""How a run is computed changes its speed and its rounding, nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbn_deploy.errors import RuntimeUnavailableError
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig
from cbn_deploy.training.execution import Execution, choose_device, training_network
from cbn_deploy.training.ranks import Ranks
from tests.cbn_deploy.norm.rank_cases import CASES, Case, both_paths, network
from tests.cbn_deploy.training.rank_runs import some_steps
from tests.reference.tolerances import tolerance

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["both paths", "batch norm, two views"])
def test_channels_last_changes_nothing(name: str) -> None:
    expected = some_steps(name, Ranks())
    found = some_steps(name, Ranks(), Execution(device=CPU, channels_last=True))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **tolerance("float64 gradient"), msg=lambda t, k=key: f"{k}: {t}")


def test_channels_last_reaches_the_convolutions() -> None:
    model = network(CASES["uneven"])
    seen = []
    model[3].register_forward_hook(lambda module, arguments, _: seen.append((arguments[0], module.weight)))
    training_network(model, Execution(device=CPU, channels_last=True), "fp32", Ranks())(
        torch.randn(2, 3, 5, 4).double()
    )
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen[0])


@pytest.mark.parametrize("name", ["both paths", "batch norm"])
def test_bf16_trains_the_same_within_its_rounding(name: str) -> None:
    """Losses and accuracy of four steps; weights, momentum's source and statistics stay float32."""
    expected = some_steps(name, Ranks())
    found = some_steps(name, Ranks(), settings=("precision=bf16",))
    torch.testing.assert_close(found["logged"][:2], expected["logged"][:2], **tolerance("bf16 training"))
    for key, value in found.items():
        if key != "logged" and value.is_floating_point():
            assert value.dtype == torch.float32, key
    assert not torch.equal(found["conv1.weight"].double(), expected["conv1.weight"])


def test_bf16_computes_convolutions_in_bf16_and_densities_in_float32() -> None:
    model = network(Case()).float()
    outputs, posteriors = [], []
    for layer in (model[0], model[1], model[6]):
        layer.register_forward_hook(lambda _module, _arguments, output: outputs.append(output.dtype))
    model[1].register_forward_hook(lambda module, arguments, _: posteriors.append(module.posterior(arguments[0]).dtype))
    run = training_network(model, Execution(device=CPU), "bf16", Ranks())
    x = torch.randn(8, 3, 5, 4)
    with torch.no_grad():
        run(x)
    logits = run(x)
    assert logits.dtype == torch.float32
    assert set(outputs) == {torch.bfloat16}
    assert set(posteriors) == {torch.float32}
    logits.square().sum().backward()
    # Were the weights that the first pass has rounded used again, these would be None: they carry no gradient.
    for index in (0, 3, 6):
        assert model[index].weight.grad is not None
        assert model[index].weight.grad.dtype == torch.float32


def test_compilers_see_whole_graphs_and_change_nothing() -> None:
    """Statistics are rebound, paths switched, gradients on and off: one graph for each of four forms, no break."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = network(Case()), network(Case())
    captured = torch.compile(compiled, backend="aot_eager")
    for turn in range(3):
        generator = torch.Generator().manual_seed(turn)
        x = torch.randn(8, 3, 5, 4, generator=generator, dtype=torch.float64)
        labels = torch.tensor(Case().labels)
        for model in (eager, captured):
            with torch.no_grad():
                both_paths(model, x + 1, labels, Case())
            sum(logits.square().sum() for logits in both_paths(model, x, labels, Case())).backward()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    for (name, ours), theirs in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **tolerance("float64 gradient"), msg=name)
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), buffer, **tolerance("float64 gradient"), msg=name)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's compiler's
def test_a_compiled_network_trains_as_an_eager_one() -> None:
    """Through the compiler's own C++: a small network, because that takes its time."""

    def made() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(CompoundBatchNorm2d(3, NormConfig(components=2)), nn.ReLU()).train()

    eager, compiled = made(), made()
    network = training_network(compiled, Execution(device=CPU, compile=True), "fp32", Ranks())
    x = torch.randn(4, 3, 4, 4)
    for model in (eager, network):
        model(x).square().sum().backward()
    torch.testing.assert_close(compiled[0].weight.grad, eager[0].weight.grad, **tolerance("float32 training"))
    torch.testing.assert_close(compiled[0].running_mean, eager[0].running_mean, **tolerance("float32 training"))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeUnavailableError, match=r"no-such-compiler was not found.*leave --compile out"):
        training_network(network(Case()), Execution(device=CPU, compile=True), "fp32", Ranks())


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="must be 'auto', 'cpu' or 'cuda'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(RuntimeUnavailableError, match="--device cpu"):
            choose_device("cuda")
