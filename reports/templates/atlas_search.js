// Finds and orders features. The text is searched once as a line; contexts are places in it.

function buildIndex(atlas) {
  const pieces = new Array(atlas.line_token.length);
  const ends = new Uint32Array(atlas.line_token.length);
  const lower = atlas.vocabulary.map((token) => token.toLowerCase());
  let length = 0;
  for (let i = 0; i < pieces.length; i += 1) {
    const piece = lower[atlas.line_token[i]];
    pieces[i] = piece;
    length += piece.length;
    ends[i] = length;
  }
  return { text: pieces.join(""), ends, orders: new Map() };
}

// For every place of the line, the last token of the first match that begins there or later: a context holds a match if
// that token lies inside it.
function matchText(index, query) {
  const { text, ends } = index;
  const reach = new Uint32Array(ends.length + 1).fill(0xffffffff);
  let token = 0;
  let last = 0;
  for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, ends[token])) {
    while (ends[token] <= at) token += 1;
    last = Math.max(last, token);
    while (ends[last] < at + query.length) last += 1;
    reach[token] = last; // a later match in the same token ends no earlier
  }
  for (let i = ends.length - 1; i >= 0; i -= 1) if (reach[i + 1] < reach[i]) reach[i] = reach[i + 1];
  return reach;
}

function holdsMatch(atlas, reach, context) {
  const start = atlas.context_start[context];
  return reach[start] < start + atlas.context_n_tokens[context];
}

// The first of a feature's contexts that holds the query; -1 if none does.
function matchingContext(atlas, reach, row) {
  for (let context = atlas.firstContext[row]; context < atlas.firstContext[row + 1]; context += 1) {
    if (holdsMatch(atlas, reach, context)) return context;
  }
  return -1;
}

function findRows(atlas, index, view) {
  const started = performance.now();
  const query = view.query.trim() ? view.query.toLowerCase() : ""; // spaces count: " he" is the word, "he" is in "the"
  const wantedFeature = /^\s*#\d+\s*$/.test(query) ? Number(query.trim().slice(1)) : null;
  const reach = query && wantedFeature === null ? matchText(index, query) : null;
  const [model, seed] = [atlas.models.indexOf(view.model), atlas.seeds.indexOf(view.seed)];
  const [lowest, highest] = [densityBound(view.dmin, 0), densityBound(view.dmax, Infinity)];
  const rows = [];
  for (const row of orderOf(atlas, index, view.sort)) {
    if (model >= 0 && atlas.model[row] !== model) continue;
    if (seed >= 0 && atlas.seed[row] !== seed) continue;
    if (view.layer !== "" && atlas.layer[row] !== Number(view.layer)) continue;
    if (view.head !== "" && atlas.head[row] !== Number(view.head)) continue;
    if (view.state !== "all" && (view.state === "dead") !== (atlas.dead[row] === 1)) continue;
    if (atlas.density[row] < lowest || atlas.density[row] > highest) continue;
    if (wantedFeature !== null && atlas.feature[row] !== wantedFeature) continue;
    if (reach && matchingContext(atlas, reach, row) < 0) continue;
    rows.push(row);
  }
  return { rows, reach, query, milliseconds: performance.now() - started };
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
