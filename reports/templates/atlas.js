// The atlas: one view (filters, order, page, open feature), kept in the address so that a link restores it.

const PAGE_SIZE = 40;
const DEFAULT_VIEW = { query: "", model: "", seed: "", layer: "", head: "", state: "alive", dmin: "", dmax: "", sort: "place", page: "1", open: "" };
const CONTROLS = ["query", "model", "seed", "layer", "head", "state", "dmin", "dmax"];

let atlas;
let index;
let heads = new Map();
let colours;
let view = { ...DEFAULT_VIEW };
let found = { rows: [], reach: null };
const byId = (id) => document.getElementById(id);

async function start() {
  startTheme();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const [bytes, pageData] = await Promise.all([unpackBytes("atlas-data"), unpackJson("page-data"), loadDarkColours()]);
  atlas = readAtlas(bytes);
  index = buildIndex(atlas);
  heads = new Map(pageData.heads.map(([model, seed, layer, head, impact, low, high]) => [[model, seed, layer, head].join("|"), { impact, low, high }]));
  for (const [model, seed, layer, head, l0, ratio] of pageData.inadequate) inadequateSaes.set([model, seed, layer, head].join("|"), { l0, ratio });
  colours = pageData.colours;
  byId("stronger").hidden = !atlas.has_stronger;
  fillChoices();
  setColours();
  onTheme(setColours);
  listen();
  readAddress();
  findRows(atlas, index, { ...DEFAULT_VIEW, query: "the " }); // the first search compiles: not while someone types
  document.documentElement.dataset.listed = "yes";
  await startOverview(pageData.figure);
  document.documentElement.dataset.ready = "yes";
}

function fillChoices() {
  const fill = (id, values, names = values, all = "all") => {
    byId(id).replaceChildren(element("option", { value: "" }, all), ...values.map((value, i) => element("option", { value }, String(names[i]))));
  };
  const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
  fill("model", atlas.models, atlas.shortNames);
  fill("seed", atlas.seeds);
  byId("seed-label").hidden = atlas.seeds.length < 2;
  fill("layer", distinct(atlas.layer));
  const headNumbers = distinct(atlas.head);
  fill("head", headNumbers, headNumbers.map((head) => (head < 0 ? "whole hook" : head)));
}

function setColours() {
  colours.forEach((colour, i) => {
    document.documentElement.style.setProperty(`--model-${i}`, isDark() ? (darkColours[colour] ?? colour) : colour);
  });
}

function listen() {
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("input", ({ target }) => {
    if (CONTROLS.includes(target.id)) change({ [target.id]: target.value, page: "1", open: "" });
  });
  byId("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    change({ ...DEFAULT_VIEW });
  });
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  byId("features").addEventListener("click", ({ target }) => {
    const sorter = target.closest("[data-sort]");
    if (sorter) return sortBy(sorter.dataset.sort);
    const row = target.closest("tr.feature");
    if (row) toggle(Number(row.dataset.row));
  });
  addEventListener("hashchange", readAddress);
  addEventListener("keydown", pressKey);
}

function sortBy(key) {
  const first = key === "place" || key === "token" ? key : `-${key}`; // numbers: the largest first
  const second = first.startsWith("-") ? key : `-${key}`;
  change({ sort: view.sort === first ? second : first, page: "1", open: "" });
}

function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.closest?.("input, select, textarea");
  if (event.key === "Escape") return isTyping ? event.target.blur() : change({ open: "" });
  if (isTyping) return;
  const actions = {
    "/": () => byId("query").focus(),
    j: () => step(1),
    k: () => step(-1),
    "]": () => turnPage(1),
    "[": () => turnPage(-1),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function step(by) {
  const at = found.rows.findIndex((row) => keyOf(atlas, row) === view.open);
  const first = (Number(view.page) - 1) * PAGE_SIZE;
  const place = at < 0 ? first : at + by;
  if (place < 0 || place >= found.rows.length) return;
  change({ open: keyOf(atlas, found.rows[place]), page: String(Math.floor(place / PAGE_SIZE) + 1) }, { focus: true });
}

function turnPage(by) {
  const page = Math.max(1, Math.min(pageCount(), Number(view.page) + by));
  if (page !== Number(view.page)) change({ page: String(page), open: "" });
}

const pageCount = () => Math.max(1, Math.ceil(found.rows.length / PAGE_SIZE));

function toggle(row) {
  const key = keyOf(atlas, row);
  change({ open: view.open === key ? "" : key });
}

// Opens a feature wherever it is: filters that hide it are dropped.
function openFeature(row) {
  const part = { open: keyOf(atlas, row) };
  if (!found.rows.includes(row)) {
    const [model, layer, head] = [atlas.models[atlas.model[row]], String(atlas.layer[row]), String(atlas.head[row])];
    Object.assign(part, { ...DEFAULT_VIEW, ...part, model, layer, head, state: atlas.dead[row] ? "all" : "alive", sort: view.sort });
  }
  const place = findRows(atlas, index, { ...view, ...part }).rows.indexOf(row);
  change({ ...part, page: String(Math.floor(place / PAGE_SIZE) + 1) }, { focus: true });
}

function change(part, { focus = false } = {}) {
  const isListSame = Object.keys(part).every((name) => name === "open" || part[name] === view[name]);
  view = { ...view, ...part };
  const entries = Object.entries(view).filter(([name, value]) => value !== DEFAULT_VIEW[name]);
  const hash = new URLSearchParams(entries).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  if (isListSame) showOpen(focus);
  else show({ focus });
}

function readAddress() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  view = { ...DEFAULT_VIEW };
  for (const name of Object.keys(DEFAULT_VIEW)) if (given[name] !== undefined) view[name] = given[name];
  // what no control could have said is dropped
  for (const name of ["model", "seed", "layer", "head", "state"]) {
    if (![...byId(name).options].some((option) => option.value === view[name])) view[name] = DEFAULT_VIEW[name];
  }
  for (const name of ["dmin", "dmax"]) if (!Number.isFinite(Number(view[name]))) view[name] = "";
  if (!/^-?(place|density|max_act|mean_act|token)$/.test(view.sort)) view.sort = DEFAULT_VIEW.sort;
  const row = atlas.rowOf.get(view.open);
  if (row === undefined) view.open = "";
  found = findRows(atlas, index, view);
  if (row !== undefined) {
    const place = found.rows.indexOf(row);
    if (place < 0) return openFeature(row);
    view.page = String(Math.floor(place / PAGE_SIZE) + 1);
  }
  if (!(Number(view.page) >= 1)) view.page = "1";
  show({ focus: row !== undefined });
}

function show({ focus = false } = {}) {
  const started = performance.now();
  found = findRows(atlas, index, view);
  view.page = String(Math.min(Math.floor(Number(view.page)), pageCount()));
  for (const name of CONTROLS) if (byId(name).value !== view[name]) byId(name).value = view[name];
  showRows();
  showOpen(focus);
  showLines();
  showSort();
  performance.measure("search", { start: started, end: performance.now() });
  scheduleHistogram();
}

function showRows() {
  const first = (Number(view.page) - 1) * PAGE_SIZE;
  const rows = found.rows.slice(first, first + PAGE_SIZE);
  byId("features").tBodies[0].replaceChildren(...rows.map((row) => rowElement(atlas, row, found.reach)));
}

// The open feature's sheet stands in a row of its own behind the feature's row.
function showOpen(focus) {
  const body = byId("features").tBodies[0];
  body.querySelector("tr.detail")?.remove();
  const before = body.querySelector("tr.open");
  before?.classList.remove("open");
  before?.querySelector(".opener").setAttribute("aria-expanded", "false");
  const row = atlas.rowOf.get(view.open);
  const node = row === undefined ? null : body.querySelector(`tr.feature[data-row="${row}"]`);
  if (!node) return;
  const opener = node.querySelector(".opener");
  node.classList.add("open");
  opener.setAttribute("aria-expanded", "true");
  const cell = element("td", { colspan: "6" }, sheetElement(atlas, row, heads, found.reach, openFeature));
  node.after(element("tr", { class: "detail" }, cell));
  if (!focus) return;
  opener.focus({ preventScroll: true });
  node.scrollIntoView({ block: "center" });
}

function showLines() {
  const total = found.rows.length;
  byId("count").textContent = total
    ? `${total.toLocaleString("en")} of ${atlas.size.toLocaleString("en")} features`
    : "No feature fits these filters.";
  byId("page").textContent = `${view.page} / ${pageCount()}`;
  byId("previous").disabled = Number(view.page) <= 1;
  byId("next").disabled = Number(view.page) >= pageCount();
}

function showSort() {
  const key = view.sort.replace("-", "");
  for (const button of document.querySelectorAll("[data-sort]")) {
    const cell = button.closest("th");
    if (button.dataset.sort === key) cell.setAttribute("aria-sort", view.sort.startsWith("-") ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
}

start();
