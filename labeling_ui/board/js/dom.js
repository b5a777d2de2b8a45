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

// A line in the top bar, in place of the counts, with a way back: until the next change, or the next answer.
let toastStays = false;
function toast(text, action, stays) {
  const box = find(".toast");
  toastStays = Boolean(stays);
  box.replaceChildren(...(text ? [h("span", {}, text), action] : []));
  box.hidden = !text;
}

// A mouse click leaves no focus behind on a button, so that Enter keeps meaning "next". It does so before the
// button acts: a dialog gives the focus back to where it was.
root.addEventListener("click", (event) => {
  const clicked = event.target.closest("button");
  if (event.detail > 0 && clicked && !clicked.closest("dialog")) clicked.blur();
}, { capture: true });

const focusWork = () => find(".stage").focus({ preventScroll: true });

function setTheme(theme) {
  root.dataset.theme = theme;
  localStorage.setItem("labeling/theme", theme);
}
const wantsDark = matchMedia("(prefers-color-scheme: dark)").matches;
root.dataset.theme = localStorage.getItem("labeling/theme") || (wantsDark ? "dark" : "light");
// The title has the focus first: Enter chooses nothing that was not looked for.
function openDialog(title, ...content) {
  const opened = h("dialog", { "aria-label": title }, h("h2", { tabindex: "-1", autofocus: true }, title), ...content);
  opened.addEventListener("close", () => opened.remove());
  opened.addEventListener("click", (event) => { if (event.target === opened) opened.close(); });
  find(".dialogs").replaceChildren(opened);
  opened.showModal();
  return opened;
}

const closeDialog = () => find("dialog")?.close();
const closing = () => h("div", { class: "walk" }, h("span", { class: "gap" }), button(t("close"), closeDialog, { class: "button primary" }));

