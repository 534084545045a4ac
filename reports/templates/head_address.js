// The page of a head, from every page that names one; nothing where the study has no such page. Model by its own name or
// its short one; without a seed, the model's first.
function headAddress({ model, seed = "", layer, head }) {
  const page = document.getElementById("heads-address");
  if (!page) return null;
  const given = Object.entries({ model, seed, layer, head }).filter(([, value]) => value !== "" && value !== undefined);
  return `${page.textContent}#${new URLSearchParams(given)}`;
}
