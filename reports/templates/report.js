// The study's page: draws figures as they come near, switches variants, hands out the tables, leads to the atlas.

async function start() {
  startTheme();
  startPlots();
  startSources();
  startSorting();
  startGlossary();
  startFolds();
  const { figures, names, heads, panels } = await unpackJson("page-data");
  startVariants(figures);
  await startContinuations(names);
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  await drawAll(figures, (head) => leadFrom(head, { names, heads, panels }));
  const openAddressed = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!given.has("head")) return;
    const short = Object.keys(names).find((name) => names[name] === given.get("model")) ?? given.get("model");
    showHead([short, given.get("layer"), given.get("head")], { names, heads, panels });
  };
  addEventListener("hashchange", openAddressed);
  openAddressed();
  document.documentElement.dataset.ready = "yes";
}

const figureOf = (figures, place) => figures[place.dataset.figure][Number(place.dataset.variant)];

// First what is in view, then everything else, so that printing finds all figures drawn. One of many variants is drawn
// when it is chosen.
async function drawAll(figures, onHead) {
  const places = [...document.querySelectorAll(".plot-scroll:not(.on-demand[hidden]) > .plot")];
  const near = (place) => {
    const box = place.getBoundingClientRect();
    return box.width > 0 && box.bottom > 0 && box.top < 2 * innerHeight;
  };
  for (const place of [...places.filter(near), ...places.filter((place) => !near(place))]) {
    await drawFigure(place, figureOf(figures, place));
    if (place.dataset.figure === "ablation") place.on("plotly_click", ({ points }) => onHead(points[0].customdata));
    await new Promise((resolve) => setTimeout(resolve));
  }
}

// The features of a head in the atlas; nothing without one.
function atlasAddress([model, layer, head], names) {
  const address = document.getElementById("atlas-address")?.textContent;
  return address && `${address}#${new URLSearchParams({ model: names[model] ?? model, layer, head })}`;
}

// From a head to all that is known of it: its rows where there are any, else its features.
function leadFrom(head, known) {
  if (showHead(head, known)) return;
  const address = atlasAddress(head, known.names);
  if (address) location.href = address;
}

function showHead(head, { names, heads, panels }) {
  const rows = heads[head.join("|")];
  if (!rows) return false;
  const dialog = document.getElementById("one-head");
  dialog.querySelector("h2").textContent = `${head[0]}, layer ${head[1]}, head ${head[2]}`;
  const list = dialog.querySelector("ul");
  list.replaceChildren();
  const add = (address, name, text = "") => {
    const [item, link] = [document.createElement("li"), document.createElement("a")];
    link.href = address;
    link.textContent = name;
    link.addEventListener("click", () => dialog.close());
    item.append(link, text);
    list.append(item);
  };
  for (const [table, said] of rows) add(`#${table}`, panels[table], `: ${said}`);
  const address = atlasAddress(head, names);
  if (address) add(address, "Its features, in the atlas");
  if (!dialog.open) dialog.showModal();
  return true;
}

function startVariants(figures) {
  for (const set of document.querySelectorAll(".variants")) {
    set.addEventListener("change", ({ target }) => {
      for (const place of set.parentElement.querySelectorAll(".plot-scroll")) {
        place.hidden = place.dataset.variant !== target.value;
        if (!place.hidden) showVariant(place.querySelector(".plot"), figures);
      }
    });
  }
}

function showVariant(place, figures) {
  if (place.dataset.drawn) globalThis.Plotly.Plots.resize(place);
  else drawFigure(place, figureOf(figures, place));
}

// A click on a column's name orders the rows by it, another one the other way round.
function startSorting() {
  for (const heading of document.querySelectorAll("table.sortable th[scope=col]")) {
    heading.innerHTML = `<button type="button" class="sorter">${heading.innerHTML}</button>`;
    heading.firstChild.addEventListener("click", () => sortRows(heading));
  }
}

function sortRows(heading) {
  const table = heading.closest("table");
  const place = [...heading.parentElement.children].indexOf(heading);
  const isDown = heading.getAttribute("aria-sort") === "ascending";
  const valueOf = (row) => row.children[place].textContent.trim().replace("−", "-");
  const compare = (a, b) => {
    const [x, y] = [Number(valueOf(a)), Number(valueOf(b))];
    return Number.isNaN(x - y) ? valueOf(a).localeCompare(valueOf(b)) : x - y;
  };
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => (isDown ? compare(b, a) : compare(a, b)));
  table.tBodies[0].append(...rows);
}

function startSources() {
  for (const button of document.querySelectorAll(".source")) {
    const name = button.dataset.table;
    if (!document.getElementById(`csv-${name}`)) {
      button.disabled = true;
      button.title = "Too large to be carried by this page; it lies beside it in the study’s directory.";
      continue;
    }
    button.title = `Download ${fileOf(name)}`;
    button.addEventListener("click", () => download(name));
  }
}

const fileOf = (name) => (name.includes(".") ? name : `${name}.csv`);

async function download(name) {
  const type = name.includes(".") ? "application/jsonl" : "text/csv";
  const address = URL.createObjectURL(new Blob([await unpackBytes(`csv-${name}`)], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = fileOf(name);
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

start();
