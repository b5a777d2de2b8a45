// Writing: a response to a given prompt, a prompt of one's own, or an instruction with several pairs.
const LEAST_PAIRS = 2, MOST_PAIRS = 12;
const freshPair = () => ({ query: "", response: "" });
const wantsResponse = () => task.kind === "demonstration";

function writePanels() {
  const fields = task.shape === "few-shot" ? fewShotFields() : plainFields();
  const hint = task.prompt ? null : h("p", { class: "soft" }, t("hint_" + task.shape.replace("-", "_")));
  const useCase = task.use_case ? h("section", { class: "use-case", "aria-label": t("use_case") }, h("h3", {}, t("use_case")), text(task.use_case)) : null;
  return [h("section", { class: "writing panel", "aria-label": t(task.kind) },
    h("div", { class: "scroll", tabindex: "-1" }, h("h2", {}, writeTitle()), hint, useCase, fields,
      noteField("task_note", t("task_note"), work.note, (value) => { work.note = value; })),
    h("div", { class: "walk" }, h("span", { class: "soft", "data-part": "missing" }),
      button([t("submit"), kbd("Ctrl ⏎")], finish, { class: "button primary", "data-part": "submit" })))];
}

function writeTitle() {
  if (task.shape === "few-shot") return t("write_few_shot");
  return t(wantsResponse() && !task.prompt ? "write_both" : "write_" + task.kind);
}

function plainFields() {
  return [task.prompt ? null : writeField("prompt", t("prompt"), 5, work.prompt, (value) => { work.prompt = value; }),
    wantsResponse() ? writeField("response", t("response"), 10, work.response, (value) => { work.response = value; }) : null];
}

function fewShotFields() {
  const pair = (one, i) => h("fieldset", { class: "pair" }, h("legend", {}, t("pair", i + 1)),
    writeField("query-" + i, t("query"), 2, one.query, (value) => { one.query = value; }),
    writeField("response-" + i, t("response"), 2, one.response, (value) => { one.response = value; }),
    work.pairs.length > LEAST_PAIRS ? button(t("remove_pair"), () => changePairs(() => { work.pairs.splice(i, 1); }), { class: "quiet", "aria-label": t("remove_pair") + " " + (i + 1) }) : null);
  return [writeField("instruction", t("instruction"), 3, work.instruction, (value) => { work.instruction = value; }),
    h("div", { class: "pairs" }, work.pairs.map(pair)),
    work.pairs.length < MOST_PAIRS ? button(t("add_pair"), () => changePairs(() => { work.pairs.push(freshPair()); }), { "data-part": "add" }) : null];
}

function changePairs(how) {
  change(how);
  draw();
}

// A field of the size of what is in it, with a count of its words.
function writeField(name, label, rows, value, write) {
  const count = h("small", { class: "soft" });
  const field = h("textarea", { rows: String(rows), id: "labeling-" + name, maxlength: "50000", dir: "auto", "data-field": name, oninput: (event) => {
    write(event.target.value);
    saveSoon();
    show();
    paint();
  } });
  const show = () => { count.textContent = t("words", field.value.trim() ? field.value.trim().split(/\s+/).length : 0); };
  field.value = value;
  show();
  return h("div", { class: "note written" }, h("label", { for: "labeling-" + name }, label), count, field);
}

// The first thing that is still to be written; "" if nothing is.
function stillMissing() {
  if (task.shape === "few-shot") {
    if (!work.instruction.trim()) return t("instruction");
    const open = work.pairs.findIndex((one) => !one.query.trim() || !one.response.trim());
    return open < 0 ? "" : t("pair", open + 1);
  }
  if (!task.prompt && !work.prompt.trim()) return t("prompt");
  return wantsResponse() && !work.response.trim() ? t("response") : "";
}

function paintWrite() {
  const missing = stillMissing();
  find('[data-part="missing"]').textContent = missing ? t("missing", missing) : "";
  find('[data-part="submit"]').disabled = Boolean(missing);
}
