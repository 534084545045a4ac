// Finds and orders features. All contexts are places in one line of tokens; indices over it are built once, in slices.

const MODES = {
  fires: { column: "On the hit", found: "fire on it in a context kept here" },
  context: { column: "Max in context", found: "have it in a context kept here" },
  promotes: { column: "Logit", found: "have it among the tokens that they promote most" },
  suppresses: { column: "Logit", found: "have it among the tokens that they suppress most" },
};
const SLICE = 12; // milliseconds of work before the page may draw
const NONE = 0xffffffff;

function startIndex(atlas) {
  const index = { orders: new Map(), isReady: false };
  index.work = buildIndex(atlas, index);
  return index;
}

// Goes on building for a slice of time, or to the end; whether it is done.
function workOnIndex(index, milliseconds = Infinity) {
  const end = performance.now() + milliseconds;
  while (!index.isReady && performance.now() < end) index.isReady = index.work.next().done;
  return index.isReady;
}

async function finishIndex(index) {
  while (!workOnIndex(index, SLICE)) await new Promise((resolve) => setTimeout(resolve));
}

function* buildIndex(atlas, index) {
  const { line_token: line, vocabulary } = atlas;
  index.lower = vocabulary.map((token) => token.toLowerCase());
  index.tokensOf = new Map(); // a token's text without outer spaces -> its numbers
  index.lower.forEach((text, token) => {
    const trimmed = text.trim() || text;
    if (!index.tokensOf.has(trimmed)) index.tokensOf.set(trimmed, []);
    index.tokensOf.get(trimmed).push(token);
  });
  yield;
  const pieces = new Array(line.length);
  index.ends = new Uint32Array(line.length); // of a place: where its text ends
  for (let i = 0, length = 0; i < line.length; i += 1) {
    pieces[i] = index.lower[line[i]];
    length += pieces[i].length;
    index.ends[i] = length;
  }
  index.text = pieces.join("");
  yield;
  const ofTokens = new Uint32Array(vocabulary.length);
  for (const token of line) ofTokens[token] += 1;
  index.firstPlace = offsetsOf(ofTokens);
  index.places = fillLists(index.firstPlace, line);
  yield;
  yield* indexActivations(atlas, index);
}

// For every place of the line: the contexts in which a feature is active there, and how strongly.
function* indexActivations(atlas, index) {
  const { context_start: starts, active_place: placeOf, firstActive } = atlas;
  index.rowOf = new Uint32Array(starts.length);
  for (let row = 0; row < atlas.size; row += 1) index.rowOf.fill(row, atlas.firstContext[row], atlas.firstContext[row + 1]);
  const [place, context] = [new Uint32Array(placeOf.length), new Uint32Array(placeOf.length)];
  const counts = new Uint32Array(atlas.line_token.length);
  for (let own = 0; own < starts.length; own += 1) {
    for (let i = firstActive[own]; i < firstActive[own + 1]; i += 1) {
      context[i] = own;
      place[i] = starts[own] + placeOf[i];
      counts[place[i]] += 1;
    }
    if (own % 16384 === 0) yield;
  }
  index.firstActive = offsetsOf(counts);
  yield;
  const order = fillLists(index.firstActive, place);
  yield;
  index.activeContext = new Uint32Array(order.length); // in the order of places, as a search reads them
  index.activeValue = new Float64Array(order.length); // nan: not measured
  for (let i = 0; i < order.length; i += 1) {
    index.activeContext[i] = context[order[i]];
    index.activeValue[i] = decimalOf(atlas, "active", order[i], index.rowOf[index.activeContext[i]]);
    if (i % 65536 === 0) yield;
  }
}

// 0, 1, 2 … by list: `offsets` says where each list begins, `lists[i]` which of them takes i.
function fillLists(offsets, lists) {
  const [next, filled] = [offsets.slice(), new Uint32Array(lists.length)];
  for (let i = 0; i < lists.length; i += 1) {
    filled[next[lists[i]]] = i;
    next[lists[i]] += 1;
  }
  return filled;
}

// --- the query

// What is asked for: a feature's number, whole tokens and words, or, in quotes or by the switch, any part of the text.
function readQuery(view) {
  const text = view.query.toLowerCase().replaceAll("↵", "\n").replaceAll("⇥", "\t");
  if (!text.replaceAll(" ", "")) return null;
  if (/^\s*#\d+\s*$/.test(text)) return { feature: Number(text.trim().slice(1)) };
  const quoted = /^\s*["“](.+)["”]\s*$/s.exec(text);
  if (quoted || view.part) return { needle: quoted ? quoted[1] : text, isPart: true };
  return { needle: text.replace(/ +$/, ""), isPart: false }; // a space in front counts: " he" begins a word
}

// The numbers of the tokens that the query names.
function namedTokens(index, { needle, isPart }) {
  if (isPart) return [...index.lower.keys()].filter((token) => index.lower[token].includes(needle));
  const found = index.tokensOf.get(needle.trim() || needle) ?? [];
  return /^\s*$/.test(needle) || needle[0] !== " " ? found : found.filter((token) => index.lower[token].startsWith(" "));
}

// Where the line holds the query: first and last places of matches, and for every place the last place of the first
// match that begins there or later. A context holds a match if both lie inside it.
function matchLine(index, query) {
  const [firsts, lasts] = [[], []];
  if (!query.isPart) {
    for (const token of namedTokens(index, query)) {
      for (let i = index.firstPlace[token]; i < index.firstPlace[token + 1]; i += 1) firsts.push(index.places[i]);
    }
    for (const place of firsts) lasts.push(place);
  }
  matchText(index, query, firsts, lasts);
  const reach = new Uint32Array(index.ends.length + 1).fill(NONE);
  for (let i = 0; i < firsts.length; i += 1) reach[firsts[i]] = lasts[i];
  for (let i = index.ends.length - 1; i >= 0; i -= 1) if (reach[i + 1] < reach[i]) reach[i] = reach[i + 1];
  return { firsts, lasts, reach };
}

// Adds matches in the text: any where parts are asked for, else those of several tokens that begin and end with a word.
function matchText({ text, ends }, { needle, isPart }, firsts, lasts) {
  const wanted = isPart ? needle : needle.trim();
  const startsWord = !isPart && needle[0] === " ";
  if (!isPart && wanted.length < 2) return;
  let token = 0;
  let last = 0;
  for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, isPart ? ends[token] : at + 1)) {
    while (ends[token] <= at) token += 1;
    last = Math.max(last, token);
    while (ends[last] < at + wanted.length) last += 1;
    if (!isPart) {
      while (last > token && ends[last - 1] >= at + wanted.length) last -= 1;
      const start = token ? ends[token - 1] : 0;
      if (last === token || !isWord(text, at, at + wanted.length, start, ends[last], startsWord)) continue;
    }
    firsts.push(token);
    lasts.push(last); // a later match in the same token ends no earlier
  }
}

const LETTER = /[\p{L}\p{N}]/u;

// Whether text[at … end] begins and ends with its tokens (spaces aside) and does not stand inside a word.
function isWord(text, at, end, start, stop, startsWord) {
  if (text.slice(start, at).trim() || text.slice(end, stop).trim()) return false;
  const [before, after] = [text[at - 1] ?? "", text[end] ?? ""];
  if (startsWord && before !== " ") return false;
  return !(LETTER.test(before) && LETTER.test(text[at])) && !(LETTER.test(after) && LETTER.test(text[end - 1]));
}

// --- hits: of each row the best one, its value, and the context (or token) in which it is

function findHits(atlas, index, query, mode) {
  const hits = { mode, value: new Float64Array(atlas.size).fill(-Infinity), context: new Int32Array(atlas.size).fill(-1) };
  if (mode === "promotes" || mode === "suppresses") return logitHits(atlas, index, query, hits);
  const matches = matchLine(index, query);
  hits.reach = matches.reach;
  hits.place = new Uint32Array(atlas.size);
  if (mode === "fires") activeHits(atlas, index, matches, hits);
  else contextHits(atlas, matches, hits);
  return hits;
}

function activeHits(atlas, index, { firsts, lasts }, hits) {
  const { context_start: starts, context_n_tokens: sizes } = atlas;
  const { firstActive, activeContext, activeValue, rowOf } = index;
  for (let match = 0; match < firsts.length; match += 1) {
    const [first, last] = [firsts[match], lasts[match]];
    for (let place = first; place <= last; place += 1) {
      for (let i = firstActive[place]; i < firstActive[place + 1]; i += 1) {
        const context = activeContext[i];
        const value = activeValue[i];
        if (starts[context] > first || last >= starts[context] + sizes[context]) continue;
        const row = rowOf[context];
        if (!(value > hits.value[row] || (value === hits.value[row] && context < hits.context[row]))) continue;
        hits.value[row] = value;
        hits.context[row] = context;
        hits.place[row] = place;
      }
    }
  }
}

function contextHits(atlas, { reach }, hits) {
  const { context_start: starts, context_n_tokens: sizes, firstContext } = atlas;
  for (let row = 0; row < atlas.size; row += 1) {
    for (let context = firstContext[row]; context < firstContext[row + 1]; context += 1) {
      const last = reach[starts[context]];
      if (last >= starts[context] + sizes[context]) continue;
      const value = decimalOf(atlas, "context", context, row);
      if (!(value > hits.value[row])) continue;
      hits.value[row] = value;
      hits.context[row] = context;
      hits.place[row] = last;
    }
  }
}

function logitHits(atlas, index, query, hits) {
  const [name, first, sign] = hits.mode === "promotes" ? ["logit_promoted", atlas.firstPromoted, 1] : ["logit_suppressed", atlas.firstSuppressed, -1];
  const tokens = atlas[`${name}_token`];
  hits.isNamed = new Uint8Array(atlas.vocabulary.length);
  for (const token of namedTokens(index, query)) hits.isNamed[token] = 1;
  for (let row = 0; row < atlas.size; row += 1) {
    for (let i = first[row]; i < first[row + 1]; i += 1) {
      if (!hits.isNamed[tokens[i]]) continue;
      const value = decimalOf(atlas, name, i, row);
      if (!(sign * value > hits.value[row])) continue; // by size; the sign comes back below
      hits.value[row] = sign * value;
      hits.context[row] = i;
    }
    if (sign < 0 && hits.context[row] >= 0) hits.value[row] = -hits.value[row];
  }
  return hits;
}

// Whether the best hit is the strongest token that a feature has.
function isStrongest(atlas, hits, row) {
  return hits.mode === "fires" && hits.value[row] >= decimalOf(atlas, "context", atlas.firstContext[row], row);
}

// --- rows

function findRows(atlas, index, view) {
  const query = readQuery(view);
  if (query?.needle) workOnIndex(index);
  const hits = query?.needle ? findHits(atlas, index, query, view.mode) : null;
  const [model, seed] = [atlas.models.indexOf(view.model), atlas.seeds.indexOf(view.seed)];
  const [lowest, highest] = [densityBound(view.dmin, 0), densityBound(view.dmax, Infinity)];
  const rows = [];
  for (const row of orderOf(atlas, index, view.sort === "best" ? "place" : view.sort)) {
    if (hits && hits.context[row] < 0) continue;
    if (model >= 0 && atlas.model[row] !== model) continue;
    if (seed >= 0 && atlas.seed[row] !== seed) continue;
    if (view.layer !== "" && atlas.layer[row] !== Number(view.layer)) continue;
    if (view.head !== "" && atlas.head[row] !== Number(view.head)) continue;
    if (view.state !== "all" && (view.state === "dead") !== (atlas.dead[row] === 1)) continue;
    if (atlas.density[row] < lowest || atlas.density[row] > highest) continue;
    if (query?.feature !== undefined && atlas.feature[row] !== query.feature) continue;
    rows.push(row);
  }
  if (hits && view.sort === "best") {
    const sign = view.mode === "suppresses" ? 1 : -1;
    rows.sort((a, b) => sign * (hits.value[a] - hits.value[b]) || a - b);
  }
  return { rows, hits, nStrongest: hits ? rows.filter((row) => isStrongest(atlas, hits, row)).length : 0 };
}

function densityBound(exponent, unbounded) {
  return exponent === "" || Number.isNaN(Number(exponent)) ? unbounded : 10 ** Number(exponent);
}

// Rows in the order of a key such as "-density"; orders are kept, they cost more than a search.
function orderOf(atlas, index, sort) {
  if (!index.orders.has(sort)) index.orders.set(sort, sortRows(atlas, sort));
  return index.orders.get(sort);
}

function sortRows(atlas, sort) {
  const descending = sort.startsWith("-");
  const key = descending ? sort.slice(1) : sort;
  const rows = Uint32Array.from({ length: atlas.size }, (_, row) => row);
  if (key === "place") return descending ? rows.reverse() : rows;
  const values = key === "token" ? tokenRanks(atlas) : atlas[key];
  const sign = descending ? -1 : 1;
  // nan last in both directions; equal rows keep their place
  return rows.sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  });
}

function tokenRanks(atlas) {
  const order = [...atlas.vocabulary.keys()];
  const lower = atlas.vocabulary.map((token) => token.trim().toLowerCase());
  order.sort((a, b) => (lower[a] < lower[b] ? -1 : lower[a] > lower[b] ? 1 : a - b));
  const rank = new Uint32Array(order.length);
  order.forEach((token, place) => { rank[token] = place; });
  return Float64Array.from(atlas.top_token, (token) => rank[token]);
}
