// Turns features into elements. Strings reach the page as text nodes only.

const inadequateSaes = new Map(); // model|seed|layer|head -> l0 and fvu over a random dictionary's
const MARKS = ["●", "◆", "■", "▲", "✚", "✖"];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function tokenElement(text, { act = 0, largest = 0, isPeak = false, isHit = false } = {}) {
  const node = element("span", { class: `tok${isPeak ? " peak" : ""}${isHit ? " hit" : ""}` });
  if (act > 0) {
    node.style.setProperty("--a", Math.min(1, act / largest || 0).toFixed(3));
    node.title = formatNumber(act);
  } else if (Number.isNaN(act)) node.title = "not measured: position 0 or a special token";
  if (text === "") node.append(element("span", { class: "glyph" }, "∅"));
  else if (INVISIBLE.test(text)) {
    for (const character of text) {
      node.append(INVISIBLE.test(character) ? element("span", { class: "glyph" }, nameCharacter(character)) : character);
    }
  } else node.append(text);
  return node;
}

// A number's text with a true minus, which no zero has.
const trueMinus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replaceAll("-", "−"));

// The same with a plus where it is above 0 as written.
const signed = (text) => (Number(text) > 0 ? `+${text}` : trueMinus(text));

function formatNumber(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return trueMinus(size < 5e-3 || size >= 1e5 ? value.toExponential(digits - 2) : value.toFixed(digits - 1));
}

// As many decimals as the largest of a list needs for three digits, so that the list stays aligned.
function formatLike(value, largest) {
  const decimals = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(largest || 1))));
  return trueMinus(value.toFixed(decimals));
}

function formatDensity(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value >= 5e-5 ? `${(100 * value).toFixed(2)} %` : `${(100 * value).toExponential(0)} %`.replaceAll("-", "−");
}

function contextElement(atlas, row, context, reach, { isPreview = false } = {}) {
  const { start, tokens, acts, peak } = contextOf(atlas, row, context);
  const line = element("div", { class: isPreview ? "tokens preview" : "tokens", dir: "ltr" });
  const from = isPreview ? Math.max(0, peak - 7) : 0;
  if (from > 0) line.append("…");
  const hits = hitTokens(reach, start, tokens.length);
  let plain = ""; // neighbours without colour share one element: a page has hundreds of them
  const flush = () => {
    if (plain) line.append(tokenElement(plain));
    plain = "";
  };
  for (let i = from; i < tokens.length; i += 1) {
    const text = atlas.vocabulary[tokens[i]];
    if (acts[i] === 0 && i !== peak && !hits.has(i) && text !== "") plain += text;
    else {
      flush();
      line.append(tokenElement(text, { act: acts[i], largest: atlas.max_act[row], isPeak: i === peak, isHit: hits.has(i) }));
    }
  }
  flush();
  return line;
}

// The places, within a context, of the tokens that a search found.
function hitTokens(reach, start, size) {
  const hits = new Set();
  for (let i = 0; reach !== null && i < size; i += 1) {
    if (reach[start + i] === reach[start + i + 1] || reach[start + i] >= start + size) continue;
    for (let j = i; j <= reach[start + i] - start; j += 1) hits.add(j);
  }
  return hits;
}

function nameElement(atlas, row) {
  const model = atlas.model[row];
  const mark = element("span", { class: "mark", "aria-hidden": "true" }, MARKS[model % MARKS.length]);
  mark.style.color = `var(--model-${model % MARKS.length})`;
  const seed = atlas.seeds.length > 1 ? ` seed ${atlas.seeds[atlas.seed[row]]}` : "";
  const head = atlas.head[row] < 0 ? "whole hook" : `H${atlas.head[row]}`;
  return [mark, element("span", {}, `${atlas.shortNames[model]}${seed} `), element("b", {}, `L${atlas.layer[row]} ${head} #${atlas.feature[row]}`)];
}

function rowElement(atlas, row, reach) {
  const context = reach ? matchingContext(atlas, reach, row) : atlas.n_contexts[row] ? atlas.firstContext[row] : -1;
  const opener = element("button", { type: "button", class: "opener", "aria-expanded": "false" }, ...nameElement(atlas, row));
  const isDead = atlas.dead[row] === 1;
  const node = element(
    "tr",
    { class: "feature", "data-row": row },
    element("th", { scope: "row" }, opener),
    element("td", { class: "num", "data-label": "density" }, formatDensity(atlas.density[row])),
    element("td", { class: "num", "data-label": "max" }, formatNumber(atlas.max_act[row])),
    element("td", { class: "num optional" }, formatNumber(atlas.mean_act[row])),
    element("td", {}, isDead
      ? element("span", { class: "dead-word" }, "dead")
      : element("div", { class: "tokens preview" }, tokenElement(atlas.vocabulary[atlas.top_token[row]]))),
    element("td", {}, context >= 0 ? contextElement(atlas, row, context, reach, { isPreview: true }) : ""),
  );
  return node;
}

function cardElement(atlas, row, heads, reach, { title = "", onOpen, isMatch = false } = {}) {
  const card = element("article", { class: "card" }, element("h2", {}, title, ...nameElement(atlas, row)));
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
  if (head) {
    const [low, high] = [head.low, head.high].map((bound) => bound?.toFixed(2));
    const interval = low && high ? ` [${trueMinus(low)}, ${trueMinus(high)}]` : "";
    addFact("removing this head", `${head.impact === null ? "–" : signed(head.impact.toFixed(2))} %${interval}`);
  }
  const sae = inadequateSaes.get([atlas.models[atlas.model[row]], atlas.seeds[atlas.seed[row]], atlas.layer[row], atlas.head[row]].join("|"));
  if (sae) addFact("this head’s SAE is inadequate:", `l0 ${formatNumber(sae.l0)}, fvu ${formatNumber(sae.ratio)} of a random dictionary’s`);
  const place = { model: atlas.models[atlas.model[row]], seed: atlas.seeds[atlas.seed[row]], layer: atlas.layer[row], head: atlas.head[row] };
  const address = place.head < 0 ? null : headAddress(place);
  if (address) facts.append(element("li", {}, element("a", { href: address }, "this head’s page")));
  card.append(facts);
  card.append(contextList(atlas, row, reach));
  card.append(logitLists(atlas, row));
  if (!isMatch) card.append(neighbourList(atlas, row, onOpen) ?? "");
  else card.append(element("p", {}, openButton("Open this feature", row, onOpen)));
  return card;
}

function contextList(atlas, row, reach) {
  if (!atlas.n_contexts[row]) {
    const where = atlas.dead[row] ? `on none of the ${atlas.n_tokens && `${atlas.n_tokens} held-out `}tokens of this atlas` : "at the first position of sequences alone, where nothing stands before it to read";
    return element("p", { class: "nothing" }, `No context: this feature fired ${where}.`);
  }
  const list = element("ol", { class: "contexts" });
  for (let context = atlas.firstContext[row]; context < atlas.firstContext[row + 1]; context += 1) {
    const { value } = contextOf(atlas, row, context);
    list.append(element("li", {}, element("span", { class: "num" }, formatNumber(value)), contextElement(atlas, row, context, reach)));
  }
  return list;
}

function logitLists(atlas, row) {
  const lists = element("div", { class: "logits" });
  for (const [name, title] of [["logit_promoted", "Promotes"], ["logit_suppressed", "Suppresses"]]) {
    const entries = logitsOf(atlas, row, name);
    if (!entries.length) continue;
    const list = element("ul");
    const largest = Math.max(...entries.map(({ value }) => Math.abs(value)));
    for (const { token, value } of entries) {
      const number = element("span", { class: "num" }, formatLike(value, largest));
      list.append(element("li", {}, element("span", { class: "tokens" }, tokenElement(token)), number));
    }
    lists.append(element("section", {}, element("h3", {}, title), list));
  }
  return lists;
}

function neighbourList(atlas, row, onOpen) {
  const neighbours = neighboursOf(atlas, row).filter((neighbour) => neighbour.row >= 0);
  if (!neighbours.length) return null;
  const buttons = neighbours.map(({ row: other, feature, cosine }) => openButton(`#${feature} · ${trueMinus(cosine.toFixed(2))}`, other, onOpen));
  return element("div", { class: "near" }, element("h3", {}, "Nearest decoders in this head"), ...buttons);
}

function openButton(text, row, onOpen) {
  const button = element("button", { type: "button", class: "quiet" }, text);
  button.addEventListener("click", () => onOpen(row));
  return button;
}

function sheetElement(atlas, row, heads, reach, onOpen) {
  const match = matchOf(atlas, row);
  const sheet = element("div", { class: match ? "sheet pair" : "sheet" }, cardElement(atlas, row, heads, reach, { onOpen }));
  if (match) {
    const title = `Best match, score ${trueMinus(match.score.toFixed(2))}: `;
    sheet.append(cardElement(atlas, match.row, heads, reach, { title, onOpen, isMatch: true }));
  }
  return sheet;
}
