"""What architectures say of a step's memory, against a count of the tensors that are there."""

from __future__ import annotations

import pytest
from step_memory import count_step_numbers

from sae import architectures
from sae.architecture import Architecture
from sae.architectures import BUILT_IN, find_architecture


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("use_unit_norm_decoder", [False, True])
def test_architectures_say_what_a_step_holds(name, use_unit_norm_decoder):
    own = find_architecture(name)
    k = {"k": 4} if "k" in own.options else {}
    norms = {"use_unit_norm_decoder": True, "decoder_init_norm": 1.0} if use_unit_norm_decoder else {}
    counted = count_step_numbers(architecture=name, **k, **norms)
    assert 0.8 * own.step_numbers < counted <= own.step_numbers, counted


def test_gradients_by_autograd_hold_no_more_than_a_plug_in_is_planned_with(monkeypatch):
    class Plain(Architecture):
        name = "plain"

    monkeypatch.setattr(architectures, "_FOUND", {"plain": Plain()})
    counted = count_step_numbers(architecture="plain")
    assert counted <= Plain.step_numbers, counted
