// Where a reader is: contents, chosen variants and links, all of them in the browser's history.

const WIDE = matchMedia("(min-width: 70rem)"); // as in report.css

// The list of contents stands open beside the page where there is room, else it is folded above it.
function startContents() {
  const contents = document.querySelector("nav.contents > details");
  const fit = () => (contents.open = WIDE.matches);
  fit();
  WIDE.addEventListener("change", fit);
  contents.addEventListener("click", ({ target }) => {
    if (target.closest("a") && !WIDE.matches) contents.open = false;
  });
}

// What is folded would be lost on paper; the values of figures are not part of it.
function startFolds() {
  const closed = [];
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open]):not(.values)")) {
      closed.push(fold);
      fold.open = true;
    }
  });
  addEventListener("afterprint", () => closed.splice(0).forEach((fold) => (fold.open = false)));
}

const placesOf = (figure) => [...figure.querySelectorAll(".plot-scroll")];

function chosenVariants() {
  const chosen = {};
  for (const figure of document.querySelectorAll("figure.panel")) {
    const shown = placesOf(figure).find((place) => !place.hidden)?.dataset.variant;
    if (shown > 0) chosen[figure.id] = shown;
  }
  return chosen;
}

function startVariants(queue) {
  const apply = (figure, variant) => {
    const places = placesOf(figure);
    if (!places.some((place) => place.dataset.variant === variant)) return false;
    for (const place of places) place.hidden = place.dataset.variant !== variant;
    queue.show(places.find((place) => !place.hidden).querySelector(".plot"));
    const list = figure.querySelector(".variants select");
    if (list) list.value = variant;
    else figure.querySelector(`.variants input[value="${variant}"]`).checked = true;
    figure.dispatchEvent(new Event("variant"));
    return true;
  };
  const restore = (chosen) => {
    for (const set of document.querySelectorAll("figure.panel > .variants")) {
      const figure = set.parentElement;
      if ((chosen[figure.id] ?? "0") !== (chosenVariants()[figure.id] ?? "0")) apply(figure, chosen[figure.id] ?? "0");
    }
  };
  for (const set of document.querySelectorAll("figure.panel > .variants")) {
    set.addEventListener("change", ({ target }) => {
      const figure = set.parentElement;
      apply(figure, target.value);
      const address = new URLSearchParams({ figure: figure.id, variant: target.value });
      history.pushState(chosenVariants(), "", `#${address}`);
    });
  }
  addEventListener("popstate", ({ state }) => state && restore(state));
  history.replaceState(chosenVariants(), ""); // a browser keeps what was chosen before a reload
  const given = addressed();
  const figure = given.has("figure") && document.getElementById(given.get("figure"));
  if (figure && apply(figure, given.get("variant") ?? "0")) history.replaceState(chosenVariants(), "");
}

const addressed = () => new URLSearchParams(location.hash.slice(1));

// Follows the address, and says so where it leads nowhere.
function startLinks() {
  const notice = document.createElement("p");
  notice.className = "notice wrong-link";
  notice.setAttribute("role", "alert");
  document.getElementById("main").prepend(notice);
  const follow = () => {
    const given = addressed();
    const name = nameOf(location.hash);
    const id = given.get("figure") ?? name;
    const target = id && document.getElementById(id);
    const isFound = !name || Boolean(target);
    notice.textContent = isFound ? "" : `This report has nothing at the address #${name}: it may be of another study.`;
    if (!isFound) notice.scrollIntoView({ block: "center" });
    const folds = target ? [...target.querySelectorAll("details.fold")] : [];
    for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) folds.push(fold);
    for (const fold of folds) fold.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  follow();
}

function nameOf(hash) {
  try {
    return decodeURIComponent(hash.slice(1));
  } catch {
    return hash.slice(1); // no encoded text
  }
}
