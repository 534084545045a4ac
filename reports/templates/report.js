// The study's page: draws figures as they come near, switches variants, hands out the tables, leads to the atlas.

async function start() {
  startTheme();
  startPlots();
  startSources();
  startSorting();
  startHeads();
  const { figures, names } = await unpackJson("page-data");
  startVariants(figures);
  await startContinuations(names);
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  await drawAll(figures);
  document.documentElement.dataset.ready = "yes";
}

const figureOf = (figures, place) => figures[place.dataset.figure][Number(place.dataset.variant)];

// First what is in view, then everything else, so that printing finds all figures drawn. One of many variants is drawn
// when it is chosen.
async function drawAll(figures) {
  const places = [...document.querySelectorAll(".plot-scroll:not(.on-demand[hidden]) > .plot")];
  const near = (place) => {
    const box = place.getBoundingClientRect();
    return box.width > 0 && box.bottom > 0 && box.top < 2 * innerHeight;
  };
  for (const place of [...places.filter(near), ...places.filter((place) => !near(place))]) {
    await drawFigure(place, figureOf(figures, place));
    place.on("plotly_click", ({ points }) => openHead(points[0]));
    await new Promise((resolve) => setTimeout(resolve));
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
  else drawFigure(place, figureOf(figures, place)).then(() => place.on("plotly_click", ({ points }) => openHead(points[0])));
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
