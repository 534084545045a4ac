// What the page carries of heads, by place: measures, maps of example sentences, what kind of head each is.

const MAP_SCALE = 10_000; // a weight of 1
let heads; // [{ index, model, short, seed, layer, head, key }]
let data;
let byKey;
let mapsOf; // number of a head's map -> place of its first weight

async function readHeads() {
  const [own, planes] = await Promise.all([unpackJson("page-data"), unpackBytes("heads-maps")]);
  data = { ...own, planes, nWeights: planes.length / 2 };
  heads = data.heads.map(([model, seed, layer, head], index) => {
    const short = data.names[model] ?? model;
    return { index, model, short, seed, layer, head, key: [model, seed, layer, head].join("|") };
  });
  byKey = new Map(heads.map((head) => [head.key, head]));
  mapsOf = [];
  let start = 0;
  for (const run of data.runs) {
    mapsOf.push(start);
    for (const { tokens } of data.sentences[run] ?? []) start += triangle(tokens.length);
  }
}

const triangle = (n) => (n * (n + 1)) / 2;

const sentencesOf = (head) => (data.maps[head.index] < 0 ? [] : data.sentences[data.runs[data.maps[head.index]]]);

// Rows of a map, [query][key]; without position 0 those that are left, of all that is not on it, null where nothing is.
function mapOf(head, sentence, isWithoutFirst) {
  const sentences = sentencesOf(head);
  const { tokens } = sentences[sentence];
  let at = mapsOf[data.maps[head.index]];
  for (let i = 0; i < sentence; i += 1) at += triangle(sentences[i].tokens.length);
  const rows = [];
  for (let q = 0; q < tokens.length; q += 1) {
    const row = new Float64Array(q + 1);
    for (let k = 0; k <= q; k += 1, at += 1) row[k] = (data.planes[at] + 256 * data.planes[at + data.nWeights]) / MAP_SCALE;
    rows.push(isWithoutFirst ? withoutFirst(row) : row);
  }
  return rows;
}

// Four decimals leave nothing to divide where less than a hundredth is left.
function withoutFirst(row) {
  const rest = 1 - row[0];
  return row.map((weight, k) => (k === 0 || row.length === 1 || rest < 0.01 ? NaN : weight / rest));
}

const headsOf = ({ model, seed }) => heads.filter((head) => head.model === model && head.seed === seed);

// The head's place among those of its model and seed, 1 for the largest; null where it has no value.
function rankOf(head, values) {
  const own = values[head.index];
  if (own === null) return null;
  const others = headsOf(head).map(({ index }) => values[index]).filter((value) => value !== null);
  return { rank: 1 + others.filter((value) => value > own).length, n: others.length };
}

function kindOf(head) {
  const key = data.kinds.of[head.index] ?? "";
  return key && { key, title: data.kinds.titles[key] };
}

const kindName = (head) => kindOf(head)?.title?.toLowerCase() ?? "";

// Removing it: the first kind of ablation, zero where there is one.
const ablationOf = () => data.ablation.find(({ kind }) => kind === "zero") ?? data.ablation[0];

const isLargest = (head) => rankOf(head, ablationOf().impact_pct)?.rank === 1;

// The head that a page without an address opens with: of the first model, the one whose removal costs most.
function firstHead() {
  const own = headsOf(heads[0]);
  return (data.ablation.length && own.find(isLargest)) || own[0];
}
