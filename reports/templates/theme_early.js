// Runs before the first paint: the theme that was chosen on either page, where the browser lets pages store anything.
try {
  const kept = localStorage.getItem("workbench-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // storage is denied: the system's theme stands, as on a first visit
}
