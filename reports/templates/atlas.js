// The atlas: one view (filters, order, page, open and pinned features), kept in the address so that a link restores it.

const PAGE_SIZE = 40;
const DEFAULT_VIEW = {
  query: "", mode: "fires", part: "", model: "", seed: "", layer: "", head: "", state: "alive", dmin: "", dmax: "",
  sort: "best", page: "1", open: "", pin1: "", pin2: "",
};
const CHOICES = ["mode", "model", "seed", "layer", "head", "state"];
const CONTROLS = ["query", ...CHOICES, "dmin", "dmax"];
const PINS = ["pin1", "pin2"];

let atlas;
let index;
let heads = new Map();
let colours;
let view = { ...DEFAULT_VIEW };
let found = { rows: [], hits: null };
let address; // what was last read or written
let typedIn; // the text field of the last change: what is typed into one is one step of the history
const byId = (id) => document.getElementById(id);

async function start() {
  startTheme();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const [bytes, pageData] = await Promise.all([unpackBytes("atlas-data"), unpackJson("page-data"), loadDarkColours()]);
  atlas = readAtlas(bytes);
  index = startIndex(atlas);
  heads = new Map(pageData.heads.map(([model, seed, layer, head, impact, low, high]) => [[model, seed, layer, head].join("|"), { impact, low, high }]));
  for (const [model, seed, layer, head, l0, ratio] of pageData.inadequate) inadequateSaes.set([model, seed, layer, head].join("|"), { l0, ratio });
  colours = pageData.colours;
  byId("stronger").hidden = !atlas.has_stronger;
  fillChoices();
  setColours();
  onTheme(setColours);
  listen();
  readAddress();
  document.documentElement.dataset.listed = "yes";
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  await finishIndex(index);
  for (const mode of Object.keys(MODES)) findRows(atlas, index, { ...DEFAULT_VIEW, query: "the", mode }); // compiles: not while someone types
  document.documentElement.dataset.searchable = "yes";
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
    const value = target.type === "checkbox" ? (target.checked ? "1" : "") : target.value;
    if (target.id in DEFAULT_VIEW) change({ [target.id]: value, page: "1", open: "" }, { typing: target.localName === "input" ? target.id : "" });
  });
  byId("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    change({ ...DEFAULT_VIEW, ...pinsOf(view) });
  });
  byId("more").addEventListener("click", ({ currentTarget }) => {
    const isAll = byId("filters").classList.toggle("all");
    currentTarget.setAttribute("aria-expanded", String(isAll));
  });
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  byId("features").addEventListener("click", ({ target }) => {
    const sorter = target.closest("[data-sort]");
    if (sorter) return sortBy(sorter.dataset.sort);
    const row = target.closest("tr.feature");
    if (row) toggle(Number(row.dataset.row));
  });
  addEventListener("popstate", readAddress);
  addEventListener("hashchange", readAddress);
  addEventListener("keydown", pressKey);
}

function sortBy(key) {
  if (key === "best") return change({ sort: "best", page: "1", open: "" });
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
    p: () => atlas.rowOf.has(view.open) && pin(atlas.rowOf.get(view.open)),
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
  change({ open: keyOf(atlas, found.rows[place]), page: String(Math.floor(place / PAGE_SIZE) + 1) }, { focus: true, replace: view.open !== "" });
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

// Pins a feature above the list, or unpins it; two at most, and a third takes the place of the first.
function pin(row) {
  const key = keyOf(atlas, row);
  const keys = PINS.map((name) => view[name]).filter((own) => own);
  const kept = keys.includes(key) ? keys.filter((own) => own !== key) : [...keys, key].slice(-2);
  change({ pin1: kept[0] ?? "", pin2: kept[1] ?? "" });
}

const pinsOf = ({ pin1, pin2 }) => ({ pin1, pin2 });
const pinnedRows = () => PINS.map((name) => atlas.rowOf.get(view[name])).filter((row) => row !== undefined);

// Opens a feature wherever it is: filters that hide it are dropped.
function openFeature(row, { replace = false } = {}) {
  const part = { open: keyOf(atlas, row) };
  if (!found.rows.includes(row)) {
    const [model, layer, head] = [atlas.models[atlas.model[row]], String(atlas.layer[row]), String(atlas.head[row])];
    Object.assign(part, { ...DEFAULT_VIEW, ...pinsOf(view), ...part, model, layer, head, state: atlas.dead[row] ? "all" : "alive", sort: view.sort });
  }
  const place = findRows(atlas, index, { ...view, ...part }).rows.indexOf(row);
  change({ ...part, page: String(Math.floor(place / PAGE_SIZE) + 1) }, { focus: true, replace });
}

// Changes the view and the address: a step of the history, so that Back undoes it, unless the last one is to be replaced.
function change(part, { focus = false, replace = false, typing = "" } = {}) {
  const isListSame = Object.keys(part).every((name) => name === "open" || PINS.includes(name) || part[name] === view[name]);
  view = { ...view, ...part };
  const entries = Object.entries(view).filter(([name, value]) => value !== DEFAULT_VIEW[name]);
  const hash = new URLSearchParams(entries).toString();
  const target = hash ? `#${hash}` : location.pathname + location.search;
  const isSame = new URL(target, location.href).href === location.href;
  if (replace || isSame || (typing && typing === typedIn)) history.replaceState(null, "", target);
  else history.pushState(null, "", target);
  address = location.href;
  typedIn = typing;
  warn([]);
  if (isListSame) {
    showPins();
    showOpen(focus);
  } else show({ focus });
}

// Says what an address asked for that this atlas does not have.
function warn(problems) {
  if (!problems.length && byId("warning").hidden) return;
  byId("warning").hidden = !problems.length;
  const named = problems.map(([name, value]) => `${name} “${value.length > 60 ? `${value.slice(0, 60)}…` : value}”`);
  byId("warning").textContent = problems.length ? `Not in this atlas, so left out of what the link asks for: ${named.join(", ")}.` : "";
}

function readAddress() {
  if (address === location.href || location.hash === "#main") return; // #main: the link that skips to the content
  address = location.href;
  typedIn = "";
  const given = new URLSearchParams(location.hash.slice(1));
  const problems = [];
  view = { ...DEFAULT_VIEW };
  for (const [name, value] of given) {
    if (!Object.hasOwn(DEFAULT_VIEW, name)) problems.push([name, value]);
    else if (isInAtlas(name, value)) view[name] = value;
    else problems.push([name, value]);
  }
  const row = atlas.rowOf.get(view.open);
  found = findRows(atlas, index, view);
  if (row !== undefined) {
    const place = found.rows.indexOf(row);
    if (place < 0) openFeature(row, { replace: true });
    else view.page = String(Math.floor(place / PAGE_SIZE) + 1);
  } else if (Number(view.page) > pageCount()) {
    problems.push(["page", view.page]);
    view.page = String(pageCount());
  }
  show({ focus: row !== undefined });
  warn(problems);
}

// Whether a part of an address is one that a control could have written.
function isInAtlas(name, value) {
  if (CHOICES.includes(name)) return [...byId(name).options].some((option) => option.value === value);
  if (name === "dmin" || name === "dmax") return Number.isFinite(Number(value));
  if (name === "sort") return /^(best|-?(place|density|max_act|mean_act|token))$/.test(value);
  if (name === "page") return /^[1-9]\d*$/.test(value);
  if (name === "part") return value === "1" || value === "";
  if (name === "open" || PINS.includes(name)) return atlas.rowOf.has(value) || value === "";
  return true;
}

function show({ focus = false } = {}) {
  const started = performance.now();
  found = findRows(atlas, index, view);
  view.page = String(Math.min(Number(view.page), pageCount()));
  for (const name of CONTROLS) if (byId(name).value !== view[name]) byId(name).value = view[name];
  byId("part").checked = view.part === "1";
  showHeadings();
  showRows();
  showPins();
  showOpen(focus);
  showLines();
  performance.measure("search", { start: started, end: performance.now() });
  scheduleHistogram();
}

function showRows() {
  const first = (Number(view.page) - 1) * PAGE_SIZE;
  const rows = found.rows.slice(first, first + PAGE_SIZE);
  byId("features").tBodies[0].replaceChildren(...rows.map((row) => rowElement(atlas, row, found.hits)));
}

const cardOptions = () => ({ hits: found.hits, onOpen: openFeature, onPin: pin, pinned: pinnedRows() });

// The pinned features stand side by side above the list.
function showPins() {
  const rows = pinnedRows();
  byId("pinned").hidden = !rows.length;
  const cards = rows.map((row) => cardElement(atlas, row, heads, { ...cardOptions(), isPinned: true, isOpen: false }));
  byId("pinned").querySelector(".sheet").replaceChildren(...cards);
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
  const cell = element("td", { colspan: found.hits ? "7" : "6" }, sheetElement(atlas, row, heads, cardOptions()));
  node.after(element("tr", { class: "detail" }, cell));
  if (!focus) return;
  opener.focus({ preventScroll: true });
  node.scrollIntoView({ block: "center" });
}

function showLines() {
  byId("count").textContent = countText(found.rows.length);
  byId("page").textContent = `${view.page} / ${pageCount()}`;
  byId("previous").disabled = Number(view.page) <= 1;
  byId("next").disabled = Number(view.page) >= pageCount();
}

function countText(total) {
  const words = found.hits ? MODES[view.mode].found : "fit these filters";
  if (!total) {
    const isWhole = found.hits && view.part !== "1" && !/^\s*["“]/.test(view.query);
    return `No feature: none of ${formatCount(atlas.size)} ${words}.${isWhole ? " Whole tokens and words are searched; “parts of words” finds more." : ""}`;
  }
  const counted = `${formatCount(total)} of ${formatCount(atlas.size)} features`;
  if (!found.hits) return counted;
  const strongest = view.mode === "fires" ? `, ${formatCount(found.nStrongest)} of them most strongly` : "";
  return `${counted} ${words}${strongest}`;
}

function showHeadings() {
  const heading = byId("hit-heading");
  heading.hidden = !found.hits;
  heading.firstElementChild.textContent = MODES[view.mode].column;
  byId("context-heading").textContent = !found.hits ? "Strongest context" : found.hits.isNamed ? "Tokens" : "Best hit";
  const key = view.sort === "best" && !found.hits ? "place" : view.sort.replace("-", "");
  for (const button of document.querySelectorAll("[data-sort]")) {
    const cell = button.closest("th");
    const isFalling = view.sort.startsWith("-") || (key === "best" && view.mode !== "suppresses");
    if (button.dataset.sort === key) cell.setAttribute("aria-sort", isFalling ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
}

start();
