// Explanations of the glossary's terms beside the pointer or the focus. Without scripts a term leads to its entry.

function startGlossary() {
  const terms = document.querySelectorAll("a.term");
  if (!terms.length) return;
  const tip = document.createElement("div");
  tip.id = "explanation";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const hide = () => (tip.hidden = true);
  const show = ({ currentTarget: term }) => {
    tip.textContent = document.getElementById(term.hash.slice(1))?.textContent ?? "";
    tip.hidden = !tip.textContent;
    const box = term.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight) + scrollY}px`;
  };
  for (const term of terms) {
    term.addEventListener("pointerenter", show);
    term.addEventListener("focus", show);
    term.addEventListener("pointerleave", hide);
    term.addEventListener("blur", hide);
  }
  addEventListener("keydown", ({ key }) => key === "Escape" && hide());
}
