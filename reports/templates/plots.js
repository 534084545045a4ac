// Draws figures with the plotly.js that the page carries, in the colours of the theme.

// The buttons are a list of what stays here, not of what goes: plotly.js has one that uploads a chart, and may get more.
const PLOT_CONFIG = {
  modeBarButtons: [["toImage", "resetScale2d"]],
  showSendToCloud: false,
  plotlyServerURL: "",
  displayModeBar: matchMedia("(hover: none)").matches ? false : "hover", // where nothing hovers it would stay, grey
  displaylogo: false, // a link to its makers
  typesetMath: false, // names may hold dollars
  responsive: true,
};

const PANEL_WIDTH = 168; // pixels below which a panel is no longer readable: a narrow screen scrolls instead

let plotlyPromise;
let darkColours;
const drawnFigures = new Map(); // element -> its figure in light colours

async function loadDarkColours() {
  darkColours ??= await unpackJson("dark-colours");
}

// The text runs because its hash stands in the page's Content-Security-Policy.
function loadPlotly() {
  plotlyPromise ??= Promise.all([unpackText("plotly-source"), loadDarkColours()]).then(([source]) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    script.remove();
    return globalThis.Plotly;
  });
  return plotlyPromise;
}

async function drawFigure(element, figure) {
  await loadPlotly();
  drawNow(element, figure);
}

// Drawn when it returns; plotly.js has to be loaded.
function drawNow(element, figure) {
  const { data, layout } = inTheme(figure, isDark());
  drawnFigures.set(element, figure);
  element.style.minWidth = `${PANEL_WIDTH * (layout.meta?.columns ?? 1.6)}px`;
  globalThis.Plotly.react(element, data, layout, PLOT_CONFIG);
  element.dataset.drawn = "yes";
}

// Figures carry light colours; on a dark page each is exchanged for the one with the same role.
function inTheme(figure, dark) {
  const text = JSON.stringify(figure);
  return JSON.parse(dark ? text.replace(/#[0-9a-fA-F]{6}/g, (colour) => darkColours[colour] ?? colour) : text);
}

function redrawFigures(dark = isDark(), width = undefined) {
  for (const [element, figure] of drawnFigures) {
    const { data, layout } = inTheme(figure, dark);
    globalThis.Plotly.react(element, data, { ...layout, width }, PLOT_CONFIG);
  }
}

const PRINT_WIDTH = 680; // pixels of an A4 or Letter page between its margins

function startPlots() {
  onTheme(() => redrawFigures());
  addEventListener("beforeprint", () => redrawFigures(false, PRINT_WIDTH));
  addEventListener("afterprint", () => redrawFigures());
}
