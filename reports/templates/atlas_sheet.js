// The sheet of a feature: what is measured of it, the spread of its activations, contexts, logits, what is near it.

const LEAST_CORRELATION = 0.5; // below it a match in another model says little
const SVG = "http://www.w3.org/2000/svg";

function svgElement(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A feature's card; options: hits of the search, onOpen and onPin, what to do with a row; title in front of its name.
function cardElement(atlas, row, heads, { hits = null, title = "", onOpen, onPin, isPinned = false, isOpen = true } = {}) {
  const card = element("article", { class: "card" }, element("h2", {}, title, ...nameElement(atlas, row)));
  card.append(factList(atlas, row, heads));
  const tools = element("p", { class: "card-tools" }, openButton(isPinned ? "Unpin" : "Pin", row, onPin));
  if (!isOpen) tools.append(openButton("Open this feature", row, onOpen));
  card.append(tools);
  card.append(element("div", { class: "measures" }, histogramFigure(atlas, row), ...logitLists(atlas, row)));
  card.append(...contextLists(atlas, row, hits), neighbourList(atlas, row, onOpen) ?? "");
  return card;
}

function factList(atlas, row, heads) {
  const facts = element("ul", { class: "facts" });
  const addFact = (name, text) => facts.append(element("li", {}, `${name} `, element("b", {}, text)));
  addFact("density", formatDensity(atlas.density[row]));
  addFact("max", formatNumber(atlas.max_act[row]));
  addFact("mean", formatNumber(atlas.mean_act[row]));
  const effect = effectOf(atlas, row);
  if (effect) {
    const [value, low, high] = [effect.value, effect.low, effect.high].map((number) => (number > 0 ? "+" : "") + formatNumber(number));
    const interval = Number.isNaN(effect.low) ? "" : ` [${low}, ${high}]`;
    addFact("removing this feature", effect.isExact ? `${value} nats per token${interval}` : `about ${value} nats per token, by the gradient`);
  }
  const impactOf = (seed) => heads.get([atlas.models[atlas.model[row]], seed, atlas.layer[row], atlas.head[row]].join("|"));
  const head = impactOf(atlas.seeds[atlas.seed[row]]) ?? impactOf("");
  if (head) addFact("removing this head", impactText(head));
  const sae = inadequateSaes.get([atlas.models[atlas.model[row]], atlas.seeds[atlas.seed[row]], atlas.layer[row], atlas.head[row]].join("|"));
  if (sae) addFact("this head’s SAE is inadequate:", `l0 ${formatNumber(sae.l0)}, fvu ${formatNumber(sae.ratio)} of a random dictionary’s`);
  const place = { model: atlas.models[atlas.model[row]], seed: atlas.seeds[atlas.seed[row]], layer: atlas.layer[row], head: atlas.head[row] };
  const address = place.head < 0 ? null : headAddress(place);
  if (address) facts.append(element("li", {}, element("a", { href: address }, "this head’s page")));
  return facts;
}

// The loss increase when a head is removed, with its interval.
function impactText({ impact, low, high }) {
  const bounds = [low, high].map((bound) => bound?.toFixed(2));
  const interval = bounds.every(Boolean) ? ` [${bounds.map(trueMinus).join(", ")}]` : "";
  return `${impact === null ? "–" : signed(impact.toFixed(2))} %${interval}`;
}

// --- activations

function histogramFigure(atlas, row) {
  const histogram = histogramOf(atlas, row);
  if (!histogram) return null;
  const [width, height, below] = [320, 64, 14];
  const largest = Math.max(...histogram.bins.map(({ count }) => count));
  const step = width / histogram.bins.length;
  const bars = histogram.bins.map(({ low, high, count }, i) => {
    const size = count ? Math.max(1, (height * count) / largest) : 0; // a bin that is not empty is seen
    const bar = svgElement("rect", { x: i * step + 0.5, y: height - size, width: step - 1, height: size });
    bar.append(svgElement("title", {}, `${formatNumber(low)} to ${formatNumber(high)}: ${tokensText(count)}`));
    return bar;
  });
  const end = histogram.bins.at(-1).high;
  const label = (x, anchor, text) => svgElement("text", { x, y: height + below - 2, "text-anchor": anchor }, text);
  const name = `Histogram of activations above 0, from 0 to ${formatNumber(end)}; ${tokensText(largest)} in the highest bin`;
  const picture = svgElement(
    "svg", { viewBox: `0 0 ${width} ${height + below}`, role: "img", "aria-label": name, class: "histogram" },
    ...bars, svgElement("line", { x1: 0, x2: width, y1: height, y2: height }), label(0, "start", "0"),
    label(width / 2, "middle", formatNumber(end / 2)), label(width, "end", formatNumber(end)),
  );
  const fires = histogram.bins.reduce((sum, { count }) => sum + count, 0);
  const caption = element("p", { class: "unit" }, `Activations of ${tokensText(fires)}; 0 on ${formatCount(histogram.zero)} more. Highest bar: ${tokensText(largest)}.`);
  const rows = histogram.bins.map(({ low, high, count }) => [formatNumber(low), formatNumber(high), formatCount(count)]);
  return element("section", { class: "spread" }, element("h3", {}, "Activations"), picture, caption, tableFold(["from", "to", "tokens"], () => rows));
}

const tokensText = (count) => `${formatCount(count)} token${count === 1 ? "" : "s"}`;

// A folded table, filled when it is opened: what a plot shows, in words. Cells are texts or elements.
function tableFold(headings, rowsOf) {
  const body = element("tbody");
  const head = element("tr", {}, ...headings.map((heading) => element("th", { scope: "col" }, heading)));
  const table = element("table", {}, element("thead", {}, head), body);
  const fold = element("details", { class: "as-table" }, element("summary", {}, "As a table"), table);
  const fill = () => body.replaceChildren(...rowsOf().map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)))));
  fold.addEventListener("toggle", () => fold.open && fill());
  fold.addEventListener("refresh", () => fold.open && fill());
  return fold;
}

// The strongest contexts, and below them one from each interval of activations.
function contextLists(atlas, row, hits) {
  if (!atlas.n_contexts[row]) {
    const where = atlas.dead[row] ? `on none of the ${atlas.n_tokens && `${atlas.n_tokens} held-out `}tokens of this atlas` : "at the first position of sequences alone, where nothing stands before it to read";
    return [element("p", { class: "nothing" }, `No context: this feature fired ${where}.`)];
  }
  const [first, second, end] = [atlas.firstContext[row], atlas.firstContext[row] + atlas.n_strongest[row], atlas.firstContext[row + 1]];
  const lists = [];
  if (second > first) lists.push(element("h3", {}, "Strongest contexts"), contextList(atlas, row, hits, first, second));
  if (end > second) {
    const note = element("span", { class: "unit" }, " a token drawn at random from each interval of activations");
    lists.push(element("h3", {}, "Weaker activations", note), contextList(atlas, row, hits, second, end));
  }
  return lists;
}

function contextList(atlas, row, hits, first, end) {
  const list = element("ol", { class: "contexts" });
  for (let context = first; context < end; context += 1) {
    const { value } = contextOf(atlas, row, context);
    const interval = intervalOf(atlas, row, context);
    const band = interval ? element("small", {}, `${formatNumber(interval.low)}–${formatNumber(interval.high)}`) : null;
    list.append(element("li", {}, element("span", { class: "num" }, element("span", {}, formatNumber(value)), band), contextElement(atlas, row, context, { hits })));
  }
  return list;
}

// --- logits: bars on one scale, to the right for what is promoted, to the left for what is suppressed

function logitLists(atlas, row) {
  const lists = [];
  const parts = [["logit_promoted", "Promotes"], ["logit_suppressed", "Suppresses"]].map(([name, title]) => [title, logitsOf(atlas, row, name)]);
  const widest = Math.max(...parts.flatMap(([, entries]) => entries.map(({ value }) => Math.abs(value))));
  for (const [title, entries] of parts) {
    if (!entries.length) continue;
    const list = element("ul");
    const largest = Math.max(...entries.map(({ value }) => Math.abs(value)));
    for (const { token, value } of entries) {
      const bar = element("span", { class: value < 0 ? "bar negative" : "bar", "aria-hidden": "true" }, element("i"));
      bar.firstChild.style.width = `${(100 * Math.abs(value)) / widest || 0}%`;
      const number = element("span", { class: "num" }, formatLike(value, largest));
      list.append(element("li", {}, element("span", { class: "tokens" }, tokenElement(token)), bar, number));
    }
    lists.push(element("section", { class: "logits" }, element("h3", {}, title, element("span", { class: "unit" }, " logits per unit")), list));
  }
  return lists;
}

// --- what is near

function neighbourList(atlas, row, onOpen) {
  const neighbours = neighboursOf(atlas, row).filter((neighbour) => neighbour.row >= 0);
  if (!neighbours.length) return null;
  const buttons = neighbours.map(({ row: other, feature, cosine }) => openButton(`#${feature} · ${trueMinus(cosine.toFixed(2))}`, other, onOpen));
  return element("div", { class: "near" }, element("h3", {}, "Nearest decoders in this head", element("span", { class: "unit" }, " cosine")), ...buttons);
}

function openButton(text, row, action) {
  const button = element("button", { type: "button", class: "quiet" }, text);
  button.addEventListener("click", () => action(row));
  return button;
}

// The open feature and, where one correlates with it, its match in the other model.
function sheetElement(atlas, row, heads, options) {
  const match = matchOf(atlas, row);
  const isShown = match !== null && match.correlation >= LEAST_CORRELATION;
  const sheet = element("div", { class: isShown ? "sheet pair" : "sheet" });
  const card = cardElement(atlas, row, heads, { ...options, isPinned: options.pinned.includes(row) });
  sheet.append(card);
  if (isShown) {
    const title = `Best match in this layer, correlation ${trueMinus(match.correlation.toFixed(2))}: `;
    sheet.append(cardElement(atlas, match.row, heads, { ...options, title, isOpen: false, isPinned: options.pinned.includes(match.row) }));
  } else if (match !== null) {
    const other = atlas.shortNames[atlas.model[match.row]];
    card.append(element("p", { class: "nothing" }, `No feature of ${other} in this layer correlates with this one by ${LEAST_CORRELATION} or more.`));
  }
  return sheet;
}
