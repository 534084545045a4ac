// The study's page: draws figures when they are seen, hands out the tables, leads to the atlas.

async function start() {
  loadPlotly(); // the longest wait of all: begun first
  startTheme();
  startPlots();
  startContents();
  startSources();
  startSorting();
  startGlossary();
  startFolds();
  startHeads();
  const { figures, names } = await unpackJson("page-data");
  const queue = new FigureQueue(figures);
  startVariants(queue);
  startMarks();
  startValues(queue);
  startLinks();
  await startContinuations(names);
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  await queue.drawAll();
  document.documentElement.dataset.ready = "yes";
}

// The figures that are not drawn yet. Those near the window come first, then the others while nothing else happens, last
// the variants that are not shown, so that printing finds all drawn. One of many variants is drawn when it is chosen.
class FigureQueue {
  constructor(figures) {
    this.figures = figures;
    this.waiting = new Set(document.querySelectorAll(".plot-scroll:not(.on-demand[hidden]) > .plot"));
    this.near = new Set();
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) this.near[isIntersecting ? "add" : "delete"](target);
    }, { rootMargin: "100%" });
    for (const place of this.waiting) {
      place.style.minHeight = `${this.figureOf(place).layout.height ?? 0}px`; // nothing moves when it is drawn
      watcher.observe(place);
    }
    addEventListener("beforeprint", () => globalThis.Plotly && [...this.waiting].forEach((place) => this.draw(place)));
  }

  figureOf(place) {
    return this.figures[place.dataset.figure][Number(place.dataset.variant)];
  }

  next() {
    const waiting = [...this.waiting];
    const near = waiting.find((place) => this.near.has(place));
    return [near ?? waiting.find((place) => place.checkVisibility()) ?? waiting[0], Boolean(near)];
  }

  async drawAll() {
    await loadPlotly();
    while (this.waiting.size) {
      const [place, isNear] = this.next();
      if (!isNear) await new Promise((resolve) => requestIdleCallback(resolve, { timeout: 100 }));
      this.draw(this.waiting.has(place) ? place : this.next()[0]);
      await new Promise((resolve) => setTimeout(resolve)); // what was clicked meanwhile
    }
  }

  // Needs plotly.js; nothing where there is nothing left to draw.
  draw(place) {
    if (!place || place.dataset.drawn) return;
    this.waiting.delete(place);
    drawNow(place, this.figureOf(place));
    place.on("plotly_click", ({ points }) => openHead(points[0]));
  }

  async show(place) {
    await loadPlotly();
    if (place.dataset.drawn) globalThis.Plotly.Plots.resize(place);
    else this.draw(place);
  }
}

// A mark of one head leads to that head's page: its customdata are [model, layer, head], its trace's meta holds the seed;
// or meta holds `head`, whose layer is the row, and whose head the column, of a map where they are not said.
function openHead({ customdata, data, x, y }) {
  const place = data.meta?.head ? { layer: y, head: x, ...data.meta.head } : headOf(customdata, data.meta?.seed);
  const address = place && headAddress(place);
  if (address) location.href = address;
}

function headOf(customdata, seed) {
  if (!Array.isArray(customdata) || customdata.length < 3 || !Number.isInteger(customdata[2])) return null;
  const [model, layer, head] = customdata;
  return { model, seed, layer, head };
}

// In a table with columns model, layer and head, the head's number leads to its page.
function startHeads() {
  for (const table of document.querySelectorAll("table.grid")) {
    const names = [...table.tHead.rows[table.tHead.rows.length - 1].cells].map((cell) => cell.textContent.trim());
    const places = ["model", "seed", "layer", "head"].map((name) => names.indexOf(name));
    if (places.some((place, i) => place < 0 && i !== 1)) continue;
    for (const { cells } of table.tBodies[0].rows) {
      const [model, seed, layer, head] = places.map((place) => cells[place]?.textContent.trim());
      const address = Number(head) >= 0 && headAddress({ model, seed, layer, head });
      if (!address) continue;
      const link = document.createElement("a");
      link.href = address;
      link.textContent = head;
      cells[places[3]].replaceChildren(link);
    }
  }
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
  hand(new Blob([await unpackBytes(`csv-${name}`)], { type }), fileOf(name));
}

// Gives the reader a file.
function hand(blob, file) {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = address;
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

start();
