// The page of heads: one head, another beside it, and all heads of its model; kept in the address.

const byId = (id) => document.getElementById(id);
const CHOICES = ["model", "seed", "layer", "head"];
const state = { one: null, two: null, sentence: 0, isWithoutFirst: false, query: null };

async function start() {
  startTheme();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  await Promise.all([readHeads(), readColours()]);
  setColours();
  onTheme(setColours);
  listen();
  readAddress();
  document.documentElement.dataset.ready = "yes";
}

let darkColours;

async function readColours() {
  darkColours = await unpackJson("dark-colours");
}

function setColours() {
  data.colours.forEach((colour, i) => {
    document.documentElement.style.setProperty(`--model-${i}`, isDark() ? (darkColours[colour] ?? colour) : colour);
  });
  for (const canvas of document.querySelectorAll("canvas")) canvas.repaint?.();
}

function listen() {
  byId("choice").addEventListener("submit", (event) => event.preventDefault());
  byId("choice").addEventListener("input", ({ target }) => {
    const [which, name] = target.id.split("-");
    if (CHOICES.includes(name)) choose(which, name, target.value);
    else change({ sentence: Number(byId("sentence").value), isWithoutFirst: byId("without").checked, query: null });
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  addEventListener("popstate", readAddress);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, .line")) return;
    const by = { j: 1, k: -1 }[event.key];
    if (by) step(by);
  });
  addEventListener("beforeprint", () => {
    setOpen(true);
    for (const canvas of document.querySelectorAll(".card canvas")) if (!canvas.repaint) canvas.draw();
  });
  addEventListener("afterprint", () => setOpen(false));
}

function setOpen(isOpen) {
  for (const details of document.querySelectorAll(".attention details")) details.open = isOpen;
}

function step(by) {
  const own = headsOf(state.one);
  const at = own.indexOf(state.one) + by;
  if (own[at]) change({ one: own[at] });
}

// The head that a choice leads to: that of the new value, else the nearest of what else was chosen.
function choose(which, name, value) {
  if (which === "two" && name === "model" && value === "") return change({ two: null });
  const from = state[which] ?? state.one;
  const wanted = { model: from.model, seed: from.seed, layer: String(from.layer), head: String(from.head), [name]: value };
  const order = [name, ...CHOICES.filter((other) => other !== name)];
  let found = heads;
  for (const key of order) {
    const own = found.filter((head) => String(head[key]) === wanted[key]);
    if (own.length) found = own;
  }
  change({ [which]: found[0] });
}

function change(part) {
  Object.assign(state, part);
  const given = { ...addressOf(state.one), sentence: state.sentence || "", first: state.isWithoutFirst ? "out" : "" };
  given.beside = state.two ? state.two.key : "none";
  const entries = Object.entries(given).filter(([, value]) => value !== "");
  history.pushState(null, "", `#${new URLSearchParams(entries)}`);
  show();
}

const addressOf = ({ model, seed, layer, head }) => ({ model, seed, layer, head });

function readAddress() {
  if (state.one && location.hash && !location.hash.includes("=")) return; // a place on the page
  const given = new URLSearchParams(location.hash.slice(1));
  const faults = [];
  state.one = headGiven(given, faults) ?? firstHead();
  state.two = besideGiven(given, faults);
  const n = sentencesOf(state.one).length;
  const sentence = Number(given.get("sentence") ?? 0);
  if (!Number.isInteger(sentence) || sentence < 0 || sentence >= Math.max(1, n)) faults.push(`no sentence ${given.get("sentence")}; there are ${n}, from 0`);
  state.sentence = Number.isInteger(sentence) ? Math.max(0, Math.min(sentence, n - 1)) : 0;
  state.isWithoutFirst = given.get("first") === "out";
  state.query = null;
  byId("fault").hidden = !faults.length;
  byId("fault").textContent = faults.length ? `This address leads nowhere: ${faults.join("; ")}. Shown instead: ${state.one.short}, layer ${state.one.layer}, head ${state.one.head}.` : "";
  show();
}

// The head of an address; a model by either of its names, the first seed where none is given.
function headGiven(given, faults) {
  if (!CHOICES.some((name) => given.has(name))) return null;
  const isModel = (head) => [head.model, head.short].includes(given.get("model"));
  if (given.has("model") && !heads.some(isModel)) {
    faults.push(`no model ${given.get("model")}; the study has ${shortHeads().join(", ")}`);
    return null;
  }
  let found = given.has("model") ? heads.filter(isModel) : heads;
  for (const name of CHOICES.slice(1)) {
    if (!given.has(name)) continue;
    const own = found.filter((head) => String(head[name]) === given.get(name));
    if (!own.length) {
      const known = [...new Set(found.map((head) => head[name]))];
      const range = known.length > 6 ? `${known[0]} to ${known.at(-1)}` : known.join(", ");
      faults.push(`no ${name} ${given.get(name)} in it; there ${known.length === 1 ? "is" : "are"} ${range}`);
      return null;
    }
    found = own;
  }
  return found[0];
}

// The head beside: that of the address, else the other model's in the same place.
function besideGiven(given, faults) {
  const key = given.get("beside");
  if (key === "none") return null;
  if (key && byKey.has(key)) return byKey.get(key);
  if (key) faults.push(`no head ${key} to stand beside`);
  const { model, layer, head } = state.one;
  return heads.find((other) => other.model !== model && other.layer === layer && other.head === head) ?? null;
}

function show() {
  const started = performance.now();
  fillChoices("one", state.one);
  fillChoices("two", state.two);
  fillSentences();
  byId("pair").replaceChildren(...[state.one, state.two].filter(Boolean).map(articleElement));
  byId("pair").classList.toggle("two", state.two !== null);
  showGallery();
  document.title = `${state.one.short}, layer ${state.one.layer}, head ${state.one.head}`;
  performance.measure("head", { start: started, end: performance.now() });
}

// The gallery changes with the model and what of its maps is shown, not with the head; its thumbnails follow the head.
function showGallery() {
  const { model, seed } = state.one;
  const key = JSON.stringify([model, seed, state.sentence, state.isWithoutFirst]);
  if (byId("gallery-groups").dataset.of === key) return;
  byId("gallery-groups").dataset.of = key;
  byId("gallery-of").replaceChildren(...nameElement(state.one).slice(0, 2));
  byId("gallery-groups").replaceChildren(galleryElement(state.one, state));
  drawWhenSeen(byId("gallery-groups").querySelectorAll("canvas"));
}

function articleElement(head) {
  const section = (title, ...children) => element("section", {}, element("h3", {}, title), ...children);
  return element(
    "article",
    { class: "head" },
    element("header", {}, element("h2", {}, ...nameElement(head)), summaryElement(head)),
    section("Attention", attentionElement(head, state)),
    section("Beside the model’s other heads", measuresElement(head)),
    section("Removing it", ablationElement(head)),
    section("Other tables", rowsElement(head)),
    ...(byId("has-atlas") ? [section("Strongest features", featuresElement(head))] : []),
  );
}

function fillChoices(which, head) {
  const fill = (name, values, texts = values) => {
    const select = byId(`${which}-${name}`);
    select.replaceChildren(...values.map((value, i) => element("option", { value }, String(texts[i]))));
    select.disabled = !values.length;
    if (head) select.value = String(head[name]);
  };
  const distinct = (own, name) => [...new Set(own.map((one) => one[name]))];
  const models = distinct(heads, "model");
  const none = which === "two" ? [""] : [];
  fill("model", [...none, ...models], [...none.map(() => "none"), ...models.map((model) => data.names[model] ?? model)]);
  const ofModel = head ? heads.filter((one) => one.model === head.model) : [];
  fill("seed", distinct(ofModel, "seed"));
  byId(`${which}-seed`).parentElement.hidden = distinct(heads, "seed").length < 2;
  const ofSeed = ofModel.filter((one) => one.seed === head.seed);
  fill("layer", distinct(ofSeed, "layer"));
  const ofLayer = ofSeed.filter((one) => one.layer === head.layer);
  fill("head", ofLayer.map((one) => one.head), ofLayer.map((one) => [one.head, kindName(one)].filter((text) => text !== "").join(" · ")));
  if (!head) byId(`${which}-model`).value = "";
}

function fillSentences() {
  const sentences = sentencesOf(state.one);
  const words = ({ tokens, kind, n_lead: nLead }) => {
    const text = tokens.slice(nLead).join("").trim().replace(/\s+/g, " ");
    return `${text.length > 44 ? `${text.slice(0, 44)}…` : text}${kind === "sentence" ? "" : ` (${kind})`}`;
  };
  byId("sentence").replaceChildren(...sentences.map((own, i) => element("option", { value: i }, `${i + 1}: ${words(own)}`)));
  byId("sentence").value = String(state.sentence);
  byId("sentence").disabled = !sentences.length;
  byId("without").checked = state.isWithoutFirst;
  byId("without").disabled = !sentences.length;
}

start();
