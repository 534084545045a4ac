// All heads of a model by kind, a thumbnail each, the strongest of a kind first.

function galleryElement(head, state) {
  const own = headsOf(head);
  const box = element("div");
  const groups = [...Object.keys(data.kinds.titles), ""];
  for (const key of groups) {
    const members = own.filter(({ index }) => (data.kinds.of[index] ?? "") === key);
    const measure = data.measures.find((one) => one.key === key);
    if (measure) members.sort((a, b) => measure.value[b.index] - measure.value[a.index]);
    box.append(groupElement(key, members, own, measure, state));
  }
  return box;
}

function groupElement(key, members, own, measure, state) {
  const title = key ? data.kinds.titles[key] : data.kinds.of.length ? "Of none of these kinds" : "All heads";
  const heading = element("h3", {}, title, element("small", {}, ` ${members.length} of ${own.length}`));
  const group = element("section", { class: "group" }, heading);
  if (measure) group.append(element("p", { class: "note" }, ruleOf(measure, own)));
  if (!members.length) return group;
  group.append(element("ul", { class: "thumbs" }, ...members.map((head) => element("li", {}, cardElement(head, measure, state)))));
  return group;
}

function ruleOf({ meaning, threshold, uniform, value }, own) {
  const even = uniform[own[0].index];
  const known = own.map(({ index }) => value[index]).filter((one) => one !== null);
  const range = `here ${formatNumber(Math.min(...known))} to ${formatNumber(Math.max(...known))}`;
  const what = meaning.startsWith("of ") ? `entropy ${meaning}` : meaning;
  return `${what[0].toUpperCase()}${what.slice(1)}; at least ${threshold}${even === null ? "" : `, where attention spread evenly has ${formatNumber(even)}`}; ${range}.`;
}

// Thumbnails are painted when they come near; for paper all are.
let whenSeen;

function drawWhenSeen(canvases) {
  whenSeen?.disconnect();
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      target.draw();
    }
  }, { rootMargin: "400px" });
  for (const canvas of canvases) observer.observe(canvas);
  whenSeen = observer;
}

function cardElement(head, measure, state) {
  const link = element("a", { href: headAddress(head), class: "card" });
  const sentences = sentencesOf(head);
  if (sentences.length) {
    const canvas = element("canvas", { "aria-hidden": "true" });
    const draw = () => paint(canvas, mapOf(head, Math.min(state.sentence, sentences.length - 1), state.isWithoutFirst), true);
    canvas.draw = () => {
      canvas.repaint = draw;
      draw();
    };
    link.append(canvas);
  }
  link.append(element("b", {}, `L${head.layer} H${head.head}`));
  if (measure) {
    const z = measure.z[head.index];
    link.append(element("span", {}, formatNumber(measure.value[head.index], 2), z === null ? "" : `, z ${signed(z.toFixed(1))}`));
  }
  if (data.ablation.length) {
    const impact = ablationOf().impact_pct[head.index];
    link.append(element("span", { class: "cost" }, impact === null ? "–" : `${signed(impact.toFixed(2))} %`));
  }
  return link;
}
