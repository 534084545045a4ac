// Turns what is known of a head into elements.

function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Three significant digits, without exponents where a reader would not want them.
function formatNumber(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-4 || size >= 1e6) return trueMinus(value.toExponential(digits - 1));
  return trueMinus(value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
}

const formatPercent = (value) => (value === null ? "–" : `${signed(value.toFixed(3))} %`);

function ordinal(n) {
  const end = n % 100 >= 11 && n % 100 <= 13 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th");
  return `${n}${end}`;
}

function tokenText(text) {
  if (text === "") return [element("span", { class: "glyph" }, "∅")];
  if (!INVISIBLE.test(text)) return [text];
  return [...text].map((character) =>
    INVISIBLE.test(character) ? element("span", { class: "glyph" }, nameCharacter(character)) : character,
  );
}

const shortHeads = () => [...new Set(heads.map(({ short }) => short))];

function nameElement(head) {
  const number = shortHeads().indexOf(head.short);
  const mark = element("span", { class: "mark", "aria-hidden": "true" }, MARKS[number % MARKS.length]);
  mark.style.color = `var(--model-${number % data.colours.length})`;
  const seed = new Set(heads.filter(({ model }) => model === head.model).map(({ seed: own }) => own)).size > 1 ? ` seed ${head.seed}` : "";
  return [mark, ` ${head.short}${seed} `, element("b", {}, `layer ${head.layer}, head ${head.head}`)];
}

const placeOf = (head) => `${head.short}, seed ${head.seed}, layer ${head.layer}, head ${head.head}`;

// What a reader takes away in one line: kind, and what its removal costs.
function summaryElement(head) {
  const kind = kindOf(head);
  const parts = [];
  if (kind) {
    const own = data.measures.find(({ key }) => key === kind.key);
    parts.push(`${kind.title}: ${formatNumber(own.value[head.index])}, threshold ${own.threshold}`);
  } else if (data.kinds.of.length) parts.push("Of no kind of the gallery");
  if (data.ablation.length) parts.push(costWords(head, ablationOf()));
  const { alike } = data;
  if (alike[head.index]) {
    const [other, cosine] = alike[head.index];
    parts.push(`most alike in its layer: head ${other}, cosine ${trueMinus(cosine.toFixed(2))}`);
  }
  return element("p", { class: "summary" }, `${parts.join("; ")}.`);
}

function costWords(head, ablation) {
  const [impact, low, high] = ["impact_pct", "ci_low", "ci_high"].map((name) => ablation[name][head.index]);
  if (impact === null) return "its removal is not measured";
  const rank = rankOf(head, ablation.impact_pct);
  const where = `${ordinal(rank.rank)} of ${rank.n} heads`;
  if (low === null || high === null) return `removing it changes the loss by ${formatPercent(impact)} (${where}; no interval)`;
  if (low <= 0 && high >= 0) return `removing it does not surely change the loss: ${formatPercent(impact)}, interval holds 0 (${where})`;
  return `removing it changes the loss by ${formatPercent(impact)}, interval excludes 0 (${where})`;
}

function measuresElement(head) {
  if (!data.measures.length) return element("p", { class: "note" }, "No measures of attention: attention_stats.csv is not in this study.");
  const body = element("tbody");
  for (const measure of data.measures) body.append(measureRow(head, measure));
  for (const ablation of data.ablation) body.append(impactRow(head, ablation));
  const names = ["Measure", "This head", "Even", "z", "Rank", "All heads of the model"];
  const row = element("tr", {}, ...names.map((name, i) => element("th", { scope: "col", class: i > 0 && i < 5 ? "num" : undefined }, name)));
  return element("div", {}, scrolling(`Measures of ${placeOf(head)}`, element("table", { class: "measures" }, element("thead", {}, row), body)), element("p", { class: "note" }, data.counts));
}

function measureRow(head, { title, meaning, value, uniform, z, nats, key }) {
  const own = value[head.index];
  const { index } = head;
  const name = element("th", { scope: "row", title: meaning }, title, key === "entropy_share" ? " share" : "");
  const note = nats && nats[index] !== null ? [element("small", {}, ` ${formatNumber(nats[index])} nats`)] : [];
  return element(
    "tr",
    {},
    name,
    element("td", { class: "num" }, formatNumber(own), ...note),
    element("td", { class: "num" }, formatNumber(uniform[index])),
    element("td", { class: "num" }, z[index] === null ? "–" : signed(z[index].toFixed(1))),
    rankCell(head, value),
    element("td", {}, stripElement(head, value, uniform[index], title)),
  );
}

function rankCell(head, values) {
  const found = rankOf(head, values);
  return element("td", { class: "num" }, found ? `${found.rank} / ${found.n}` : "–");
}

function impactRow(head, ablation) {
  const { kind, impact_pct: values } = ablation;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, "Loss without it", data.ablation.length > 1 ? ` (${kind})` : ""),
    element("td", { class: "num" }, formatPercent(values[head.index])),
    element("td", { class: "num" }, "–"),
    element("td", { class: "num" }, "–"),
    rankCell(head, values),
    element("td", {}, stripElement(head, values, 0, "Loss without it")),
  );
}

// All heads of the model as strokes, this one thick; a dotted line where even attention, or no effect, would be.
function stripElement(head, values, level, title) {
  const [width, height] = [180, 20];
  const others = headsOf(head).map(({ index }) => values[index]).filter((value) => value !== null);
  if (values[head.index] === null) return "";
  const ends = [...others, level ?? others[0]];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const x = (value) => 4 + ((width - 8) * (value - low)) / (high - low || 1);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "strip", role: "img" });
  svg.setAttribute("aria-label", `${title}: this head among ${others.length}, from ${formatNumber(Math.min(...others))} to ${formatNumber(Math.max(...others))}`);
  if (level !== null) svg.append(drawing("line", { x1: x(level), x2: x(level), y1: 0, y2: height, class: "level" }));
  for (const value of others) svg.append(drawing("line", { x1: x(value), x2: x(value), y1: 5, y2: height - 5, class: "other" }));
  svg.append(drawing("circle", { cx: x(values[head.index]), cy: height / 2, r: 4.5, class: "own" }));
  return svg;
}

function ablationElement(head) {
  if (!data.ablation.length) return element("p", { class: "note" }, "What removing it costs is not measured in this study.");
  const list = element("dl", { class: "facts" });
  const add = (term, text) => list.append(element("div", {}, element("dt", {}, term), element("dd", {}, text)));
  for (const own of data.ablation) {
    const at = (name) => own[name][head.index];
    const prefix = data.ablation.length > 1 ? `${own.kind}: ` : "";
    const interval = at("ci_low") === null ? "" : ` [${signed(at("ci_low").toFixed(3))}, ${signed(at("ci_high").toFixed(3))}]`;
    add(`${prefix}loss increase, 95 % interval`, `${formatPercent(at("impact_pct"))}${interval}`);
    add(`${prefix}standard error`, at("stderr") === null ? "–" : `${formatNumber(at("stderr"))} %`);
    add(`${prefix}loss, with and without`, `${formatNumber(at("base_loss"), 5)} → ${formatNumber(at("ablated_loss"), 5)} nats`);
    add(`${prefix}KL divergence of predictions`, `${formatNumber(at("kl"))} nats`);
    add(`${prefix}first-order estimate`, formatPercent(at("estimate_pct")));
    add(`${prefix}n`, at("n_tokens") === null ? "–" : `${at("n_tokens").toLocaleString("en")} tokens`);
  }
  return list;
}

function rowsElement(head) {
  const rows = data.rows[head.index];
  if (!rows.length) return element("p", { class: "note" }, "Nothing in other tables.");
  const item = ([table, said]) => {
    const name = table.replaceAll("_", " ");
    const link = data.panels[table] ? element("a", { href: `report.html#${data.panels[table]}` }, name) : name;
    return element("li", {}, link, `: ${said}`);
  };
  return element("ul", { class: "rows" }, ...rows.map(item));
}

function featuresElement(head) {
  const features = data.features[head.index];
  const place = new URLSearchParams({ model: head.model, layer: head.layer, head: head.head });
  const all = element("p", {}, element("a", { href: `atlas.html#${place}` }, "All its features, in the atlas"));
  if (!features.length) return element("p", { class: "note" }, "The atlas has no feature of this head that fires.");
  const row = ([feature, largest, density, token, seed]) => {
    const key = [head.model, seed, head.layer, head.head, feature].join("|");
    const link = element("a", { href: `atlas.html#${new URLSearchParams({ open: key })}` }, `#${feature}`);
    const text = element("span", { class: "tokens" }, ...tokenText(token));
    const numbers = [formatNumber(largest), `${(100 * density).toFixed(2)} %`].map((number) => element("td", { class: "num" }, number));
    return element("tr", {}, element("th", { scope: "row" }, link), element("td", {}, text), ...numbers);
  };
  const names = element("tr", {}, ...["Feature", "Top token", "Max act", "Density"].map((name, i) => element("th", { scope: "col", class: i > 1 ? "num" : undefined }, name)));
  const table = element("table", { class: "plain" }, element("thead", {}, names), element("tbody", {}, ...features.map(row)));
  return element("div", {}, scrolling(`Strongest features of ${placeOf(head)}`, table), all);
}

const scrolling = (label, child) => element("div", { class: "table-scroll", role: "region", tabindex: "0", "aria-label": label }, child);
