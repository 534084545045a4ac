// A head's attention in one sentence: its tokens coloured for one query, and the whole map.

const DARKEST = 0.5; // weight from which on a cell is darkest
const N_STRONGEST = 3; // keys that are named of a query

// The colour's strength grows as the square root of the weight: faint attention is still seen.
const strength = (weight) => (Number.isFinite(weight) ? Math.sqrt(Math.min(1, weight / DARKEST)) : 0);

// One pixel per weight, in the theme's colour; position 0 is blank where it is left out.
function paint(canvas, rows, isDiagonal = false) {
  const style = getComputedStyle(document.documentElement);
  const [r, g, b] = style.getPropertyValue("--heat").split(",").map(Number);
  const n = rows.length;
  [canvas.width, canvas.height] = [n, n];
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  rows.forEach((row, q) => row.forEach((weight, k) => {
    const at = 4 * (q * n + k);
    image.data.set([r, g, b, Math.max(Math.round(255 * strength(weight)), isDiagonal && q === k ? 24 : 0)], at);
  }));
  context.putImageData(image, 0, 0);
}

function attentionElement(head, state) {
  const sentences = sentencesOf(head);
  const box = element("div", { class: "attention" });
  if (!sentences.length) {
    box.append(element("p", { class: "note" }, "No attention maps of this head: attention_examples.csv has none."));
    return box;
  }
  const sentence = Math.min(state.sentence, sentences.length - 1);
  const { tokens } = sentences[sentence];
  const rows = mapOf(head, sentence, state.isWithoutFirst);
  const line = tokenLine(tokens);
  const said = element("p", { class: "said", role: "status", "aria-live": "polite" });
  const map = matrixElement(rows, tokens);
  let query = Math.min(state.query ?? tokens.length - 1, tokens.length - 1);
  const show = (q) => {
    query = Math.max(0, Math.min(tokens.length - 1, q));
    colourTokens(line, rows[query], query);
    map.row.style.top = `calc(var(--cell) * ${query})`;
    said.replaceChildren(...sayQuery(rows[query], query, tokens, state.isWithoutFirst));
  };
  const pick = (q) => {
    state.query = q;
    for (const other of document.querySelectorAll(".attention")) other.show?.(q);
  };
  line.addEventListener("click", ({ target }) => {
    const token = target.closest("[data-q]");
    if (token) pick(Number(token.dataset.q));
  });
  line.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const to = { Home: 0, End: tokens.length - 1 }[event.key] ?? (step && query + step);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pick(Math.max(0, Math.min(tokens.length - 1, to)));
  });
  map.square.addEventListener("click", (event) => {
    const { top, height } = map.square.getBoundingClientRect();
    pick(Math.floor((tokens.length * (event.clientY - top)) / height));
  });
  box.show = show;
  box.append(line, said, map.element, strongestTable(rows, tokens));
  show(query);
  return box;
}

function tokenLine(tokens) {
  const label = "Tokens; the arrow keys choose the query";
  const line = element("div", { class: "tokens line", role: "group", tabindex: "0", "aria-label": label, dir: "ltr" });
  tokens.forEach((text, q) => line.append(element("span", { class: "tok", "data-q": q }, ...tokenText(text))));
  return line;
}

function colourTokens(line, row, query) {
  [...line.children].forEach((node, k) => {
    node.classList.toggle("query", k === query);
    node.classList.toggle("later", k > query);
    node.style.setProperty("--a", k <= query ? strength(row[k]).toFixed(3) : 0);
    node.title = k <= query && Number.isFinite(row[k]) ? row[k].toFixed(3) : "";
  });
}

// The strongest keys of a query, largest first.
function strongest(row) {
  const order = [...row.keys()].filter((k) => Number.isFinite(row[k])).sort((a, b) => row[b] - row[a]);
  return order.slice(0, N_STRONGEST).filter((k) => row[k] > 0);
}

const tokenSpan = (text) => element("span", { class: "tokens quoted" }, ...tokenText(text));

function sayQuery(row, query, tokens, isWithoutFirst) {
  const keys = strongest(row);
  const from = [tokenSpan(tokens[query]), ` (position ${query}) `];
  if (!keys.length) return [...from, isWithoutFirst ? "gives less than a hundredth of its attention to anything but position 0." : "attends to nothing."];
  const parts = keys.flatMap((k, i) => [i ? ", " : "", tokenSpan(tokens[k]), ` ${row[k].toFixed(3)}`]);
  return [...from, "attends to ", ...parts, "."];
}

function matrixElement(rows, tokens) {
  const canvas = element("canvas", { role: "img", "aria-label": "Attention map: queries downward, keys to the right; the table below says the strongest" });
  paint(canvas, rows, true);
  canvas.repaint = () => paint(canvas, rows, true);
  const row = element("span", { class: "row-mark", "aria-hidden": "true" });
  const square = element("div", { class: "square" }, canvas, row);
  const labels = element("div", { class: "labels", "aria-hidden": "true" }, ...tokens.map((text) => element("span", {}, ...tokenText(text))));
  const matrix = element("div", { class: "matrix" }, labels, square);
  matrix.style.setProperty("--n", tokens.length);
  return { element: matrix, square, row };
}

// The map in words: for who does not see it, and for paper.
function strongestTable(rows, tokens) {
  const body = element("tbody");
  rows.forEach((row, q) => {
    const cells = strongest(row).flatMap((k, i) => [i ? ", " : "", tokenSpan(tokens[k]), ` ${row[k].toFixed(3)}`]);
    body.append(element("tr", {}, element("th", { scope: "row" }, `${q} `, tokenSpan(tokens[q])), element("td", {}, ...(cells.length ? cells : ["–"]))));
  });
  const names = element("tr", {}, element("th", { scope: "col" }, "Query"), element("th", { scope: "col" }, "Strongest keys"));
  const table = element("table", { class: "plain" }, element("thead", {}, names), body);
  return element("details", {}, element("summary", {}, "The map as a table"), table);
}
