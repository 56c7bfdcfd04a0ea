"""The penalty: identities with autograd, the proximal step, checkpoints, errors."""

import gc
import io
import logging

import pytest
import torch
from torch import nn

from d2_smallobj.losses import (
    ElasticWeightConsolidation,
    ewc_penalty,
    optimized_parameters,
    plain_name,
)
from d2_smallobj.losses.ewc_penalty import chunks


def make_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[0].bias.requires_grad_(False)
    return model


def random_fisher(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def anchored(model, strength=500.0):
    ewc = ElasticWeightConsolidation(
        model.named_parameters(), strength=strength, fisher="empirical"
    )
    ewc.set_fisher(random_fisher(model))
    ewc.anchor()
    return ewc


def move(model, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def by_autograd(ewc, parameters):
    """The penalty with its graph."""
    triples = zip(parameters, ewc.anchor_values.values(), ewc.fisher.values())
    return ewc.strength * sum((f * (p - a) ** 2).sum().float() for p, a, f in triples)


def of_one(values, fisher, moved_by):
    """A parameter that has moved from its anchor, and its penalty of strength 10."""
    parameter = nn.Parameter(torch.tensor(values))
    ewc = ElasticWeightConsolidation([("p", parameter)], strength=10, fisher="empirical")
    ewc.set_fisher({"p": torch.tensor(fisher)})
    ewc.anchor()
    with torch.no_grad():
        parameter += torch.tensor(moved_by)
    return parameter, ewc


def rates(ewc, rate):
    return dict.fromkeys(ewc.names, rate)


@pytest.fixture(params=["one chunk", "many chunks"])
def any_chunks(request, monkeypatch):
    """Run with all tensors in one pass and with nearly one pass per tensor."""
    if request.param == "many chunks":
        monkeypatch.setattr(ewc_penalty, "_CHUNK", 6)


def test_anchor_counts_what_it_holds():
    model = make_model()
    ewc = ElasticWeightConsolidation(model.named_parameters(), fisher="empirical")
    ewc.set_fisher(random_fisher(model))
    assert not ewc.anchored
    # Convolution 4*3*3*3, batch norm 4 + 4, convolution 2*4 + 2; the frozen bias is left out.
    assert ewc.anchor() == (5, 108 + 8 + 10)
    assert ewc.anchored
    assert ewc.names == ("0.weight", "1.weight", "1.bias", "2.weight", "2.bias")


@pytest.mark.usefixtures("any_chunks")
def test_zero_at_the_anchor_then_growing():
    model = make_model()
    ewc = anchored(model)
    assert ewc.penalty().item() == 0
    assert ewc.add_gradient_().item() == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)
    values = []
    for _ in range(3):
        with torch.no_grad():
            model[0].weight += 0.01
        values.append(ewc.penalty().item())
    assert 0 < values[0] < values[1] < values[2]
    assert values[1] == pytest.approx(4 * values[0], rel=1e-4)
    assert values[2] == pytest.approx(9 * values[0], rel=1e-4)


def test_penalty_by_hand():
    # λ Σ F d² = 10 * (2 * 0.5² + 4 * 1²) = 45; gradient 2 λ F d = (20, 80); no factor 1/2.
    parameter, ewc = of_one([1.0, 2.0], [2.0, 4.0], [0.5, 1.0])
    assert ewc.penalty().item() == 45
    parameter.grad = torch.tensor([1.0, 1.0])
    assert ewc.add_gradient_().item() == 45
    assert parameter.grad.tolist() == [21, 81]


@pytest.mark.usefixtures("any_chunks")
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradient_equals_autograd(scale):
    model = make_model()
    ewc = anchored(model)
    move(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    penalty = by_autograd(ewc, trained.values())
    expected = dict(zip(trained, torch.autograd.grad(penalty, list(trained.values()))))
    existing = {name: torch.randn_like(parameter) for name, parameter in trained.items()}
    for name, parameter in trained.items():
        # One gradient is missing: the penalty must create it.
        parameter.grad = None if name == "1.bias" else existing[name].clone()
    existing["1.bias"].zero_()
    value = ewc.add_gradient_(scale)
    torch.testing.assert_close(value, penalty.detach())
    torch.testing.assert_close(ewc.penalty(), penalty.detach())
    assert not value.requires_grad
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, existing[name] + scale * expected[name])
    assert model[0].bias.grad is None, "frozen"


def test_half_precision_parameters_keep_a_wide_state():
    model = make_model().to(torch.bfloat16)
    ewc = anchored(model)
    assert {t.dtype for t in [*ewc.fisher.values(), *ewc.anchor_values.values()]} == {torch.float32}
    assert ewc.penalty().item() == 0
    move(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(by_autograd(ewc, trained), trained)
    assert ewc.add_gradient_().dtype == torch.float32
    for parameter, gradient in zip(trained, expected):
        torch.testing.assert_close(parameter.grad, gradient)
    wide = make_model().to(torch.bfloat16).float()
    reference = anchored(wide)
    wide.load_state_dict(model.state_dict())
    ewc.proximal_step_(rates(ewc, 0.01))
    reference.proximal_step_(rates(ewc, 0.01))
    for parameter, wide_parameter in zip(model.parameters(), wide.parameters()):
        torch.testing.assert_close(parameter, wide_parameter.bfloat16())


def test_online_estimate_from_training_to_penalty():
    model = make_model()
    ewc = ElasticWeightConsolidation(model.named_parameters(), strength=5, alpha=0.5)
    expected = {name: torch.ones_like(tensor) for name, tensor in ewc.fisher.items()}
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        assert ewc.record_gradients()
        for name, parameter in model.named_parameters():
            if name in expected:
                expected[name] = 0.5 * parameter.grad**2 + 0.5 * expected[name]
        torch.testing.assert_close(ewc.fisher, expected)
    ewc.anchor()
    for name, tensor in expected.items():
        span = tensor.max() - tensor.min() + 1e-8
        torch.testing.assert_close(ewc.fisher[name], (tensor - tensor.min()) / span)
    move(model)
    assert ewc.penalty().item() > 0


def test_proximal_step_by_hand():
    # c F = 2 * 10 * 0.1 * (0.5, 0, 2) = (1, 0, 4); θ* = 0, θ = 1: 1 / (1 + c F).
    parameter, ewc = of_one([0.0, 0.0, 0.0], [0.5, 0.0, 2.0], [1.0, 1.0, 1.0])
    ewc.proximal_step_({"p": 0.1})
    assert parameter.tolist() == pytest.approx([0.5, 1.0, 0.2])


@pytest.mark.usefixtures("any_chunks")
def test_proximal_step_is_implicit_euler():
    model = make_model().double()
    ewc = anchored(model, strength=300)
    move(model)
    of_name = {name: 0.01 * (i + 1) for i, name in enumerate(ewc.names)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ewc.proximal_step_(of_name)
    # θ' = θ - lr * gradient of the penalty at θ', the gradient being add_gradient_'s.
    ewc.add_gradient_()
    for name, parameter in model.named_parameters():
        if name in of_name:
            torch.testing.assert_close(parameter + of_name[name] * parameter.grad, before[name])
        else:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


def test_proximal_fixed_points():
    model = make_model()
    ewc = anchored(model)
    for rate in (0.1, 0.0):  # at the anchor, then without a rate
        before = [p.detach().clone() for p in model.parameters()]
        ewc.proximal_step_(rates(ewc, rate))
        for parameter, value in zip(model.parameters(), before):
            torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0)
        move(model)


def test_small_proximal_steps_are_the_explicit_ones():
    explicit, proximal = make_model(), make_model()
    first, second = anchored(explicit), anchored(proximal)
    move(explicit)
    move(proximal)
    first.add_gradient_()
    with torch.no_grad():
        for parameter in explicit.parameters():
            if parameter.grad is not None:
                parameter -= 1e-6 * parameter.grad
    second.proximal_step_(rates(second, 1e-6))
    for a, b in zip(explicit.parameters(), proximal.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_proximal_step_is_stable_for_a_huge_strength():
    model = make_model()
    ewc = anchored(model, strength=1e12)
    move(model)
    start = ewc.penalty().item()
    values = []
    for _ in range(3):
        ewc.proximal_step_(rates(ewc, 1.0))
        values.append(ewc.penalty().item())
    assert values[0] < 1e-6 * start
    assert all(later <= earlier for earlier, later in zip(values, values[1:]))
    for name, parameter in model.named_parameters():
        if name in ewc.names:
            torch.testing.assert_close(parameter.detach(), ewc.anchor_values[name])


def test_plain_name():
    for wrapped in ("a.w", "module.a.w", "module._orig_mod.a.w", "_orig_mod.module.a.w"):
        assert plain_name(wrapped) == "a.w"
    assert plain_name("backbone._orig_mod.a") == "backbone.a"
    assert plain_name("head.module.a") == "head.module.a"
    assert plain_name("module") == "module"


def test_wrapped_and_bare_models_match():
    model = make_model()
    bare = anchored(model)
    # DistributedDataParallel's names.
    named = [(f"module.{name}", p) for name, p in make_model(3).named_parameters()]
    wrapped = ElasticWeightConsolidation(named, fisher="empirical")
    assert wrapped.names == bare.names
    wrapped.load_state_dict(bare.state_dict())
    # Other weights than the anchor's: the authors' penalty is 0 here.
    assert wrapped.penalty().item() > 0
    prefixed = {f"module.{name}": tensor for name, tensor in random_fisher(model).items()}
    again = ElasticWeightConsolidation(model.named_parameters(), fisher="empirical")
    again.set_fisher(prefixed)
    torch.testing.assert_close(again.fisher, bare.fisher)


def test_optimized_parameters():
    model = make_model()
    optimizer = torch.optim.SGD([model[0].weight, model[2].bias], lr=0.1)
    kept = optimized_parameters(model.named_parameters(), optimizer)
    assert [name for name, _ in kept] == ["0.weight", "2.bias"]
    assert kept[0][1] is model[0].weight


def test_chunks_cover_every_tensor_once(monkeypatch):
    monkeypatch.setattr(ewc_penalty, "_CHUNK", 10)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 30, 2, 8, 0, 10)]
    parts = list(chunks(tensors))
    assert [(p.start, p.stop) for p in parts] == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
    assert list(chunks([])) == []


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("fisher", ["online", "empirical"])
@pytest.mark.parametrize("stage", ["task A", "task B"])
def test_resumes_from_a_file(stage, fisher):
    def learn(ewc, model, seed):
        if fisher == "empirical":
            ewc.set_fisher(random_fisher(model, seed))
            return
        torch.manual_seed(seed)
        model.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        ewc.record_gradients()

    def finish(ewc, model):
        if not ewc.anchored:
            learn(ewc, model, 5)
            ewc.anchor()
        move(model)
        model.zero_grad()
        return ewc.add_gradient_()

    model = make_model()
    ewc = ElasticWeightConsolidation(model.named_parameters(), fisher=fisher)
    if fisher == "online" or stage == "task B":
        learn(ewc, model, 4)
    if stage == "task B":
        ewc.anchor()
    state = saved_and_loaded(ewc.state_dict())
    assert ("anchor" in state) == (stage == "task B")

    other_model = make_model()
    other_model.load_state_dict(model.state_dict())
    other = ElasticWeightConsolidation(other_model.named_parameters(), fisher=fisher)
    other.load_state_dict(state)
    assert other.anchored == ewc.anchored
    torch.testing.assert_close(finish(other, other_model), finish(ewc, model), rtol=0, atol=0)
    for a, b in zip(other_model.parameters(), model.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_loaded_tensors_are_copies_and_the_runs_own_strength_wins(caplog):
    first, second = anchored(make_model(), strength=500), anchored(make_model(), strength=7)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(first.state_dict())
    for name, tensor in first.anchor_values.items():
        assert second.anchor_values[name].data_ptr() != tensor.data_ptr()
        assert second.fisher[name].data_ptr() != first.fisher[name].data_ptr()
    assert second.strength == 7
    assert "EWC strength is 500 in the checkpoint; this run uses 7" in caplog.text
    assert "alpha" not in caplog.text


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def test_bad_states_change_nothing():
    model = make_model()
    ewc = anchored(model)
    move(model)
    before, state = ewc.penalty(), ewc.state_dict()
    fisher, anchor, three = state["fisher"], state["anchor"], torch.ones(3)
    for changed, message in (
        (without(state, "fisher"), r"state_dict must hold .*but lacks \['fisher'\]"),
        (without(state, "anchor"), r"state_dict must hold .*but lacks \['anchor'\]"),
        ({}, r"but lacks \['anchored', 'estimator', 'fisher'\]"),
        ({**state, "estimator": "online"}, "is 'online', this run's is 'empirical'"),
        ({**state, "fisher": without(fisher, "1.bias")}, r"the model's 5 .*\['1.bias'\] \(1\)"),
        ({**state, "fisher": {}}, r"state_dict fisher: names.*missing .* \(5\)"),
        ({**state, "anchor": {**anchor, "x": three}}, r"anchor: names.*unknown \['x'\] \(1\)"),
        ({**state, "anchor": {**anchor, "1.bias": three}}, r"have shape \(4,\), got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ewc.load_state_dict(changed)
        assert ewc.anchored
        torch.testing.assert_close(ewc.penalty(), before, rtol=0, atol=0)


def test_bad_options():
    for option, value, message in (
        ("strength", -1.0, r"strength must be finite and >= 0, got -1\.0"),
        ("strength", float("nan"), "strength must be finite and >= 0, got nan"),
        ("alpha", 1.0, r"alpha must be in \[0, 1\), got 1\.0"),
        ("alpha", -0.1, r"alpha must be in \[0, 1\), got -0\.1"),
        ("fisher", "onlin", "fisher.*onlin.*did you mean 'online'"),
    ):
        with pytest.raises(ValueError, match=message):
            ElasticWeightConsolidation(make_model().named_parameters(), **{option: value})


def test_bad_parameters():
    model = make_model()
    named = list(model.named_parameters())
    for parameters, message in (
        (named[1:2], "no parameter that requires a gradient, got 0"),
        ([*named, ("module.0.weight", model[0].weight)], "two parameters are called '0.weight'"),
        ([*named, ("tied", model[0].weight)], "'0.weight' and 'tied' are one param"),
    ):
        with pytest.raises(ValueError, match=message):
            ElasticWeightConsolidation(parameters)


def test_a_fisher_that_would_never_act_is_refused():
    model = make_model()
    ewc = ElasticWeightConsolidation(model.named_parameters())
    # Nothing recorded: all ones, which min-max turns into zeros.
    with pytest.raises(ValueError, match="online estimate would be 0 for all 5 tensors"):
        ewc.anchor()
    assert not ewc.anchored
    assert (ewc.fisher["0.weight"] == 1).all(), "nothing was normalised"
    ewc = ElasticWeightConsolidation(model.named_parameters(), fisher="empirical")
    ewc.set_fisher({name: torch.zeros_like(t) for name, t in random_fisher(model).items()})
    with pytest.raises(ValueError, match="empirical estimate would be 0 for all 5 tensors"):
        ewc.anchor()
    # With λ = 0 there is nothing to miss.
    assert ElasticWeightConsolidation(model.named_parameters(), strength=0).anchor()[0] == 5


def test_set_fisher_errors():
    model = make_model()
    ewc = ElasticWeightConsolidation(model.named_parameters(), fisher="empirical")
    fisher = random_fisher(model)
    for wrong, message in (
        (without(fisher, "1.bias"), r"fisher: names do not match.*missing \['1\.bias'\]"),
        ({**fisher, "0.bias": torch.ones(4)}, r"fisher: names.*unknown \['0\.bias'\]"),
        ({**fisher, "1.bias": torch.ones(5)}, r"1\.bias must have shape \(4,\), got \(5,\)"),
        ({**fisher, "1.bias": -torch.ones(4)}, r"values of 1\.bias .*range of -1 to -1"),
    ):
        with pytest.raises(ValueError, match=message):
            ewc.set_fisher(wrong)
        assert ewc.fisher == {}


def test_calls_in_the_wrong_order_or_kind():
    model = make_model()
    online = ElasticWeightConsolidation(model.named_parameters())
    empirical = ElasticWeightConsolidation(model.named_parameters(), fisher="empirical")
    ewc, fisher = anchored(model), random_fisher(model)
    for call, arguments, message in (
        (online.set_fisher, [fisher], r"set_fisher needs fisher='empirical'.*has .*'online'"),
        (empirical.record_gradients, [], r"record_gradients needs fisher='online'.*'empirical'"),
        (empirical.anchor, [], "no empirical Fisher yet"),
        (empirical.max_fisher, [], "no empirical Fisher yet"),
        (online.penalty, [], r"penalty must be called after anchor\(\)"),
        (online.add_gradient_, [], r"add_gradient_ must be called after anchor\(\)"),
        (online.proximal_step_, [{}], r"proximal_step_ must be called after anchor\(\)"),
        (online.check_stability, [None], r"check_stability must be called after anchor\(\)"),
        (ewc.anchor, [], r"anchor must be called before anchor\(\)"),
        (ewc.set_fisher, [fisher], r"set_fisher must be called before anchor\(\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)


def test_bad_scales():
    model = make_model()
    online = ElasticWeightConsolidation(model.named_parameters())
    for call in (online.record_gradients, anchored(model).add_gradient_):
        for scale in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="scale must be finite and > 0, got"):
                call(scale)


def test_bad_learning_rates():
    ewc = anchored(make_model())
    for given, message in (
        ({"0.weight": 0.1}, r"learning_rates: none for \['1\.weight', .*\(4 of 5 names\)"),
        ({**rates(ewc, 0.1), "1.weight": -0.1}, r"rates: 1\.weight must be .*got -0\.1"),
        ({**rates(ewc, 0.1), "2.bias": float("nan")}, r"2\.bias must be finite and >= 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            ewc.proximal_step_(given)


def live_bytes():
    """Memory of all tensors that Python knows of, storages that they share counted once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("fisher", ["online", "empirical"])
def test_memory_is_two_copies_of_the_trained_parameters_and_no_more(fisher):
    """Of everything that is left after each stage of a run, on frozen parameters nothing."""
    model = nn.Sequential(nn.Conv2d(3, 50, 3), nn.Conv2d(50, 20, 3), nn.Conv2d(20, 20, 1))
    model[0].requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.rand_like(parameter)
    copy = sum(p.numel() * p.element_size() for p in trained)
    bare = live_bytes()
    ewc = ElasticWeightConsolidation(model.named_parameters(), fisher=fisher)
    assert live_bytes() - bare == (copy if fisher == "online" else 0)
    if fisher == "online":
        ewc.record_gradients()
    else:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        ewc.set_fisher({name: torch.rand(p.shape) for name, p in named})
    ewc.anchor()
    assert live_bytes() - bare == 2 * copy
    move(model)
    for _ in range(2):
        ewc.add_gradient_()
        ewc.proximal_step_(rates(ewc, 0.1))
    ewc.load_state_dict(saved_and_loaded(ewc.state_dict()))
    assert live_bytes() - bare == 2 * copy
