// Reads the atlas: a header in JSON, arrays behind it; and answers what a feature's numbers and contexts are.

const ARRAY_TYPES = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  int8: Int8Array,
  int16: Int16Array,
  int32: Int32Array,
  float64: Float64Array,
};

function readAtlas(bytes) {
  const headerLength = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + headerLength)));
  const start = bytes.byteOffset + 4 + headerLength;
  const atlas = { ...header };
  for (const [name, [type, offset, size]] of Object.entries(header.arrays)) {
    atlas[name] = new ARRAY_TYPES[type](bytes.buffer, start + offset, size);
  }
  atlas.size = atlas.feature.length;
  atlas.firstContext = offsetsOf(atlas.n_contexts);
  atlas.firstActive = offsetsOf(atlas.context_n_active);
  atlas.firstPromoted = offsetsOf(atlas.logit_promoted_n);
  atlas.firstSuppressed = offsetsOf(atlas.logit_suppressed_n);
  if (atlas.neighbour_n) atlas.firstNeighbour = offsetsOf(atlas.neighbour_n);
  atlas.firstInterval = offsetsOf(atlas.n_contexts.map((n, row) => n - atlas.n_strongest[row]));
  if (atlas.histogram_n) atlas.firstBin = offsetsOf(atlas.histogram_n);
  atlas.shortNames = header.models.map((model) => header.names[model] ?? model);
  atlas.rowOf = new Map();
  for (let row = 0; row < atlas.size; row += 1) atlas.rowOf.set(keyOf(atlas, row), row);
  return atlas;
}

// Counts to offsets: item i of a feature's list starts at offsets[i] and ends at offsets[i + 1].
function offsetsOf(counts) {
  const offsets = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i += 1) offsets[i + 1] = offsets[i] + counts[i];
  return offsets;
}

// The name of a feature in links: model, seed, layer, head, feature.
function keyOf(atlas, row) {
  const { models, seeds } = atlas;
  return [models[atlas.model[row]], seeds[atlas.seed[row]], atlas.layer[row], atlas.head[row], atlas.feature[row]].join("|");
}

// The same layer and seed, another feature, and maybe another model or head.
function siblingOf(atlas, row, model, head, feature) {
  const key = [atlas.models[model], atlas.seeds[atlas.seed[row]], atlas.layer[row], head, feature].join("|");
  return atlas.rowOf.get(key) ?? -1;
}

function contextOf(atlas, row, context) {
  const start = atlas.context_start[context];
  const tokens = atlas.line_token.subarray(start, start + atlas.context_n_tokens[context]);
  const acts = new Float64Array(tokens.length);
  for (let i = atlas.firstActive[context]; i < atlas.firstActive[context + 1]; i += 1) {
    acts[atlas.active_place[i]] = decimalOf(atlas, "active", i, row);
  }
  return { start, tokens, acts, peak: atlas.context_peak[context], value: decimalOf(atlas, "context", context, row) };
}

// A number that is stored in units of its last decimal.
function decimalOf(atlas, name, i, row) {
  const number = atlas[`${name}_value`][i];
  return number === atlas.missing ? NaN : number / 10 ** atlas[`${name}_decimals`][row];
}

function logitsOf(atlas, row, name) {
  const first = name === "logit_promoted" ? atlas.firstPromoted : atlas.firstSuppressed;
  const list = [];
  for (let i = first[row]; i < first[row + 1]; i += 1) {
    const value = decimalOf(atlas, name, i, row);
    const number = atlas[`${name}_token`][i];
    list.push({ token: atlas.vocabulary[number], number, value });
  }
  return list;
}

function neighboursOf(atlas, row) {
  const list = [];
  if (!atlas.firstNeighbour) return list;
  for (let i = atlas.firstNeighbour[row]; i < atlas.firstNeighbour[row + 1]; i += 1) {
    const feature = atlas.neighbour_feature[i];
    const cosine = decimalOf(atlas, "neighbour", i, row);
    list.push({ feature, cosine, row: siblingOf(atlas, row, atlas.model[row], atlas.head[row], feature) });
  }
  return list;
}

function matchOf(atlas, row) {
  if (!atlas.match_model || atlas.match_model[row] < 0) return null;
  const other = siblingOf(atlas, row, atlas.match_model[row], atlas.match_head[row], atlas.match_feature[row]);
  return other < 0 ? null : { row: other, correlation: decimalOf(atlas, "match", row, row) };
}

// The activations of a feature in bins, [low, high) each but for 0, which stands apart; null where they were not kept.
function histogramOf(atlas, row) {
  if (!atlas.histogram_n?.[row]) return null;
  const width = atlas.histogram_width[row];
  const counts = atlas.histogram_count.subarray(atlas.firstBin[row], atlas.firstBin[row + 1]);
  return { zero: atlas.histogram_zero[row], bins: Array.from(counts, (count, i) => ({ low: i * width, high: (i + 1) * width, count })) };
}

// The interval of activations from which a context was drawn; null for one of the strongest.
function intervalOf(atlas, row, context) {
  const place = context - atlas.firstContext[row] - atlas.n_strongest[row];
  if (place < 0) return null;
  const at = atlas.firstInterval[row] + place;
  return { low: atlas.interval_low[at], high: atlas.interval_high[at] };
}

// What ablating a feature does to the loss, in nats per token: exact with its interval, or by the gradient alone.
function effectOf(atlas, row) {
  if (!atlas.effect_estimate || Number.isNaN(atlas.effect_estimate[row])) return null;
  const isExact = !Number.isNaN(atlas.effect[row]);
  const value = isExact ? atlas.effect[row] : atlas.effect_estimate[row];
  return { isExact, value, low: atlas.effect_low[row], high: atlas.effect_high[row] };
}
