"""What a model is called in tables: as its recipe, wherever it was loaded from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import tokens_for

from workbench.analyses.attention.statistics import attention
from workbench.analyses.compare.comparison import compare
from workbench.analyses.probe.concept_tests import probe
from workbench.models.interop import export, import_model
from workbench.models.load import load, load_config
from workbench.models.transformer_lens import from_hooked_transformer, read_folder
from workbench.study.measuring import name_subjects
from workbench.training import build, train, trainer
from workbench.training.recipe import parse_recipe, phase_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WORDS = ["the", "cat", "river", "stone", "of", "a", "blue"]


def recipe_called(name: str, text: str):
    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_vocab": 300, "n_heads": 2, "d_head": 8, "d_mlp": 24}
    return parse_recipe(
        {
            "name": name,
            "model": {"model_name": "shared-architecture", **shape},
            "data": {"source": text, "tokenizer": "embedded-300"},
            "phases": [{"n_steps": 2, "batch_size": 2}],
            "monitor": {"every": 0},
            "checkpoint": {"every": 1},
        }
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(np.random.default_rng(i).choice(WORDS, 200)))
    return str(folder)


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """Two trainings of one architecture."""
    place = tmp_path_factory.mktemp("runs")
    return [
        train(recipe_called(name, text), place / name, seed=3, progress=False, cache=place / "cache")
        for name in ("control", "adaptive")
    ]


def test_models_of_one_architecture_are_told_apart_in_every_table(runs):
    models = [load(run) for run in runs]
    tokens = tokens_for(models[0], batch=4)
    assert [model.cfg.model_name for model in models] == ["control", "adaptive"]
    assert [attention(model, tokens)["model"].unique().tolist() for model in models] == [["control"], ["adaptive"]]
    pair = compare(*models, tokens, n_components=1).weight_spectra
    assert pair["model"].unique().tolist() == ["control", "adaptive"]
    with pytest.raises(ValueError, match="control"):
        probe([models[0], load(runs[0])])


def test_the_command_line_calls_a_model_as_python_does(runs):
    for path in (runs[0], runs[0] / "step_00000002"):
        (own,) = name_subjects([path], [load(path)], 9)
        assert (own.name, own.seed) == ("control", 3)


def test_a_run_whose_checkpoints_have_the_architectures_name_is_called_as_its_recipe(text, tmp_path, monkeypatch):
    def named_by_the_architecture(recipe, index):
        return phase_model(recipe, index).model_copy(update={"model_name": recipe.model.model_name})

    monkeypatch.setattr(trainer, "phase_model", named_by_the_architecture)
    run = train(recipe_called("own", text), tmp_path / "run", progress=False, cache=tmp_path / "cache")
    assert '"model_name": "shared-architecture"' in (run / "step_00000002" / "hooked_config.json").read_text()
    assert load(run).cfg.model_name == "own"


def test_a_name_outlives_its_run(runs, tmp_path):
    model = load(runs[1])
    assert load(import_model(runs[1], tmp_path / "imported")).cfg.model_name == "adaptive"
    assert load(export(model, "hf", tmp_path / "hf")).cfg.model_name == "adaptive"
    theirs = read_folder(export(model, "transformer-lens", tmp_path / "lens"))
    assert from_hooked_transformer(theirs).cfg.model_name == "adaptive"


def test_an_untrained_model_has_the_name_that_its_training_will_give_it(runs, text):
    untrained, trained = build(recipe_called("control", text)), load(runs[0])
    ignored = {"tokenizer_name", "device"}
    assert untrained.cfg.model_dump(exclude=ignored) == trained.cfg.model_dump(exclude=ignored)
    assert not torch.equal(untrained.W_E, trained.W_E)


def test_a_step_that_a_run_kept_is_named_behind_it(runs):
    for revision in ("step1", "1", "step_00000001"):
        source = f"{runs[0]}@{revision}"
        assert torch.equal(load(source).W_E, load(runs[0] / "step_00000001").W_E)
        (own,) = name_subjects([source], [load(source)], 9)
        assert (own.name, own.seed) == ("control", 3)
    assert not torch.equal(load(f"{runs[0]}@step1").W_E, load(runs[0]).W_E)
    with pytest.raises(ValueError, match=r"control: got the step 'step7'; expected one that it kept: step1, step2$"):
        load(f"{runs[0]}@step7")


def test_a_revision_of_the_hub_is_asked_for_and_of_a_folder_refused(runs, tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = export(load(runs[0]), "hf", tmp_path / "hf"), {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options, name=name) or str(folder)
    )
    assert torch.equal(load("someone/something@step1000").W_E, load(folder).W_E)
    assert (asked["name"], asked["revision"]) == ("someone/something", "step1000")
    with pytest.raises(ValueError, match=r"hf@main: a folder has no revisions"):
        load(f"{folder}@main")


def test_a_revision_of_what_has_none_is_refused_and_never_ignored(runs, tmp_path):
    for place in (runs[0] / "step_00000001", import_model(runs[1], tmp_path / "imported")):
        with pytest.raises(ValueError, match=r"@main: a folder has no revisions; expected its path alone, or a hub"):
            load(f"{place}@main")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model.gguf@main: a file has no revisions"):
        load_config(f"{tmp_path / 'model.gguf'}@main")
