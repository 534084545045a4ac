"""Whether SAEs are adequate: made-up numbers, a plain computation on a trained stack, the alarm of each that is not."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

from reports.tables import read_table
from workbench.analyses.sae_train import head_saes
from workbench.analyses.sae_train.adequacy import fvu_over_random, inadequate_alarms, is_adequate
from workbench.analyses.sae_train.head_saes import sae_train

pytestmark = pytest.mark.filterwarnings("ignore:sae_train:UserWarning")  # alarms of SAEs of a few steps
QUICK = {"batch_size": 64, "buffer_tokens": 512, "lr": 2e-2, "expansion": 4, "n_ce_tokens": 32}
KEYS = ["model", "seed", "layer", "head", "l1", "sae_seed"]


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def held_out(model):
    return tokens_for(model, batch=24, pos=16, seed=9)


@pytest.fixture(scope="module")
def trained(model, held_out, tmp_path_factory):
    """A run directory and its table: sparse SAEs and dense ones."""
    out = tmp_path_factory.mktemp("adequacy") / "run"
    own = QUICK | {"architecture": "gated", "n_train_tokens": 20_000}
    stack, table = sae_train(
        model, tokens_for(model, batch=600, pos=16), l1=[0.0, 2.0], held_out=held_out, out=out, name="m", **own
    )
    return out, stack, table


def results(**columns) -> pd.DataFrame:
    """Rows of sae_training_results of made-up SAEs."""
    n = len(columns["l0"])
    places = {"model": "m", "seed": 0, "layer": 0, "head": range(n), "l1": 2.0, "sae_seed": 0, "d_in": 12}
    return pd.DataFrame(places | columns)


# --- made-up numbers


@pytest.mark.parametrize(
    ("l0", "fvu", "random_fvu", "ratio", "is_met"),
    [
        (4.0, 0.3, 0.4, 0.75, True),  # both at their limits, d_in 12
        (4.001, 0.1, 0.4, 0.25, False),
        (1.0, 0.3001, 0.4, 0.75025, False),
        (0.0, 1.0, 1.0, 1.0, False),  # dead
        (12.0, 0.5, 0.4, 1.25, False),
        (4.0, math.nan, 0.4, math.nan, math.nan),
        (4.0, 0.3, math.nan, math.nan, math.nan),
        (4.0, 0.3, 0.0, math.nan, math.nan),  # nothing to compare with
    ],
)
def test_an_sae_is_adequate_that_is_sparse_and_better_than_random(l0, fvu, random_fvu, ratio, is_met) -> None:
    found = fvu_over_random(*(torch.tensor([own], dtype=torch.float64) for own in (fvu, random_fvu)))
    assert found.item() == pytest.approx(ratio, rel=1e-12, nan_ok=True)
    exact = torch.tensor([ratio], dtype=torch.float64)
    assert is_adequate(torch.tensor([l0], dtype=torch.float64), exact, d_in=12) == pytest.approx([is_met], nan_ok=True)


def test_an_alarm_names_what_is_exceeded_sparsity_first() -> None:
    table = results(
        l0=[5.0, 2.0, 3.0, 4.5, 3.0],
        fvu_over_random=[0.5, 0.9, 0.5, 0.9, math.nan],
        is_adequate=[False, False, True, False, math.nan],
    )
    found = inadequate_alarms(table, [*KEYS, "step", "kind", "value", "threshold"], 39)
    assert found[["head", "step", "kind", "value", "threshold"]].to_numpy().tolist() == [
        [0, 39, "inadequate", 5.0, 4.0],
        [1, 39, "inadequate", 0.9, 0.75],
        [3, 39, "inadequate", 4.5, 4.0],
    ]


def test_adequate_saes_give_no_alarm() -> None:
    found = inadequate_alarms(results(l0=[2.0], fvu_over_random=[0.5], is_adequate=[True]), [*KEYS, "step"], 9)
    assert found.empty
    assert list(found) == [*KEYS, "step"]


# --- of a training


def test_columns_are_what_a_plain_computation_gives(trained, model, held_out) -> None:
    _, stack, table = trained
    own = table.set_index(["dictionary", "layer", "head", "l1"])
    verdicts = set()
    for k, source in enumerate(stack.info.sources):
        with torch.no_grad():
            _, cache = model.run_with_cache(held_out)
            z = cache[source.hook_name][:, 1:, source.head].flatten(0, 1)  # position 0 is left out
            acts, recon = stack.select([k])(z[None])
        x, recon = z.double().numpy(), recon[0].double().numpy()
        fvu = ((x - recon) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        l0 = float((acts > 0).sum()) / len(x)
        place = (source.layer, source.head, source.l1)
        row, random = own.loc[("trained", *place)], own.loc[("random", *place)]
        assert row["fvu_over_random"] == pytest.approx(fvu / random["fvu"], rel=1e-4)
        assert random["l0"] == pytest.approx(l0, abs=0.25 * max(l0, 1))  # fitted on 512 tokens of the training
        verdict = l0 <= x.shape[1] / 3 and fvu <= 0.75 * random["fvu"]
        assert row["is_adequate"] == verdict
        verdicts.add(verdict)
    assert verdicts == {True, False}  # a test that sees one of them alone shows little


def test_controls_are_not_judged(trained) -> None:
    table = trained[2]
    controls = table[table["dictionary"] != "trained"]
    assert len(controls) == 2 * (len(table) - len(controls))
    assert controls[["fvu_over_random", "is_adequate"]].isna().all(axis=None)


def test_each_sae_that_is_not_adequate_has_one_alarm(trained) -> None:
    out, _, table = trained
    alarms = read_table(out, "sae_alarms").query("kind == 'inadequate'")
    wanted = table[table["is_adequate"].eq(False)]
    assert alarms[KEYS].to_numpy().tolist() == wanted[KEYS].to_numpy().tolist()
    assert set(alarms["step"]) == {20_000 // 64}
    assert (alarms["value"] > alarms["threshold"]).all()


def test_alarms_of_several_stacks_are_told_apart_and_stand_once(model, held_out, tmp_path, monkeypatch) -> None:
    own = QUICK | {"architecture": ("relu", "gated"), "n_train_tokens": 640}
    arguments = {"l1": 0.5, "held_out": held_out, "out": tmp_path / "run", "name": "m", **own}
    tokens = tokens_for(model, batch=60, pos=16)
    with monkeypatch.context() as patch:  # killed when everything but the last table is written
        write = head_saes.write_table

        def dying(df, directory, name, **options):
            path = write(df, directory, name, **options)
            if name == "sae_alarms" and (df["kind"] == "inadequate").any():
                raise KeyboardInterrupt
            return path

        patch.setattr(head_saes, "write_table", dying)
        with pytest.raises(KeyboardInterrupt):
            sae_train(model, tokens, **arguments)
    _, table = sae_train(model, tokens, resume=True, **arguments)
    alarms = read_table(tmp_path / "run", "sae_alarms").query("kind == 'inadequate'")
    keys = [*KEYS, "architecture", "d_sae"]
    assert not alarms.duplicated(keys).any()
    assert len(alarms) == np.sum(table["is_adequate"].eq(False)) > 0
    assert set(alarms["architecture"]) == {"relu", "gated"}
