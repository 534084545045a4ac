// The values that a figure draws, as a table that is made when it is opened, and as a CSV.

const MAX_VALUES = 300; // rows of the table; the CSV has all

const plain = (text) =>
  String(text ?? "").replace(/<br>/g, " ").replace(/<[^>]*>/g, "").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

// Of places such as layers, marks of several models stand a little apart: the place is what is meant.
function onAxis(axis, value) {
  const places = [...(axis.tickvals ?? [])];
  const place = typeof value === "number" && places.length && places.every(Number.isInteger) ? Math.round(value) : value;
  const i = axis.ticktext ? places.indexOf(place) : -1;
  if (i >= 0) return plain(axis.ticktext[i]);
  return axis.ticktext ? value : place;
}

// {columns, rows}: what is drawn in each panel, series by series; of marks with an interval its ends.
function valuesOf(plot) {
  const layout = plot._fullLayout;
  const panels = layout.meta?.panels ?? {};
  const titleOf = (letter) =>
    Object.keys(layout).filter((key) => key.startsWith(`${letter}axis`)).map((key) => plain(plot.layout[key]?.title?.text)).find(Boolean);
  const traces = plot._fullData.filter((trace) => trace.visible === true && trace.hoverinfo !== "skip");
  const isMap = traces.some((trace) => trace.z);
  const rows = traces.flatMap((trace) => {
    const [x, y] = ["x", "y"].map((letter) => layout[`${letter}axis${trace[`${letter}axis`].slice(1)}`]);
    const head = [plain(panels[trace.xaxis]), /^trace \d+$/.test(trace.name) ? "" : plain(trace.name)];
    if (trace.z) {
      return [...trace.z].flatMap((row, i) => [...row].map((z, j) => [...head, onAxis(x, trace.x[j]), onAxis(y, trace.y[i]), z]));
    }
    const error = [trace.error_y, trace.error_x].find((own) => own?.visible && own.array);
    const own = error === trace.error_x ? trace.x : trace.y;
    return [...trace.x].map((_, i) => {
      const [below, above] = [error?.arrayminus ?? error?.array, error?.array].map((lengths) => lengths?.[i]);
      const ends = error && above > 0 ? [own[i] - below, own[i] + above] : ["", ""];
      const notes = [trace.text, trace.customdata].filter(Array.isArray).map((all) => plain(Array.isArray(all[i]) ? all[i].join(" ") : all[i]));
      return [...head, onAxis(x, trace.x[i]), onAxis(y, trace.y[i]), ...ends, notes.filter(Boolean).join("; ")];
    });
  });
  const measured = rows.filter((row) => isValue(row[2]) && isValue(row[isMap ? 4 : 3]));
  const columns = ["panel", "series", layout.meta?.x_name ?? titleOf("x") ?? "x", titleOf("y") ?? "y", ...(isMap ? ["value"] : ["low", "high", "mark"])];
  const used = columns.map((_, k) => measured.some((row) => row[k] !== ""));
  const kept = (row) => row.filter((_, k) => used[k]);
  return { columns: kept(columns), rows: measured.map(kept) };
}

const csvCell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
const csvOf = ({ columns, rows }) => [columns, ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";

function startValues(queue) {
  for (const fold of document.querySelectorAll("details.values")) {
    const figure = fold.closest("figure");
    const fill = async () => {
      if (!fold.open) return;
      const plot = figure.querySelector(".plot-scroll:not([hidden]) > .plot");
      await queue.show(plot);
      fillValues(fold, figure, valuesOf(plot), `${figure.id}-${plot.dataset.variant}.csv`);
    };
    fold.addEventListener("toggle", fill);
    figure.addEventListener("variant", fill);
  }
}

function fillValues(fold, figure, values, file) {
  const table = document.createElement("table");
  table.className = "grid";
  const addRow = (part, cells, kind) => {
    const row = part.insertRow();
    for (const value of cells) {
      const cell = document.createElement(kind);
      if (kind === "th") cell.scope = "col";
      if (typeof value === "number") cell.className = "num";
      cell.textContent = typeof value === "number" ? String(Number(value.toPrecision(5))).replace("-", "−") : value;
      row.append(cell);
    }
  };
  addRow(table.createTHead(), values.columns, "th");
  const body = table.createTBody();
  for (const row of values.rows.slice(0, MAX_VALUES)) addRow(body, row, "td");
  const region = document.createElement("div");
  region.className = "table-scroll";
  region.tabIndex = 0;
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", `Values of ${figure.id}`);
  region.append(table);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "source";
  button.textContent = file;
  button.addEventListener("click", () => hand(new Blob([csvOf(values)], { type: "text/csv" }), file));
  const note = document.createElement("p");
  const left = values.rows.length - MAX_VALUES;
  note.className = "small";
  note.append(left > 0 ? `The first ${MAX_VALUES} of ${values.rows.length} values; all: ` : `${values.rows.length} values: `, button);
  fold.replaceChildren(fold.querySelector("summary"), note, region);
}
