// Step 1: each output by itself. `work.at` is the output being rated, -1 the prompt.
function ratePanels() {
  const tabs = hasPromptQuestions() ? [-1, ...outputs()] : outputs();
  const list = tabs.length > 1 && h("div", { class: "tabs", role: "group", "aria-label": t("rate") }, tabs.map((i) => h("button", {
    type: "button", class: "tab", "data-tab": String(i), onclick: () => goTo(i),
  })));
  const content = work.at < 0 ? task.prompt : task.outputs[work.at];
  const name = work.at < 0 ? t("prompt") : nameOf(work.at);
  const read = h("section", { class: "read panel", "aria-label": name }, list,
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, text(content)));
  return [read, work.at < 0 ? promptForm() : outputForm(work.at)];
}

// One text alone needs no letter.
const nameOf = (i) => (numOutputs() > 1 ? t("output", letter(i)) : t("text"));

function outputForm(i) {
  const qualityScale = form.quality ? [scaleQuestion(form.quality, "quality")] : [];
  const others = activeScales().map((scale) => scaleQuestion(scale, "scale"));
  const note = noteField("note", t("note"), work.notes[i] || "", (value) => { work.notes[i] = value; });
  return h("section", { class: "form panel", "aria-label": t("of_output", letter(i)) },
    h("div", { class: "scroll", tabindex: "-1" }, h("h2", {}, nameOf(i)), ...qualityScale, ...others,
      flagQuestions(form.flags), note),
    walk());
}

function promptForm() {
  const scales = form.prompt_scales.map((scale) => scaleQuestion(scale, "prompt_scale"));
  const note = noteField("task_note", t("task_note"), work.note, (value) => { work.note = value; });
  return h("section", { class: "form panel", "aria-label": t("about_prompt") },
    h("div", { class: "scroll", tabindex: "-1" }, h("h2", {}, t("about_prompt")), ...scales, flagQuestions(form.prompt_flags), note),
    walk());
}

function walk() {
  if (numOutputs() === 1 && !hasPromptQuestions()) {
    return h("div", { class: "walk" }, h("span", { class: "gap" }), button("", next, { class: "button primary", "data-part": "next" }));
  }
  return h("div", { class: "walk" }, button(t("previous"), () => goTo(work.at - 1), { "data-part": "previous" }),
    h("span", { class: "soft", "data-part": "rated" }),
    button("", next, { class: "button primary", "data-part": "next" }));
}

function scaleQuestion(scale, kind) {
  const values = Array.from({ length: scale.highest - scale.lowest + 1 }, (_, n) => scale.lowest + n);
  const choice = (value, n) => h("label", { class: "choice", "data-level": String(Math.round(1 + 6 * n / (values.length - 1))) },
    h("input", { type: "radio", name: kind + "-" + scale.id, value: String(value), onchange: () => answerScale(scale, kind, value) }),
    h("span", {}, String(value)));
  return h("fieldset", { class: "scale", "data-kind": kind, "data-scale": scale.id }, h("legend", {}, words(scale.text)),
    h("div", { class: "choices" }, values.map(choice)),
    h("div", { class: "ends" }, h("span", {}, words(scale.low)), h("span", {}, words(scale.high))));
}

function scaleAnswers(kind) {
  if (kind === "quality") return { quality: work.ratings[work.at] };
  return (kind === "scale" ? work.scales[work.at] : work.prompt_scales) || {};
}

function answerScale(scale, kind, value) {
  change(() => {
    if (kind === "quality") work.ratings[work.at] = value;
    else if (kind === "scale") work.scales[work.at] = { ...work.scales[work.at], [scale.id]: value };
    else work.prompt_scales[scale.id] = value;
  });
  announce(words(scale.text) + ": " + value);
}

// A digit answers the quality; without one, the first scale that is unanswered: by its own number where it
// starts at 0 or 1, else by position.
function scaleAtHand() {
  const kind = work.at < 0 ? "prompt_scale" : form.quality ? "quality" : "scale";
  const scales = kind === "quality" ? [form.quality] : kind === "scale" ? activeScales() : form.prompt_scales;
  const focused = document.activeElement.closest?.("fieldset.scale")?.dataset.scale;
  const scale = scales.find((one) => one.id === focused) || scales.find((one) => scaleAnswers(kind)[one.id] == null) || scales.at(-1);
  return [scale, kind];
}

function answerByDigit(digit) {
  const [scale, kind] = scaleAtHand();
  const value = scale && (scale.lowest === 0 ? digit : scale.lowest + digit - 1);
  if (!scale || value < scale.lowest || value > scale.highest) return false;
  answerScale(scale, kind, value);
  return true;
}

const flagAnswers = () => (work.at < 0 ? work.prompt_flags : work.flags[work.at]) || {};
const activeFlags = () => (work.at < 0 ? form.prompt_flags : form.flags);

function flagQuestions(flags) {
  if (!flags.length) return null;
  const row = (flag) => {
    const answer = (value, word) => h("button", {
      type: "button", class: "answer " + word, "data-value": String(value), "aria-label": words(flag.text) + ": " + t(word),
      onclick: () => answerFlag(flag, flagAnswers()[flag.id] === value ? null : value),
    }, t(word));
    return h("div", { class: "flag" + (flag.good ? " good" : ""), "data-flag": flag.id }, flag.key ? kbd(flag.key.toUpperCase()) : h("span"),
      h("span", { class: "question-text" }, words(flag.text)), answer(true, "yes"), answer(false, "no"));
  };
  return h("div", { class: "flags" }, flags.map(row), h("div", { class: "rest" }, h("span", { class: "soft", "data-part": "open" }),
    button([t("rest_no"), kbd("0")], answerRestNo, { class: "quiet" })));
}

function answerFlag(flag, value) {
  const about = work.at;
  change(() => {
    if (about < 0) work.prompt_flags = { ...work.prompt_flags, [flag.id]: value };
    else work.flags[about] = { ...work.flags[about], [flag.id]: value };
  });
  announce(words(flag.text) + ": " + (value === null ? t("unanswered", 1) : t(value ? "yes" : "no")));
}

function nextAnswer(value) { return value == null ? true : value ? false : null; }

function answerRestNo() {
  const answers = { ...flagAnswers() };
  for (const flag of activeFlags()) if (!flag.good) answers[flag.id] ??= false; // a good one is for its reader to answer
  change(() => {
    if (work.at < 0) work.prompt_flags = answers;
    else work.flags[work.at] = answers;
  });
  announce(t("rest_no"));
}

function noteField(part, label, value, write) {
  const field = h("textarea", { rows: "2", id: "labeling-" + part, maxlength: "20000", "data-part": "note", dir: "auto",
    oninput: (event) => { write(event.target.value); saveSoon(); } });
  field.value = value;
  return h("div", { class: "note" }, h("label", { for: "labeling-" + part }, label, " ", kbd("N")), field);
}

function paintRate() {
  for (const one of root.querySelectorAll(".tab")) {
    const i = Number(one.dataset.tab);
    one.setAttribute("aria-pressed", String(i === work.at));
    one.classList.toggle("rated", i >= 0 && isRated(i));
    const quality = i >= 0 && work.ratings[i] != null ? h("small", {}, String(work.ratings[i])) : null;
    one.replaceChildren(...[i < 0 ? t("prompt") : letter(i), quality].filter(Boolean));
  }
  for (const scale of root.querySelectorAll("fieldset.scale")) {
    const given = scaleAnswers(scale.dataset.kind)[scale.dataset.scale];
    for (const input of scale.querySelectorAll("input")) input.checked = given != null && Number(input.value) === given;
  }
  const answers = flagAnswers();
  for (const row of root.querySelectorAll(".flag")) {
    const given = answers[row.dataset.flag];
    row.dataset.given = given == null ? "" : given ? "yes" : "no";
    for (const one of row.querySelectorAll(".answer")) one.setAttribute("aria-pressed", String(String(given) === one.dataset.value));
  }
  const part = (name) => find('[data-part="' + name + '"]');
  if (part("open")) part("open").textContent = t("unanswered", activeFlags().filter((flag) => answers[flag.id] == null).length);
  if (part("previous")) {
    part("rated").textContent = t("rated", outputs().filter(isRated).length, numOutputs());
    part("previous").disabled = work.at <= (hasPromptQuestions() ? -1 : 0);
  }
  const after = work.at < numOutputs() - 1 ? "next" : stepsOf().at(-1) === "rate" ? "submit" : "to_rank";
  part("next").replaceChildren(t(after), kbd("⏎"));
}

function goTo(i) {
  if (i < (hasPromptQuestions() ? -1 : 0) || i >= numOutputs()) return;
  work.at = i;
  draw();
  find(".read .scroll").scrollTop = 0;
  toTop();
  announce(i < 0 ? t("prompt") : t("output", letter(i)));
}

function next() {
  if (work.at >= 0 && !isRated(work.at)) return showMissing(work.at);
  if (work.at < 0 && !isPromptRated()) return showMissing(-2);
  if (work.at < numOutputs() - 1) return goTo(work.at + 1);
  if (stepsOf().at(-1) === "rate") return finish();
  goToStep("rank");
}
