"""z-loss within the next-token loss."""

from __future__ import annotations

import pytest
from interventions_for_tests import objective_under
from models_for_tests import small_model, tokens_for

from workbench.training.objective import Batch


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_it_adds_the_mean_square_of_the_normaliser(weight):
    model = small_model("janus-v3").double()
    tokens = tokens_for(model)
    found = objective_under(model, Batch(tokens), {"kind": "z-loss", "weight": weight})
    normaliser = model(tokens)[:, :-1].logsumexp(-1).square().mean()
    plain = model(tokens, return_type="loss")
    assert float(found.loss) == pytest.approx(float((plain + weight * normaliser).detach()), abs=1e-12)
    assert not found.telemetry, "it is part of the loss, not a term of its own"


def test_two_that_set_the_same_option_are_refused():
    model = small_model("janus-v3")
    tables = {"kind": "z-loss", "name": "first"}, {"kind": "z-loss", "name": "second"}
    with pytest.raises(ValueError, match="second: sets z_loss, which another sets; expected one of them"):
        objective_under(model, Batch(tokens_for(model)), *tables)
