// A figure's marks by keyboard: arrows go from mark to mark, whose text is shown and read out; Enter is a click.

const SAY_AFTER = 80; // milliseconds: plotly.js shows a text at most every 50

const isValue = (value) => value !== null && value !== undefined && value === value; // nan is not itself

// [curve, point] of every mark that has a text, in the order in which they are drawn.
function marksOf(plot) {
  return plot._fullData.flatMap((trace, curve) => {
    if (trace.visible !== true || trace.hoverinfo === "skip") return [];
    const points = trace.z
      ? [...trace.z].flatMap((row, i) => [...row].map((z, j) => (isValue(z) ? [i, j] : null)).filter(Boolean))
      : [...trace.x].map((_, i) => i).filter((i) => isValue(trace.x[i]) && isValue(trace.y[i]));
    return points.map((point) => [curve, point]);
  });
}

function startMarks() {
  const voice = document.createElement("p");
  voice.className = "unseen";
  voice.setAttribute("aria-live", "polite");
  document.body.append(voice);
  for (const plot of document.querySelectorAll(".plot[tabindex]")) {
    let at = -1;
    plot.addEventListener("keydown", (event) => {
      if (!plot.dataset.drawn || event.ctrlKey || event.metaKey || event.altKey) return;
      const marks = marksOf(plot);
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: marks.length - 1, Escape: -1 }[event.key]
        ?? { ArrowDown: nextCurve(marks, at, 1), ArrowUp: nextCurve(marks, at, -1) }[event.key];
      if (event.key === "Enter" && marks[at]) clickMark(plot, marks[at]);
      if (next === undefined || !marks.length) return;
      event.preventDefault();
      at = Math.min(next, marks.length - 1);
      if (at < 0) leaveMarks(plot);
      else showMark(plot, marks[at], voice);
    });
    plot.addEventListener("blur", () => leaveMarks(plot));
  }
}

// The first mark of the next or last curve that has any.
function nextCurve(marks, at, step) {
  const curves = [...new Set(marks.map(([curve]) => curve))];
  const place = at < 0 ? (step > 0 ? 0 : curves.length - 1) : curves.indexOf(marks[at][0]) + step;
  return marks.findIndex(([curve]) => curve === curves[Math.max(0, Math.min(curves.length - 1, place))]);
}

function leaveMarks(plot) {
  if (plot.dataset.drawn) globalThis.Plotly.Fx.unhover(plot);
}

function showMark(plot, [curve, point], voice) {
  const trace = plot._fullData[curve];
  const axes = ["x", "y"].map((letter) => plot._fullLayout[`${letter}axis${trace[`${letter}axis`].slice(1)}`]);
  const at = trace.z // cells have no numbers of points
    ? { xval: axes[0].d2c(trace.x[point[1]]), yval: axes[1].d2c(trace.y[point[0]]) }
    : [{ curveNumber: curve, pointNumber: point }];
  globalThis.Plotly.Fx.hover(plot, at, `${trace.xaxis}${trace.yaxis}`);
  setTimeout(() => {
    const label = plot.querySelector(".hoverlayer .hovertext");
    if (!label) return;
    const lines = [...label.querySelectorAll("text")].flatMap((text) => {
      const own = [...text.querySelectorAll("tspan.line")];
      return own.length ? own : [text];
    });
    voice.textContent = lines.map((line) => line.textContent).filter(Boolean).join(", ");
    const [mark, window] = [label.getBoundingClientRect(), plot.parentElement.getBoundingClientRect()];
    const over = Math.max(0, mark.right - window.right) - Math.max(0, window.left - mark.left);
    if (over) plot.parentElement.scrollLeft += over;
  }, SAY_AFTER);
}

function clickMark(plot, [curve, point]) {
  const data = plot._fullData[curve];
  const [x, y] = data.z ? [data.x[point[1]], data.y[point[0]]] : [data.x[point], data.y[point]];
  plot.emit("plotly_click", { points: [{ customdata: data.customdata?.[point], data, x, y, curveNumber: curve, pointNumber: point }] });
}
