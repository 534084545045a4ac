// Turns features into elements.

const inadequateSaes = new Map(); // model|seed|layer|head -> l0 and fvu over a random dictionary's

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

const grouping = new Intl.NumberFormat("en");
const formatCount = (count) => grouping.format(count);

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

// A context's tokens; hits: what a search found, whose tokens are outlined; preview: one line from before that place.
function contextElement(atlas, row, context, { hits = null, previewOf = -1 } = {}) {
  const { start, tokens, acts, peak } = contextOf(atlas, row, context);
  const line = element("div", { class: previewOf >= 0 ? "tokens preview" : "tokens", dir: "ltr" });
  const from = previewOf >= 0 ? Math.max(0, previewOf - 7) : 0;
  if (from > 0) line.append("…");
  const found = hitTokens(hits?.reach, start, tokens.length);
  let plain = ""; // neighbours without colour share one element: a page has hundreds of them
  const flush = () => {
    if (plain) line.append(tokenElement(plain));
    plain = "";
  };
  for (let i = from; i < tokens.length; i += 1) {
    const text = atlas.vocabulary[tokens[i]];
    if (acts[i] === 0 && i !== peak && !found.has(i) && text !== "") plain += text;
    else {
      flush();
      line.append(tokenElement(text, { act: acts[i], largest: atlas.max_act[row], isPeak: i === peak, isHit: found.has(i) }));
    }
  }
  flush();
  return line;
}

// The places, within a context, of the tokens that a search found.
function hitTokens(reach, start, size) {
  const hits = new Set();
  for (let i = 0; reach && i < size; i += 1) {
    if (reach[start + i] === reach[start + i + 1] || reach[start + i] >= start + size) continue;
    for (let j = i; j <= reach[start + i] - start; j += 1) hits.add(j);
  }
  return hits;
}

// The tokens that a feature promotes or suppresses, in one line, those found outlined.
function logitPreview(atlas, row, hits) {
  const line = element("div", { class: "tokens preview logit-preview", dir: "ltr" });
  for (const { token, number } of logitsOf(atlas, row, hits.mode === "promotes" ? "logit_promoted" : "logit_suppressed")) {
    line.append(tokenElement(token, { isHit: hits.isNamed[number] === 1 }), " ");
  }
  return line;
}

function nameElement(atlas, row) {
  const model = atlas.model[row];
  const mark = element("span", { class: "mark", "aria-hidden": "true" }, MARKS[model % MARKS.length]);
  mark.style.color = `var(--model-${model % MARKS.length})`;
  const seed = atlas.seeds.length > 1 ? ` seed ${atlas.seeds[atlas.seed[row]]}` : "";
  const head = atlas.head[row] < 0 ? "whole hook" : `H${atlas.head[row]}`;
  return [mark, element("span", {}, `${atlas.shortNames[model]}${seed} `), element("b", {}, `L${atlas.layer[row]} ${head} #${atlas.feature[row]}`)];
}

function previewElement(atlas, row, hits) {
  if (hits?.isNamed) return logitPreview(atlas, row, hits);
  if (!hits && !atlas.n_contexts[row]) return "";
  const context = hits ? hits.context[row] : atlas.firstContext[row];
  const previewOf = hits ? hits.place[row] - atlas.context_start[context] : atlas.context_peak[context];
  return contextElement(atlas, row, context, { hits, previewOf });
}

function rowElement(atlas, row, hits) {
  const opener = element("button", { type: "button", class: "opener", "aria-expanded": "false" }, ...nameElement(atlas, row));
  const isDead = atlas.dead[row] === 1;
  return element(
    "tr",
    { class: "feature", "data-row": row },
    element("th", { scope: "row" }, opener),
    element("td", { class: "num", "data-label": "density" }, formatDensity(atlas.density[row])),
    element("td", { class: "num", "data-label": "max" }, formatNumber(atlas.max_act[row])),
    element("td", { class: "num optional" }, formatNumber(atlas.mean_act[row])),
    element("td", {}, isDead
      ? element("span", { class: "dead-word" }, "dead")
      : element("div", { class: "tokens preview" }, tokenElement(atlas.vocabulary[atlas.top_token[row]]))),
    hits ? element("td", { class: "num hit-value", "data-label": hits.isNamed ? "logit" : "on the hit" }, hits.isNamed ? formatLogit(hits.value[row]) : formatNumber(hits.value[row])) : null,
    element("td", {}, previewElement(atlas, row, hits)),
  );
}

const formatLogit = (value) => signed(formatLike(value, Math.abs(value)));
