"""No control of a page leaves the machine: every one is pressed in Chromium with the network recorded."""

from __future__ import annotations

import pytest
from headless import Tab

pytestmark = pytest.mark.browser

SKIP_LINK = "Skip to the content"  # outside the window until it has the focus

# The first control not pressed yet that a click would reach: what a dialog covers waits. Those of one kind in one place
# (rows of the atlas, its neighbours) differ in digits only and are pressed once. A link to the study's other pages is
# looked at below and not followed.
NEXT = """pressed => {
  const controls = "a, button, summary, select, input, [role=button], .modebar-btn, .legendtoggle";
  const covered = [];
  for (const node of document.querySelectorAll(controls)) {
    if (node.disabled || !node.checkVisibility() || !node.getBoundingClientRect().width) continue;
    if (/^(report|atlas|heads)\\.html/.test(node.getAttribute("href"))) continue;
    const name = node.dataset.title ?? node.getAttribute("aria-label") ?? (node.value || node.textContent);
    const place = node.closest("[id]:not([id^=modebar]):not([id^=legend])")?.id;
    const key = [place, node.closest(".plot")?.dataset.variant, node.localName, name.replace(/\\d+/g, "0")].join("|");
    if (pressed.includes(key)) continue;
    node.scrollIntoView({ block: "center", behavior: "instant" });
    const [box] = node.getClientRects(); // the first line of a link that breaks
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const hit = document.elementFromPoint(x, y);
    if (!node.contains(hit) && !(hit?.control ?? hit?.closest("label")?.control === node)) {
      covered.push(key);
      continue;
    }
    const options = node.localName === "select" ? node.options.length : 0;
    if (options || node.localName === "input") node.setAttribute("data-next", "");
    return { key, options, x, y, type: node.type ?? "" };
  }
  return { covered };
}"""


def press_everything(tab: Tab) -> list[str]:
    """Press every control of the page, those that appear on the way too; return their names."""
    pressed: list[str] = []
    n_waits = 0
    while n_waits < 20 and len(pressed) < 2000:
        control = tab.page.evaluate(NEXT, pressed)
        if "covered" in control and not [key for key in control["covered"] if SKIP_LINK not in key]:
            return pressed
        if "covered" in control:  # by a note that goes in a moment, or by what stays
            tab.page.wait_for_timeout(500)
            n_waits += 1
            continue
        pressed.append(control["key"])
        chosen = tab.page.locator("[data-next]")
        if control["options"]:
            for option in range(control["options"]):
                chosen.select_option(index=option)
        elif control["type"] in ("search", "number"):
            chosen.fill("1")
            chosen.fill("")
        else:
            tab.page.mouse.click(control["x"], control["y"])
        tab.page.evaluate("document.querySelector('[data-next]')?.removeAttribute('data-next')")
    raise AssertionError(f"pressed {len(pressed)} controls; these are covered: {control.get('covered')}")


@pytest.mark.parametrize("name", ["report.html", "atlas.html", "heads.html"])
def test_no_control_leaves_the_machine(tab, pages, name):
    tab.open(pages / name)
    pressed = press_everything(tab)
    tab.page.wait_for_timeout(1000)
    text = "\n".join(pressed)
    if name != "heads.html":  # it has no plotly.js
        assert "Download plot as a PNG" in text
        assert "Reset axes" in text
    assert "|button|" in text
    assert tab.page.url.partition("#")[0] == (pages / name).as_uri()
    outside = (
        "() => [...document.querySelectorAll('[href], [src], [action]')].map(node => node.href?.baseVal ?? node.href)"
    )
    local = ("file:", "data:", "#")
    assert [address for address in tab.page.evaluate(outside) if not str(address).startswith(local)] == []
    tab.check()
