// The atlas's two figures: the ablation profile, which leads to heads, and the densities of what is listed.

const BIN = 0.25; // decades
const LOWEST = -7;
let histogramTimer;
let isOverviewReady = false;

async function startOverview(profile) {
  startPlots();
  startTables();
  if (profile) {
    byId("profile").hidden = false;
    await drawFigure(byId("profile-plot"), profile);
    const models = new Map(atlas.models.map((model, i) => [atlas.shortNames[i], model]));
    byId("profile-plot").on("plotly_click", ({ points }) => {
      const [model, layer, head] = points[0].customdata;
      change({ ...DEFAULT_VIEW, ...pinsOf(view), model: models.get(model) ?? "", layer: String(layer), head: String(head) });
      byId("filters").scrollIntoView({ block: "start" });
    });
  }
  isOverviewReady = true;
  await drawHistogram();
  byId("histogram-plot").on("plotly_selected", keepRange);
}

// What the two plots show, as tables; the profile's lead to the features of a head as its marks do.
function startTables() {
  const ofHeads = () => [...heads].map(([key, impact]) => {
    const [model, seed, layer, head] = key.split("|");
    const button = element("button", { type: "button", class: "quiet" }, `L${layer} H${head}`);
    button.addEventListener("click", () => change({ ...DEFAULT_VIEW, ...pinsOf(view), model, seed: atlas.seeds.length > 1 ? seed : "", layer, head }));
    const index = atlas.models.indexOf(model);
    return [index < 0 ? model : atlas.shortNames[index], seed, button, impactText(impact)];
  });
  if (heads.size) byId("profile-table").append(tableFold(["model", "seed", "features of", "loss increase"], ofHeads));
  const ofDensities = () => {
    const counts = atlas.models.map((_, model) => countDensities(model));
    const bins = counts[0]?.map((_, bin) => [`10^${trueMinus(String(LOWEST + bin * BIN))}`, ...counts.map((own) => formatCount(own[bin]))]) ?? [];
    return bins.filter((cells) => cells.slice(1).some((cell) => cell !== "0"));
  };
  byId("histogram-table").append(tableFold(["density from", ...atlas.shortNames], ofDensities));
}

function keepRange(event) {
  if (!event?.range) return;
  const [low, high] = event.range.x.map((exponent) => (Math.round(exponent / BIN) * BIN).toString());
  change({ dmin: low, dmax: high, page: "1", open: "" });
}

function scheduleHistogram() {
  if (!isOverviewReady) return;
  clearTimeout(histogramTimer);
  histogramTimer = setTimeout(drawHistogram, 120);
}

function countDensities(model) {
  const counts = new Array(Math.round(-LOWEST / BIN)).fill(0);
  for (const row of found.rows) {
    if (atlas.model[row] !== model || !(atlas.density[row] > 0)) continue;
    const bin = Math.floor((Math.log10(atlas.density[row]) - LOWEST) / BIN);
    counts[Math.max(0, Math.min(counts.length - 1, bin))] += 1;
  }
  return counts;
}

function drawHistogram() {
  byId("histogram-table").firstChild.dispatchEvent(new Event("refresh"));
  const x = Array.from({ length: Math.round(-LOWEST / BIN) }, (_, bin) => LOWEST + (bin + 0.5) * BIN);
  const data = atlas.models.map((_, model) => ({
    type: "scatter",
    mode: "lines",
    line: { shape: "hvh", color: colours[model % colours.length], width: 1.8, dash: model % 2 ? "8px,2px" : "solid" },
    x,
    y: countDensities(model),
    name: escapeLabel(atlas.shortNames[model]),
    hovertemplate: "10<sup>%{x:.2f}</sup>: %{y} features<extra></extra>",
  }));
  const axis = { showline: true, linecolor: "#9aa5b1", ticks: "outside", ticklen: 4, tickcolor: "#9aa5b1", tickfont: { size: 11, color: "#5f6b78" }, zeroline: false };
  const decades = [-6, -5, -4, -3, -2, -1, 0];
  const layout = {
    font: { family: "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif", size: 12, color: "#1c2127" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    height: 230,
    margin: { l: 52, r: 12, t: 34, b: 42 },
    showlegend: atlas.models.length > 1,
    legend: { orientation: "h", x: 0, y: 1, yref: "container", yanchor: "top" },
    xaxis: { ...axis, showgrid: false, title: { text: "density", font: { size: 12 }, standoff: 6 }, tickvals: decades, ticktext: decades.map((decade) => `10<sup>${String(decade).replace("-", "−")}</sup>`), range: [LOWEST, 0.2], fixedrange: true },
    yaxis: { ...axis, title: { text: "features", font: { size: 12 } }, rangemode: "tozero", showgrid: true, gridcolor: "#e3e7ec", fixedrange: true },
    dragmode: "select",
    selectdirection: "h",
    meta: { columns: 1.6 },
  };
  return drawFigure(byId("histogram-plot"), { data, layout });
}

// plotly.js reads a few HTML tags in labels
function escapeLabel(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
