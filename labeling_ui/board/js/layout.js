// The layout of a task: the prompt, the given text and the panels of its step.
let isRaw = localStorage.getItem("labeling/raw") === "yes";
let isContextOpen = !isNarrow();

function text(content, more) {
  if (!content.plain.trim()) return h("p", { class: "text soft" }, t("empty"));
  if (isRaw) return h("pre", { class: "text raw", tabindex: "0", dir: "auto", html: content.plain, ...more });
  const made = h("div", { class: "text", dir: "auto", html: content.html, ...more });
  for (const block of made.querySelectorAll("pre, table")) {
    const around = h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "text" });
    block.replaceWith(around);
    around.append(block);
  }
  return made;
}

function toggleRaw() {
  isRaw = !isRaw;
  localStorage.setItem("labeling/raw", isRaw ? "yes" : "no");
  draw();
}

function toggleContext() {
  if (!task.context) return;
  isContextOpen = !isContextOpen;
  draw();
}

// A conversation is shown turn by turn, the one that is to be answered last.
function promptText() {
  if (!task.history.length) return text(task.prompt);
  const turn = (one) => h("div", { class: "turn" }, h("h3", {}, t("role_" + one.role)), text(one));
  return [...task.history, { role: "user", ...task.prompt }].map(turn);
}

function promptPanel() {
  if (!task.prompt) return null;
  const rawButton = button([isRaw ? t("formatted") : t("raw"), kbd("R")], toggleRaw, { class: "quiet" });
  return h("section", { class: "prompt", "aria-label": t("prompt") },
    h("div", { class: "head" }, h("h2", {}, t("prompt")), h("span", { class: "gap" }), rawButton),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("prompt") }, promptText()));
}

function contextPanel() {
  if (!task.context) return null;
  const label = [t("context"), kbd("X")];
  if (!isContextOpen) {
    return h("aside", { class: "context closed" },
      button(label, toggleContext, { class: "quiet", "aria-expanded": "false" }));
  }
  return h("aside", { class: "context", "aria-label": t("context") },
    h("div", { class: "head" }, h("h2", {}, button(label, toggleContext, { class: "quiet", "aria-expanded": "true" }))),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("context") }, text(task.context)));
}

// The whole page of a task, drawn once for a step; after that only `paint` touches it.
function draw() {
  const scrolled = find(".cards, .read .scroll")?.scrollTop || 0;
  const panels = { rate: ratePanels, rank: rankPanels, compare: comparePanels, write: writePanels }[work.step]();
  const sides = task.context ? (isContextOpen ? " with-context" : " with-strip") : "";
  find(".stage").replaceChildren(...[promptPanel(),
    h("main", { class: "panels " + work.step + sides }, contextPanel(), ...panels)].filter(Boolean));
  const steps = stepsOf();
  find(".steps").replaceChildren(...(steps.length > 1 ? steps : []).map((step, i) => h("button", {
    type: "button", class: "step", "aria-current": work.step === step ? "step" : null, onclick: () => goToStep(step),
  }, h("span", { class: "number" }, String(i + 1)), " ", t(step))));
  const promptPane = find(".prompt .scroll");
  if (promptPane && task.history.length) promptPane.scrollTop = promptPane.scrollHeight;
  const pane = find(".cards, .read .scroll");
  if (pane) pane.scrollTop = scrolled;
  paint();
}

// On a phone the page itself scrolls: begin where the new thing begins.
function toTop() {
  if (isNarrow()) find(".panels").scrollIntoView();
}

function paint() {
  ({ rate: paintRate, rank: paintRank, compare: paintCompare, write: paintWrite })[work.step]();
}

function goToStep(step) {
  if (step === work.step) return;
  const missing = step === "rank" ? firstUnrated() : -1;
  if (missing !== -1) return showMissing(missing);
  work.step = step;
  if (step === "rank") work.selected = unranked()[0] ?? 0;
  saveSoon();
  draw();
  toTop();
  announce(t(step));
}

function showMissing(i) {
  const where = i === -2 ? t("about_prompt") : t("rate_first", letter(i));
  goTo(i === -2 ? -1 : i);
  status(where);
  announce(where);
}

// Submit, or show the first thing that is missing.
function finish() {
  if (work.step === "write") return stillMissing() ? find('[data-part="missing"]').scrollIntoView() : submit(null);
  if (work.step === "compare") return chosenSide() < 0 ? undefined : submit(null);
  if (work.step === "rate") return firstUnrated() === -1 ? submit(null) : showMissing(firstUnrated());
  return unranked().length ? undefined : submit(null);
}
