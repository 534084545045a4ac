"""The glossary: marked where a term first stands, never inside another word, and in docs/glossary.md too."""

from __future__ import annotations

import re
from pathlib import Path

from reports.glossary import Glossary, read_glossary

DOCS = Path(__file__).resolve().parents[2] / "docs" / "glossary.md"


def marked(text: str) -> list[str]:
    return re.findall(r'<a class="term"[^>]*>([^<]*)</a>', str(Glossary().marker()(text)))


def test_a_term_is_marked_once_a_section():
    glossary = Glossary()
    first, second = glossary.marker(), glossary.marker()
    assert str(first("FVU and fvu and FVU")).count("<a ") == 1
    assert "<a " not in first("FVU again")
    assert str(second("FVU in another section")).count("<a ") == 1
    assert [term.key for term in glossary.entries()] == ["fvu"]


def test_only_whole_words_are_terms():
    assert marked("nuclear rank of z, L0 at λ₁ = 2") == ["nuclear rank", "z", "L0", "λ₁"]
    assert marked("zig-zag, l0_high, ranked SAEs, hook_z, sae_training_results.csv") == ["SAEs"]
    assert marked("control L0 H3, which has an L0 of 4") == ["L0"]
    assert str(Glossary().marker()("control L0 H3, an L0 of 4")).startswith("control L0 H3, an <a")


def test_what_is_around_a_term_is_escaped():
    assert str(Glossary().marker()("<b>&z")).startswith("&lt;b&gt;&amp;<a ")
    assert str(Glossary().marker()("no <term>")) == "no &lt;term&gt;"


def test_every_term_stands_in_the_documented_glossary():
    documented = DOCS.read_text(encoding="utf-8").lower()
    terms = {term.key: term for term in read_glossary().values()}
    names = {
        word
        for row in re.findall(r"^\| ([^|]+(?:\\\|[^|]*)*) \|", documented, re.M)
        for word in re.split(r"[,;] ", row)
    }
    names = {name.replace("\\|", "|").strip() for name in names}
    missing = [key for key, term in terms.items() if not {word.lower() for word in term.words} & names]
    assert missing == []


def test_explanations_are_short_and_in_sentences():
    for term in read_glossary().values():
        assert 30 < len(term.text) < 240, term.key
        assert term.text.endswith("."), term.key
