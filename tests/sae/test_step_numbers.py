"""What architectures say of a step's memory, against a count of the tensors that are there."""

from __future__ import annotations

import pytest
from step_memory import count_step_numbers

from sae import architectures
from sae.architecture import Architecture
from sae.architectures import BUILT_IN, find_architecture

FORMS = [(name, form) for name in BUILT_IN for form in find_architecture(name).forms or (None,)]
ONE_HOOK = [name for name in BUILT_IN if not find_architecture(name).reads_pair]
NORMS = {"use_unit_norm_decoder": True, "decoder_init_norm": 1.0}


@pytest.mark.parametrize(
    ("name", "form", "norms"), [(*own, {}) for own in FORMS] + [(n, None, NORMS) for n in ONE_HOOK]
)
def test_architectures_say_what_a_step_holds(name, form, norms):
    whole = find_architecture(name)
    own = whole if form is None else whole.forms[form]
    options = ({} if form is None else {"activation": form}) | ({"k": 4} if "k" in own.options else {})
    counted = count_step_numbers(architecture=name, **options, **norms)
    assert 0.8 * own.step_numbers < counted <= own.step_numbers, counted


def test_gradients_by_autograd_hold_no_more_than_a_plug_in_is_planned_with(monkeypatch):
    class Plain(Architecture):
        name = "plain"

    monkeypatch.setattr(architectures, "_FOUND", {"plain": Plain()})
    counted = count_step_numbers(architecture="plain")
    assert counted <= Plain.step_numbers, counted
