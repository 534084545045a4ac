"""Every recipe loads and says what the specification says; overrides and faulty recipes."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import tomli_w

from workbench.data.nca import PRESETS
from workbench.models import HookedLM
from workbench.training import Recipe, apply_overrides, build, load_recipe, parse_override, recipe_names
from workbench.training.interventions.vsm import Proportional, Sigmoid, Trapezoid
from workbench.training.recipe import automata, n_tokens_per_step, parse_recipe, phase_model

LINEAGE = (
    "p1-adamw",
    "p3-muon",
    "nca-002",
    "nca-003",
    "p3-attnres",
    "nca-attnres",
    "lang-baseline",
    "lang-ddv1",
    "ddv1-reset",
)
JANUS = ("janus-v3-control", "janus-v3-adaptive", "janus-small")
ACTING = "phases.0.interventions"
TINY = {
    "name": "tiny",
    "model": {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 16, "n_ctx": 8, "d_vocab": 4096},
    "phases": [{"n_steps": 4, "batch_size": 2}],
}


def acting(*tables: dict[str, Any]) -> dict[str, Any]:
    """The phases of a recipe with these interventions."""
    return {"phases": [TINY["phases"][0] | {"interventions": list(tables)}]}


def interventions_of(phase) -> dict[str, Any]:
    """kind -> settings of the interventions of a phase."""
    return {own.kind: own for own in phase.interventions}


def test_the_papers_systems_are_there_in_both_sizes():
    names = recipe_names()
    for name in (*JANUS, *LINEAGE, "nca-shuffled"):
        assert name in names
        assert f"{name}-nano" in names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_under_its_own_name_and_reads_back(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    settings = recipe.model_dump(mode="json", exclude_none=True)
    assert parse_recipe(tomllib.loads(tomli_w.dumps(settings))) == recipe
    if name.endswith("-nano"):
        assert recipe.data.source == recipe.data.tokenizer == "embedded"
        # the recurrent ones keep their three passes over three blocks, and the plain one beside them as many layers
        assert recipe.model.n_layers in ((9,) if name.startswith("recurrent-") else range(4, 7))
        assert (recipe.model.d_model, recipe.model.d_vocab) == (128, 4096)
        assert recipe.model.n_ctx in (128, 256)


@pytest.mark.parametrize(
    ("name", "with_tables", "without"),
    [
        ("janus-v3-control", 63.5, 37.76),
        ("janus-v3-adaptive", 63.5, 37.76),
        ("p1-adamw", 107.78, 107.78 - 49152 * 512 / 1e6),
    ],
)
def test_parameter_counts(name, with_tables, without):
    model = (
        build(name, seed=0) if name == "janus-v3-control" else HookedLM(phase_model(load_recipe(name), -1), seed=None)
    )
    assert model.n_parameters() / 1e6 == pytest.approx(with_tables, abs=0.02)
    assert model.n_parameters(embeddings=False) / 1e6 == pytest.approx(without, abs=0.005)


def test_numbers_of_the_recurrent_model():
    full, nano = load_recipe("recurrent-golf"), load_recipe("recurrent-nano")
    assert HookedLM(full.model, seed=None).n_parameters() / 1e6 == pytest.approx(12.8, abs=0.05)
    phase = full.phases[0]
    assert (phase.n_steps, n_tokens_per_step(full, 0)) == (6956, 524_288)
    assert phase.optimizer.muon is not None
    muon, adam, aux = phase.optimizer.muon, phase.optimizer.adamw, interventions_of(phase)
    assert (muon.lr, muon.weight_decay, muon.momentum_start, muon.momentum) == (0.04, 0.01, 0.85, 0.95)
    assert (muon.n_momentum_steps, adam.embed_lr, adam.lr, adam.weight_decay) == (500, 0.05, 0.04, 0.0)
    assert list(aux) == ["temporal-difference", "gate-entropy", "thermodynamic", "compression"]
    thermodynamic = aux["thermodynamic"]
    assert [own.weight for own in aux.values()] == [0.001, 0.005, 0.05, 0.01]
    assert (thermodynamic.temperature, thermodynamic.n_temperature_steps) == (0.5, 5000)
    for recipe in (full, nano):
        recurrence = recipe.model.extensions.recurrence
        assert recurrence is not None
        assert (recurrence.n_unique, recurrence.n_passes) == (3, 3)
        off = {k for k, v in recurrence.model_dump().items() if v in (False, None, "off")}
        assert not off, "every mechanism is switched on"


def test_routing_adds_its_parameters():
    plain, routed = (HookedLM(phase_model(load_recipe(n), -1), seed=None) for n in ("p3-muon", "p3-attnres"))
    assert routed.n_parameters() - plain.n_parameters() == (4 * 28 + 2) * 512


@pytest.mark.parametrize("name", [*LINEAGE, "nca-shuffled"])
def test_the_full_lineage_measures_its_ranks_as_often_as_was_published(name):
    """91 rows of the language phase, without those at its two ends."""
    recipe = load_recipe(name)
    assert recipe.monitor.use_ranks
    assert (recipe.phases[-1].n_steps - 1) // recipe.monitor.every >= 91


def test_numbers_of_the_first_paper():
    control, adaptive, small = (load_recipe(name) for name in JANUS)
    for recipe in (control, adaptive):
        phase = recipe.phases[0]
        assert (phase.n_steps, phase.batch_size, phase.n_accumulation) == (4005, 16, 4)
        assert n_tokens_per_step(recipe, 0) == 16 * 4 * 512
        assert (phase.optimizer.adamw.lr, phase.optimizer.adamw.weight_decay) == (6.29e-4, 1.34e-4)
        assert phase.schedule.kind == "constant"
        assert phase.clip_norm == 1.0
        assert recipe.model.d_mlp == 1365
    assert control.phases[0].interventions == ()
    (vsm,) = adaptive.phases[0].interventions
    assert vsm.kind == "vsm"
    assert (vsm.on, vsm.steering) == ("z", 3.0)
    assert vsm.controller == Proportional(
        n_warmup_steps=1500, warmup_weight=0.05, every=50, gain=0.5, target=0.0035, maximum=0.25
    )
    phase = small.phases[0]
    assert phase.n_steps * n_tokens_per_step(small, 0) == 20000 * 256 * 512
    vsm, coherence = phase.interventions
    assert (vsm.kind, vsm.on, vsm.steering) == ("vsm", "pattern", 3.0)
    assert (coherence.kind, coherence.weight) == ("coherence", 0.05)
    assert phase.schedule.floor * phase.optimizer.adamw.lr == pytest.approx(4e-5)


def test_the_published_automata():
    config = PRESETS["kotodama"]
    assert (config.size, config.channels, config.states, config.d_vocab) == (64, 8, 10, 10_002)
    assert (config.steps, config.inertia, config.temperature) == ((64, 256), (0.5, 2.0), (0.3, 1.0))
    shuffled = automata(load_recipe("nca-shuffled").phases[0])
    assert shuffled == automata(load_recipe("nca-002").phases[0]).model_copy(update={"shuffled": True})


def test_automata_are_a_preset_and_what_differs(tmp_path):
    base = tomli_w.dumps(load_recipe("nca-002-nano").model_dump(mode="json", exclude_none=True))
    base = re.sub(r"\[phases\.nca\].*?\n\n", "", base, count=1, flags=re.DOTALL)
    (tmp_path / "own.toml").write_text(base.replace('kind = "nca"', 'kind = "nca"\nnca = "kotodama"', 1).replace(
        "n_ctx = 128", "n_ctx = 256"))  # fmt: skip
    change = (
        'name = "changed"\nbase = "own.toml"\n[[phases]]\nname = "nca"\nnca = {nca}\n[[phases]]\nname = "language"\n'
    )
    found = {}
    for nca in ("{ shuffled = true }", '"small"', '{ preset = "small", hidden = 3 }'):
        (tmp_path / "changed.toml").write_text(change.replace("{nca}", nca))
        found[nca] = automata(load_recipe(tmp_path / "changed.toml").phases[0])
    assert list(found.values()) == [
        PRESETS["kotodama"].model_copy(update={"shuffled": True}),
        PRESETS["small"],
        PRESETS["small"].model_copy(update={"hidden": 3}),
    ]
    for name in ("default", ["small"], 3):
        with pytest.raises(ValueError, match="nca: got .*expected settings, or one of small, kotodama"):
            apply_overrides(load_recipe("nca-002-nano"), {"phases.0.nca": {"preset": name}})


@pytest.mark.parametrize("name", LINEAGE)
def test_numbers_of_the_second_paper(name):
    recipe = load_recipe(name)
    language = recipe.phases[-1]
    assert (language.n_steps, n_tokens_per_step(recipe, -1)) == (45776, 131072)
    assert (language.schedule.kind, language.schedule.n_warmup_steps) == ("wsd", 2000)
    for phase in recipe.phases:
        assert [(own.kind, own.weight) for own in phase.interventions] == [("z-loss", 1e-5)]
    rates = {phase.optimizer.muon and phase.optimizer.muon.lr for phase in recipe.phases}
    assert rates == {{"p1-adamw": None, "nca-003": 0.03}.get(name, 0.02)}
    n_automata = {
        "nca-002": 300,
        "nca-003": 300,
        "nca-attnres": 300,
        "lang-baseline": 721,
        "lang-ddv1": 852,
        "ddv1-reset": 852,
    }
    if name in n_automata:
        assert recipe.phases[0].n_steps * n_tokens_per_step(recipe, 0) / 1e6 == pytest.approx(
            n_automata[name], rel=1e-3
        )
        assert phase_model(recipe, 0).d_vocab == 10_002
        seed = 42 if n_automata[name] == 300 else 17
        assert automata(recipe.phases[0]) == PRESETS["kotodama"].model_copy(update={"seed": seed})
        assert automata(load_recipe(f"{name}-nano").phases[0]) == PRESETS["small"]
    else:
        assert len(recipe.phases) == 1
    blocks = {
        "p3-attnres": (0, 4, 8, 12, 16, 20, 24),
        "nca-attnres": (0, 4, 8, 12, 16, 20, 24),
        "lang-baseline": (0, 7, 14, 21),
        "lang-ddv1": (0, 3, 7, 12, 21, 25),
        "ddv1-reset": (0, 3, 7, 12, 21, 25),
    }
    routed = phase_model(recipe, -1).extensions.attn_res
    assert (routed.boundaries if routed else None) == blocks.get(name)
    in_first = phase_model(recipe, 0).extensions.attn_res is not None
    assert in_first == (name in ("p3-attnres", "lang-ddv1", "ddv1-reset"))
    assert (language.attn_res == "reset") == (name == "ddv1-reset")


@pytest.mark.parametrize("size", ["", "-nano"])
def test_variants_differ_from_their_base_in_what_they_are_named_for(size):
    for name, base, attn_res in (
        ("p3-attnres-attention", "p3-attnres", {"streams": "attention"}),
        ("lang-ddv1-learned", "lang-ddv1", {"boundaries": "learned", "n_blocks": 4 if size else 6}),
    ):
        variant, of = load_recipe(name + size), load_recipe(base + size)
        changes = {f"model.extensions.attn_res.{key}": value for key, value in attn_res.items()}
        changes |= {"name": variant.name, "description": variant.description}
        if "learned" in name:
            changes["phases.1.attn_res"] = "freeze"
            changes["phases.0.optimizer.adamw.boundary_lr"] = variant.phases[0].optimizer.adamw.boundary_lr
        assert apply_overrides(of, changes) == variant


def test_overrides_reach_every_part():
    recipe = load_recipe("janus-v3-control-nano")
    changed = apply_overrides(
        recipe,
        {
            "phases.0.n_steps": 60,
            "model.n_layers": 2,
            "phases.0.optimizer.adamw.lr": "1e-3",
            "phases.0.interventions": [{"kind": "vsm"}, {"kind": "vsm", "name": "maps", "on": "pattern"}],
            "phases.0.interventions.vsm.controller.kind": "sigmoid",
            "phases.0.interventions.0.controller.peak": 0.3,
            "phases.language.interventions.maps.steering": 1,
            "checkpoint.keep": None,
        },
    )
    assert changed.phases[0].n_steps == 60
    assert changed.model.n_layers == 2
    assert changed.phases[0].optimizer.adamw.lr == 1e-3
    vsm, maps = changed.phases[0].interventions
    assert (vsm.on, vsm.steering, vsm.controller) == ("z", 3.0, Sigmoid(peak=0.3))
    assert (maps.on, maps.steering) == ("pattern", 1.0)
    assert apply_overrides(changed, {"phases.0.interventions": []}).phases[0].interventions == ()
    assert changed.checkpoint.keep is None
    assert recipe.phases[0].n_steps != 60


def test_another_controller_starts_from_its_defaults():
    kind = "phases.0.interventions.vsm.controller.kind"
    (vsm,) = apply_overrides(load_recipe("janus-v3-adaptive"), {kind: "trapezoid"}).phases[0].interventions
    assert vsm.controller == Trapezoid()


def test_the_name_of_a_phase_is_no_key():
    """A phase may be called as one of its parts is, and overrides by its name reach the parts that it leaves out."""
    recipe = load_recipe("nca-002-nano")
    assert recipe.phases[0].name == "nca"
    by_index, by_name = (
        apply_overrides(recipe, {f"phases.{which}.optimizer.muon": None, f"phases.{which}.optimizer.muon.lr": 0.5})
        for which in (0, "nca")
    )
    assert by_index == by_name
    assert by_name.phases[0].optimizer.muon is not None
    assert by_name.phases[0].optimizer.muon.lr == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"phases.0.n_step": 3}, "set phases.0.n_step: unknown key 'n_step'; nearest: n_steps"),
        ({"model.n_layer": 3}, "unknown key 'n_layer'; nearest: n_layers"),
        ({"modle.n_layers": 3}, "unknown key 'modle'; nearest: model"),
        ({"phases.1.n_steps": 3}, "got '1' after 'phases'; expected an index from 0 to 0"),
        ({"phases.first.n_steps": 3}, "got 'first' after 'phases'"),
        ({"name.x": 3}, "'name' is a single value"),
        ({ACTING: [{"kind": "vsm"}], f"{ACTING}.vsm.onn": "z"}, "unknown key 'onn'; nearest: on"),
        ({ACTING: [{"kind": "vsm"}], f"{ACTING}.0.controler.peak": 1}, "unknown key 'controler'; nearest: controller"),
        (
            {ACTING: [{"kind": "vsm"}], f"{ACTING}.vsn.on": "z"},
            "got 'vsn' after '.*'; expected an index from 0 to 0, or one",
        ),
        ({f"{ACTING}.vsm.on": "z"}, "got 'vsm' after 'phases.0.interventions'; expected none, as there is none"),
        ({"phases.0.n_steps": 0}, "phases.0.n_steps: .*greater than or equal to 1"),
        ({"phases.0.n_steps": "many"}, "phases.0.n_steps: .*valid integer"),
        ({"phases.0.schedule.n_warmup_steps": 5}, "got 5; expected at most 4 steps"),
        ({"phases.0.schedule.kind": "cosine", "phases.0.schedule.n_steps": 9}, "got 9; expected at most the phase's 4"),
        ({ACTING: [{"kind": "vsm", "group_size": 3}]}, f"{ACTING}.vsm: group_size: got 3; expected a divisor of 2"),
        ({ACTING: [{"kind": "vsm", "controller": {"peak": 1}}]}, "controller: has no 'kind'; expected one, which says"),
        (
            {"model.n_heads": 1, ACTING: [{"kind": "vsm"}]},
            f"{ACTING}.vsm: compares heads, and model.n_heads = 1; expected 2",
        ),
        ({"phases.0.optimizer.adamw.betas": [0.9, 1.0]}, "adamw.betas.1: Input should be less than 1"),
        ({"phases.².n_steps": 3}, "got '²' after 'phases'"),
        ({"phases.0.nca.size": 12}, 'got settings with kind = "language"'),
        ({"phases.0.kind": "nca"}, "phases.0.nca: n_ctx is 8; expected at least 40, or a window of 4"),
        ({"model.n_ctx": 1}, "model.n_ctx: got 1; expected at least 2"),
        ({"model.extensions.attn_res.boundaries": [0, 3]}, "boundaries: got .0, 3.; expected layers that rise"),
        ({"model.extensions.attn_res.boundaries": [1, 0]}, "boundaries: got .1, 0.; expected layers that rise"),
        ({"model.d_mlp": None}, "model.d_mlp"),
        ({"model.dtype": "bfloat16"}, "model: dtype: got bfloat16; expected none: weights are float32"),
        ({"model.device": "cuda"}, "model: device: got 'cuda'; expected none, and --device"),
    ],
)
def test_faulty_overrides_name_the_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(parse_recipe(TINY), overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": []}, "unknown key 'phase'; nearest: phases"),
        ({"phases": []}, "phases: .*at least 1"),
        ({"phases": [TINY["phases"][0], TINY["phases"][0]]}, "expected each name once"),
        ({"phases": [{"n_steps": 4, "batch_size": 2, "clip": 1}]}, "unknown key 'phases.0.clip'; nearest: clip_norm"),
        (
            acting({"kind": "vsm", "controller": {"kind": "trapezoid", "peek": 1}}),
            r"phases.0.interventions: 0 \(vsm\): unknown key 'controller.trapezoid.peek'; nearest: peak",
        ),
        (acting({"kind": "vsm"}, {"kind": "z-loss", "wait": 1}), r"1 \(z-loss\): unknown key 'wait'; nearest: weight"),
        (acting({"kind": "vsn"}), r"phases.0.interventions: 0: kind: got 'vsn'; nearest: vsm; --plugin FILE brings"),
        (acting({"kind": "zz"}), r"kind: got 'zz'; nearest: .*coherence.*vsm.*z-loss"),
        (acting({"on": "z"}), "interventions: 0: has no kind; expected one of attention-dropout, coherence"),
        (acting({"kind": "vsm"}, {"kind": "vsm"}), "got two called 'vsm'; expected a name of its own for each"),
        (acting({"kind": "vsm", "name": "a"}, {"kind": "z-loss", "name": "a"}), "got two called 'a'"),
        (acting({"kind": "vsm", "name": "a.b"}), r"0 \(vsm\): name: String should match"),
        (acting({"kind": "vsm", "name": "0"}), r"0 \(vsm\): name: String should match"),
        ({"phases": [TINY["phases"][0] | {"interventions": {"kind": "vsm"}}]}, r"expected tables \[\[phases.interv"),
        ({"model": TINY["model"] | {"heads": 3}}, "unknown key 'model.heads'; nearest: n_heads"),
        ({"model": {"n_layers": 2}}, "model.d_model: Field required"),
        ({"name": ""}, "name: "),
        ({"data": {"held_out_fraction": 1.5}}, "data.held_out_fraction: .*less than 1"),
    ],
)
def test_faulty_recipes_name_the_key(change, message, tmp_path):
    path = tmp_path / "faulty.toml"
    path.write_text(tomli_w.dumps(TINY | change))
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff", "is not UTF-8"),
        ("name = 'a'".encode("utf-16"), "is UTF-16; expected UTF-8"),
        (b"#" * (1 << 20) + b"#", "expected at most"),
        (b"", "name: "),
    ],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_one_wrong_setting_is_one_complaint():
    with pytest.raises(ValueError, match=r"eval_every") as caught:
        apply_overrides(load_recipe("p3-muon-nano"), {"phases.0.eval_every": 0})
    assert "too short" not in str(caught.value)
    assert ";" not in str(caught.value)
    with pytest.raises(ValueError, match="phases: .*at least 1"):
        parse_recipe(TINY | {"phases": []})


def test_a_model_says_which_tokenizer_it_had():
    changed = apply_overrides(load_recipe("nca-002-nano"), {"data.tokenizer": "gpt2", "model.d_vocab": 50257})
    assert [phase_model(changed, i).tokenizer_name for i in range(2)] == [None, "gpt2"]


@pytest.mark.parametrize(
    ("older", "says"),
    [
        ({"vsm": {"on": "z", "steering": 0.0}}, 'vsm: write kind = "vsm" with on, controller, steering, group_size'),
        ({"vsm": {"on": "pattern", "coherence": 0.05}}, 'and kind = "coherence" with its weight'),
        ({"z_loss": 1e-5}, 'z_loss: write kind = "z-loss" with its weight'),
        ({"auxiliary": {"td": 0.1}}, 'auxiliary: write one each of kind = "temporal-difference", "gate-entropy"'),
        ({"vsm": {}, "z_loss": 1e-5}, 'z_loss: write kind = "z-loss" with its weight'),
    ],
)
def test_a_recipe_of_the_older_form_is_refused_in_one_line_that_says_what_to_write(older, says, tmp_path):
    with pytest.raises(ValueError, match="got the form of an earlier version") as caught:
        load_recipe(written(tmp_path / "old.toml", **TINY | {"phases": [TINY["phases"][0] | older]}))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'old.toml'}: phases.0: got the form of an earlier version (")
    assert said.endswith("; expected [[phases.interventions]]")
    assert says in said
    assert "\n" not in said


def written(path, **settings):
    path.write_text(tomli_w.dumps(settings))
    return path


def test_a_base_gives_all_that_a_file_does_not_say(tmp_path):
    vsm = {"kind": "vsm", "on": "z", "controller": {"kind": "fixed", "weight": 0.5}}
    maps = {"kind": "vsm", "name": "maps", "on": "pattern", "group_size": 2}
    automata, language = (TINY["phases"][0] | {"name": name, "kind": name} for name in ("nca", "language"))
    whole = TINY | {"phases": [automata, language | {"interventions": [vsm, maps, {"kind": "z-loss"}]}]}
    whole["model"] = TINY["model"] | {"n_ctx": 64}
    written(tmp_path / "whole.toml", **whole)
    last = {
        "name": "language",
        "batch_size": 8,
        "interventions": [
            {"kind": "coherence"},
            {"name": "maps", "steering": 2.0},
            {"kind": "vsm", "steering": 1.0, "controller": {"kind": "sigmoid", "peak": 2.0}},
        ],
    }
    (tmp_path / "below").mkdir()
    middle = written(tmp_path / "below" / "middle.toml", name="middle", base="../whole.toml", model={"n_layers": 3})
    path = written(tmp_path / "changed.toml", name="changed", base="below/middle.toml", phases=[last])

    recipe = load_recipe(path)
    assert recipe.name == "changed"
    assert (recipe.model.n_layers, recipe.model.d_model) == (3, 8), "a table is changed key by key"
    (phase,) = recipe.phases  # automata are not listed, and so are left out
    assert (phase.name, phase.n_steps, phase.batch_size) == ("language", 4, 8)
    coherence, maps, vsm = phase.interventions  # those that are listed, in that order
    assert coherence.kind == "coherence"
    assert (maps.kind, maps.on, maps.group_size, maps.steering) == ("vsm", "pattern", 2, 2.0)
    assert (vsm.on, vsm.steering) == ("z", 1.0)
    assert vsm.controller == Sigmoid(peak=2.0), "another kind is another table: no weight is left of the first"
    assert [p.name for p in load_recipe(middle).phases] == ["nca", "language"]
    assert load_recipe(written(tmp_path / "own.toml", name="own", base="p3-muon-nano")).phases == (
        load_recipe("p3-muon-nano").phases
    )


def test_none_takes_away_what_a_base_gives(tmp_path):
    phase = TINY["phases"][0] | {"name": "language", "interventions": [{"kind": "vsm"}]}
    written(tmp_path / "whole.toml", **TINY | {"phases": [phase]})
    for none in ("none", []):
        last = {"name": "language", "interventions": none, "clip_norm": "none"}
        (found,) = load_recipe(written(tmp_path / "less.toml", name="less", base="whole.toml", phases=[last])).phases
        assert (found.interventions, found.clip_norm, found.batch_size) == ((), None, 2)
    path = written(tmp_path / "a.toml", name="a", base="whole.toml", phases=[last | {"n_steps": "none"}])
    with pytest.raises(ValueError, match="n_steps: Input should be a valid integer"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a", "base": "a.toml"}, "a.toml: base: got 'a.toml', which is based on this file; expected another"),
        ({"name": "a", "base": "b.toml"}, "b.toml: base: got 'a.toml', which is based on this file; expected another"),
        ({"name": "a", "base": "p3-mun"}, "no recipe or file 'p3-mun'; nearest: p3-muon"),
        ({"name": "a", "base": 3}, "a.toml: base: got '?3'?; expected a recipe's name or a file"),
        ({"base": "p3-muon"}, "a.toml: name is missing; expected one of its own beside base = 'p3-muon'"),
        (
            {"name": "a", "base": "p3-muon", "model": {"layers": 3}},
            "a.toml: unknown key 'model.layers'; nearest: n_layers",
        ),
        ({"name": "a", "base": "p3-muon", "phases": "x"}, "a.toml: phases: "),
        ({"name": "a", "base": "p3-muon", "phases": [{"name": "other"}]}, "a.toml: phases.0.n_steps: Field required"),
        ({"name": "a", "base": "p3-muon", "phases": [{"name": ["x"]}]}, "a.toml: phases.0.name: "),
    ],
)
def test_faulty_bases_are_named(settings, message, tmp_path):
    written(tmp_path / "b.toml", name="b", base="a.toml")
    with pytest.raises(ValueError, match=message):
        load_recipe(written(tmp_path / "a.toml", **settings))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="nearest: janus-v3-adaptive"):
        load_recipe("janus-v3-adaptiv")
    with pytest.raises(ValueError, match="no recipe or file"):
        load_recipe("no/such/file.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", ("a.b", 3)),
        ("a=1e-3", ("a", 1e-3)),
        ("a = true", ("a", True)),
        ("a=[0, 2]", ("a", [0, 2])),
        ("a=none", ("a", None)),
        ("a=cosine", ("a", "cosine")),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", "")),
    ],
)
def test_override_texts(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["a", "=3", ""])
def test_faulty_override_texts(text):
    with pytest.raises(ValueError, match="expected key=value"):
        parse_override(text)


def test_a_recipe_cannot_change():
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(TINY).name = "other"  # type: ignore[misc]
    assert isinstance(parse_recipe(TINY), Recipe)


@pytest.mark.parametrize(
    ("name", "other"), [("recurrent-nano", "recurrent-plain-nano"), ("recurrent-golf", "recurrent-plain")]
)
def test_nine_plain_layers_have_the_parameters_of_the_recurrent_model(name, other) -> None:
    recurrent, plain = load_recipe(name), load_recipe(other)
    sizes = [HookedLM(recipe.model, seed=None).n_parameters() for recipe in (recurrent, plain)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)
    assert plain.model.extensions.recurrence is None
    assert plain.phases[0].interventions == ()
    assert (plain.data, plain.phases[0].n_steps) == (recurrent.data, recurrent.phases[0].n_steps)
