// Light or dark: the system's choice, unless the Theme button says otherwise.

const THEMES = ["auto", "light", "dark"];
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeListeners = [];

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}

function onTheme(listener) {
  themeListeners.push(listener);
}

function startTheme() {
  const button = document.getElementById("theme");
  let current = 0;
  button.addEventListener("click", () => {
    current = (current + 1) % THEMES.length;
    const theme = THEMES[current];
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    for (const listener of themeListeners) listener();
  });
  systemDark.addEventListener("change", () => themeListeners.forEach((listener) => listener()));
}
