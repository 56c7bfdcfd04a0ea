"""The stability bound, simulated with torch's own SGD just below and just above it."""

import math

import pytest
import torch
from torch import nn

from d2_smallobj.losses import ElasticWeightConsolidation
from d2_smallobj.losses.ewc_penalty import rate_limit


def held(fisher=(0.0, 0.25, 0.8), strength=500.0):
    parameter = nn.Parameter(torch.zeros(len(fisher), dtype=torch.float64))
    ewc = ElasticWeightConsolidation([("p", parameter)], strength=strength, fisher="empirical")
    ewc.set_fisher({"p": torch.tensor(fisher)})
    ewc.anchor()
    return parameter, ewc


def sgd(parameter, rate, momentum=0.0, nesterov=False):
    return torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=nesterov)


def final_distance(parameter, ewc, optimizer, steps=1000):
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
    optimizer = sgd(parameter, rate, momentum, nesterov)
    limit = rate_limit(momentum, nesterov=nesterov) / (2 * rate * ewc.max_fisher()["p"])
    ewc.strength = 0.99 * limit
    ewc.check_stability(optimizer)
    assert final_distance(parameter, ewc, optimizer) < 0.1
    ewc.strength = 1.01 * limit
    with pytest.raises(ValueError, match=f"Use a strength below {limit:g}"):
        ewc.check_stability(optimizer)
    optimizer = sgd(parameter, rate, momentum, nesterov)
    assert final_distance(parameter, ewc, optimizer) > 1e6


def test_the_papers_rate_is_stable_and_a_small_nets_is_not():
    # docs/method.md#stability: 1.34e-4 * 2 * 500 = 0.134 and 0.05 * 2 * 500 = 50, against
    # 2 (1 + 0.9) = 3.8.
    parameter, ewc = held(fisher=(0.0, 1.0))
    ewc.check_stability(sgd(parameter, 1.34e-4, 0.9))
    message = (
        r"strength 500 makes the penalty unstable in group 0 \(p\): learning rate 0\.05 and max F "
        r"1 give .* = 50, which must stay below 3\.8 at momentum 0\.9\. Use a strength below 38, .*"
        r"proximal step"
    )
    with pytest.raises(ValueError, match=message):
        ewc.check_stability(sgd(parameter, 0.05, 0.9))


def test_exactly_at_the_bound_is_refused():
    parameter, ewc = held(fisher=(0.0, 1.0), strength=2.0)
    with pytest.raises(ValueError, match="strength 2 makes the penalty unstable"):
        ewc.check_stability(sgd(parameter, 0.5))
    ewc.strength = 1.999
    ewc.check_stability(sgd(parameter, 0.5))


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


def test_each_group_is_held_to_its_own_rate_fisher_and_momentum():
    _, ewc, optimizer = two_groups()
    rates = {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.02, "1.bias": 0.5}
    assert ewc.learning_rates(optimizer) == rates
    # Limits (1 + m) / (lr max F): 1.9 / 0.01 = 190; 1.9 / 0.01 = 190; 1 / 0.05 = 20. The message
    # names the first group that is too fast, and the limit of all.
    for strength, group in ((60, r"2 \(1\.bias\)"), (191, r"0 \(0\.weight and 1 more\)")):
        ewc.strength = strength
        with pytest.raises(ValueError, match=rf"in group {group}.*Use a strength below 20,"):
            ewc.check_stability(optimizer)
    ewc.strength = 19.9
    ewc.check_stability(optimizer)


def test_nothing_that_moves_is_held():
    parameter, ewc = held(strength=1e30)
    ewc.check_stability(sgd(parameter, 0.0))
    parameter, ewc = held(fisher=(0.0, 0.0), strength=0.0)
    ewc.strength = 1e30
    ewc.check_stability(sgd(parameter, 0.1))


def test_parameters_outside_the_optimizer_or_the_penalty():
    model, ewc, _ = two_groups()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not move 2 .*\(1\.bias, 1\.weight.*optimized_para"):
        ewc.check_stability(optimizer)
    rates = {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.0, "1.bias": 0.0}
    assert ewc.learning_rates(optimizer) == rates
    parameter, ewc = held()
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": parameter}])
    optimizer.param_groups[0]["lr"] = math.nan
    optimizer.param_groups[1]["lr"] = 1.0
    with pytest.raises(ValueError, match=r"unstable in group 1 \(p\)"):
        ewc.check_stability(optimizer)


def test_other_optimizers_rates_and_momenta():
    parameter, ewc = held()
    with pytest.raises(TypeError, match=r"must be SGD.*got AdamW; use the proximal step"):
        ewc.check_stability(torch.optim.AdamW([parameter]))
    for key, values, message in (
        ("momentum", (1.0, -0.1, math.nan), r"momentum must be in \[0, 1\), got"),
        ("lr", (-0.1, math.nan, math.inf), r"learning rate of group 0 \(p\) must be finite"),
    ):
        for value in values:
            optimizer = sgd(parameter, 0.1)
            optimizer.param_groups[0][key] = value
            with pytest.raises(ValueError, match=message):
                ewc.check_stability(optimizer)
