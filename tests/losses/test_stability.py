"""The stability bound, simulated with torch's own SGD just below and just above it."""

import math

import pytest
import torch
from torch import nn

from d2_smallobj.losses import ElasticWeightConsolidation, ParameterGroup
from d2_smallobj.losses.ewc_penalty import check_strength, rate_limit, strength_limit


def held(fisher=(0.0, 0.25, 0.8), strength=500.0):
    parameter = nn.Parameter(torch.zeros(len(fisher), dtype=torch.float64))
    ewc = ElasticWeightConsolidation([("p", parameter)], strength=strength, fisher="empirical")
    ewc.set_fisher({"p": torch.tensor(fisher)})
    ewc.anchor()
    return parameter, ewc


def final_distance(parameter, ewc, optimizer, steps=3000):
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        ewc.add_gradient_()
        optimizer.step()
        if parameter.detach().abs().max() > 1e6:
            break
    return parameter.detach().abs()[1:].max().item()


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.9, True), (0.3, True)]
)
def test_bound_is_where_sgd_starts_to_diverge(momentum, nesterov):
    parameter, ewc = held()
    rate = 0.05
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=nesterov)
    limit = rate_limit(momentum, nesterov=nesterov) / (2 * rate * ewc.max_fisher()["p"])
    ewc.strength = 0.99 * limit
    ewc.check_stability(ewc.groups(optimizer))
    assert final_distance(parameter, ewc, optimizer) < 0.1
    ewc.strength = 1.01 * limit
    with pytest.raises(ValueError, match=f"Use a strength below {limit:g}"):
        ewc.check_stability(ewc.groups(optimizer))
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=nesterov)
    assert final_distance(parameter, ewc, optimizer) > 1e6


def test_the_papers_rate_is_stable_and_a_small_nets_is_not():
    # docs/method.md#stability: 1.34e-4 * 2 * 500 = 0.134 and 0.05 * 2 * 500 = 50, against
    # 2 (1 + 0.9) = 3.8.
    _, ewc = held(fisher=(0.0, 1.0))
    ewc.check_stability([ParameterGroup("g", 1.34e-4, ("p",), 0.9)])
    message = (
        r"strength 500 makes the penalty unstable in g: learning rate 0\.05 and max F 1 give "
        r".* = 50, which must stay below 3\.8 at momentum 0\.9\. Use a strength below 38, .*"
        r"proximal step"
    )
    with pytest.raises(ValueError, match=message):
        ewc.check_stability([ParameterGroup("g", 0.05, ("p",), 0.9)])


def test_exactly_at_the_bound_is_refused():
    groups = [ParameterGroup("g", 0.5, ("p",))]
    with pytest.raises(ValueError, match="strength 2 makes the penalty unstable"):
        check_strength(2.0, groups, {"p": 1.0})
    check_strength(1.999, groups, {"p": 1.0})


def two_groups():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    ewc = ElasticWeightConsolidation(model.named_parameters(), strength=60, fisher="empirical")
    fisher = {name: torch.full_like(p, 0.1) for name, p in model.named_parameters()}
    fisher["1.weight"][0, 1] = 0.5
    ewc.set_fisher(fisher)
    ewc.anchor()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [model[1].weight], "lr": 0.02},
        {"params": [model[1].bias], "lr": 0.5, "momentum": 0.0},
    ]
    return model, ewc, torch.optim.SGD(groups, momentum=0.9)


def test_groups_of_an_optimizer():
    _, ewc, optimizer = two_groups()
    assert ewc.groups(optimizer) == [
        ParameterGroup("group 0 (0.weight and 1 more)", 0.1, ("0.weight", "0.bias"), 0.9),
        ParameterGroup("group 1 (1.weight)", 0.02, ("1.weight",), 0.9),
        ParameterGroup("group 2 (1.bias)", 0.5, ("1.bias",), 0.0),
    ]
    rates = {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.02, "1.bias": 0.5}
    assert ewc.learning_rates(optimizer) == rates


def test_each_group_is_held_to_its_own_rate_fisher_and_momentum():
    _, ewc, optimizer = two_groups()
    # Limits (1 + m) / (lr max F): 1.9 / 0.01 = 190; 1.9 / 0.01 = 190; 1 / 0.05 = 20.
    with pytest.raises(ValueError, match=r"in group 2 \(1\.bias\).*Use a strength below 20,"):
        ewc.check_stability(ewc.groups(optimizer))
    ewc.strength = 19.9
    ewc.check_stability(ewc.groups(optimizer))


def test_the_message_names_the_limit_of_all_groups_not_of_the_first():
    groups = [ParameterGroup("a", 1.0, ("p",)), ParameterGroup("b", 4.0, ("p",))]
    with pytest.raises(ValueError, match=r"unstable in a: .*Use a strength below 0\.25,"):
        check_strength(10.0, groups, {"p": 1.0})


def test_nothing_that_moves_is_held():
    assert strength_limit(ParameterGroup("g", 0.0, ("p",)), {"p": 0.5}) == math.inf
    check_strength(1e30, [ParameterGroup("g", 0.1, ("p",))], {"p": 0.0})
    check_strength(1e30, [], {})


def test_parameters_outside_the_optimizer():
    model, ewc, _ = two_groups()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not move 2 .*\(1\.bias, 1\.weight.*optimized_para"):
        ewc.groups(optimizer)
    rates = {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.0, "1.bias": 0.0}
    assert ewc.learning_rates(optimizer) == rates


def test_groups_without_penalised_parameters_are_left_out():
    parameter, ewc = held()
    other = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [other]}, {"params": [parameter, other][:1]}], lr=0.1)
    assert [group.name for group in ewc.groups(optimizer)] == ["group 1 (p)"]


def test_other_optimizers_have_no_known_bound():
    parameter, ewc = held()
    with pytest.raises(TypeError, match=r"must be SGD.*got AdamW; use the proximal step"):
        ewc.groups(torch.optim.AdamW([parameter]))


def test_bad_rates_and_momenta():
    _, ewc = held()
    for momentum in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got"):
            ewc.check_stability([ParameterGroup("g", 0.1, ("p",), momentum)])
    for rate in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning rate of g must be finite and >= 0, got"):
            ewc.check_stability([ParameterGroup("g", rate, ("p",))])
