"""Files as editors of other systems write them: with a byte-order mark, in UTF-16, with semicolons, decimal commas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.continuations import KEYS, read_continuations
from reports.study import read_record
from reports.tables import COLUMNS, read_csv, read_table
from sae.checkpoint import read_json as read_sae_json
from workbench.data.batteries import read_battery, read_prompts, read_recall
from workbench.data.claims import EMBEDDED_CLAIMS, read_claims
from workbench.data.concepts import EMBEDDED_SETS, read_concepts
from workbench.data.corpus import iter_documents
from workbench.runs import read_config, read_json
from workbench.study.recipe import STUDIES, load_study
from workbench.training.recipe import RECIPES, load_recipe

DATA = EMBEDDED_SETS.parent
DENSITY = ",".join(COLUMNS["sae_density"]) + "\nTeich,0,0,0,-1.5,3\n"
# file name, text, what reads it
READERS = [
    ("a.toml", (RECIPES / "janus-v3-control-nano.toml").read_text(encoding="utf-8"), load_recipe),
    ("a.toml", next(STUDIES.glob("*.toml")).read_text(encoding="utf-8"), load_study),
    ("a.toml", EMBEDDED_SETS.read_text(encoding="utf-8"), read_concepts),
    ("a.toml", EMBEDDED_CLAIMS[1].read_text(encoding="utf-8"), read_claims),
    ("a.toml", (DATA / "prompts.toml").read_text(encoding="utf-8"), read_prompts),
    ("a.toml", (DATA / "recall.toml").read_text(encoding="utf-8"), read_recall),
    ("a.toml", (DATA / "cause.toml").read_text(encoding="utf-8"), read_battery),
    ("a.toml", "name = 'Teich'\n", read_config),
    ("a.json", '{"name": "Teich"}', lambda path: read_json(path, "a", "an object")),
    ("a.json", '{"name": "Teich"}', read_sae_json),
    ("study.json", '{"title": "Teich"}', read_record),
    ("a.jsonl", json.dumps(dict.fromkeys(KEYS, "é"), ensure_ascii=False) + "\n", read_continuations),
    ("a.jsonl", '{"text": "Teich"}\n', lambda path: [document.text for document in iter_documents(path)]),
    ("a.txt", "Teich\n", lambda path: [document.text for document in iter_documents(path)]),
    ("sae_density.csv", DENSITY, lambda path: read_csv(path).to_csv()),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "text", "read"), READERS)
def test_a_byte_order_mark_changes_nothing_and_utf_16_is_named(tmp_path: Path, name, text, read, line_end):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline=line_end)
    plain = read(path)
    path.write_text(text, encoding="utf-8-sig", newline=line_end)
    assert read(path) == plain
    for encoding in ("utf-16", "utf-16-be"):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        path.write_text(mark + text, encoding=encoding, newline=line_end)
        with pytest.raises(ValueError, match=rf"{name}.*UTF-16; expected UTF-8") as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((",", ";"), "the cells are separated by semicolons; expected commas"),
        ((",", "\t"), "the cells are separated by tabs; expected commas"),
        ((",0,3\n", ',0,"3,0"\n'), "n_features has decimal commas (got '3,0'); expected decimal points"),
    ],
)
def test_a_csv_of_another_locale_is_named(tmp_path: Path, change, message):
    path = tmp_path / "sae_density.csv"
    path.write_text(DENSITY.replace("-1.5,", "0,").replace(*change), encoding="utf-8")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_table(tmp_path, "sae_density")
    assert str(caught.value) == f"{path}: {message}"


def test_commas_in_texts_and_in_columns_of_ones_own_are_no_decimals(tmp_path: Path):
    path = tmp_path / "sae_density.csv"
    texts = DENSITY.replace("Teich", '"1,5"').replace("n_features\n", "n_features,mine\n")
    path.write_text(texts.replace(",3\n", ',3,"0,1"\n'), encoding="utf-8")
    assert read_csv(path)["mine"].tolist() == ["0,1"]
