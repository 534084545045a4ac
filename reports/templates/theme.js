// Light or dark: the system's choice, unless the Theme button says otherwise; both pages keep what it said.

const THEMES = ["auto", "light", "dark"];
const THEME_KEY = "workbench-theme"; // theme_early.js reads it before the first paint
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeListeners = [];

const chosenTheme = () => document.documentElement.dataset.theme ?? "auto";

function isDark() {
  return chosenTheme() === "auto" ? systemDark.matches : chosenTheme() === "dark";
}

function onTheme(listener) {
  themeListeners.push(listener);
}

function keepTheme(theme) {
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    // storage is denied: the theme lasts as long as the page
  }
}

function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  document.getElementById("theme").textContent = `Theme: ${chosenTheme()}`;
  for (const listener of themeListeners) listener();
}

function startTheme() {
  const button = document.getElementById("theme");
  button.textContent = `Theme: ${chosenTheme()}`;
  button.addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length];
    keepTheme(theme);
    setTheme(theme);
  });
  addEventListener("storage", ({ key, newValue }) => key === THEME_KEY && setTheme(newValue)); // the other page's button
  systemDark.addEventListener("change", () => themeListeners.forEach((listener) => listener()));
}
