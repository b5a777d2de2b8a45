// Elements, dialogs, announcements for screen readers, and the lines for status, notices and toasts.
const root = element.querySelector(".room");
const find = (selector) => root.querySelector(selector);
const isNarrow = () => innerWidth <= 900;
const letter = (i) => String.fromCharCode(65 + i);
root.lang = language;

// h("button", {class: "x", onclick: f, disabled: true}, children...): attributes that are false or null are left out.
function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "html") made.innerHTML = value; // only ever what the server has made safe
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child != null && child !== false) made.append(child);
  return made;
}

const button = (text, onclick, more) => h("button", { type: "button", class: "button", onclick, ...more }, text);
const kbd = (text) => h("kbd", { "aria-hidden": "true" }, text);

function announce(text) {
  const region = find(".announcements");
  region.textContent = "";
  setTimeout(() => { region.textContent = text; }, 20);
}

function status(text) { find(".saved").textContent = text; }

// A line above the work that stays until it is taken away. One about saving goes when saving works again.
let isNoticeAboutSaving = false;
function notice(text, ...actions) {
  const line = find(".notice");
  isNoticeAboutSaving = false;
  line.hidden = !text;
  line.replaceChildren(...(text ? [h("span", {}, text), ...actions] : []));
}

let toastTimer = null;
function toast(text, ...actions) {
  const box = find(".toast");
  clearTimeout(toastTimer);
  box.replaceChildren(h("span", {}, text), ...actions);
  box.hidden = false;
  toastTimer = setTimeout(() => { box.hidden = true; }, 8000);
}

// A mouse click leaves no focus behind on a button, so that Enter keeps meaning "next".
root.addEventListener("click", (event) => {
  const clicked = event.target.closest("button");
  if (event.detail > 0 && clicked && !clicked.closest("dialog")) clicked.blur();
});

function setTheme(theme) {
  root.dataset.theme = theme;
  localStorage.setItem("labeling/theme", theme);
}
const wantsDark = matchMedia("(prefers-color-scheme: dark)").matches;
root.dataset.theme = localStorage.getItem("labeling/theme") || (wantsDark ? "dark" : "light");
function openDialog(title, ...content) {
  const opened = h("dialog", { "aria-label": title }, h("h2", {}, title), ...content);
  opened.addEventListener("close", () => opened.remove());
  opened.addEventListener("click", (event) => { if (event.target === opened) opened.close(); });
  find(".dialogs").replaceChildren(opened);
  opened.showModal();
  return opened;
}

const closeDialog = () => find("dialog")?.close();
const closing = () => h("div", { class: "walk" }, h("span", { class: "gap" }), button(t("close"), closeDialog, { class: "button primary" }));

