// Opens what is folded where an address leads into it.

function startFolds() {
  const open = () => {
    const place = document.getElementById(location.hash.slice(1));
    const folds = place ? [...place.querySelectorAll("details.fold")] : [];
    for (let at = place?.closest("details"); at; at = at.parentElement?.closest("details")) folds.push(at);
    for (const fold of folds) fold.open = true;
    if (folds.length) place.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
}
