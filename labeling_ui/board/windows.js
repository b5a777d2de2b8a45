// A window above the page, and how it is closed.
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

