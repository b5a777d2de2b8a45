// Two policies' outputs side by side: one is better, or they are about equal.
const SIDES = [[[0], [1]], [[0, 1]], [[1], [0]]]; // A, equal, B, as ranks

function comparePanels() {
  const card = (i) => h("article", { class: "card panel side", "data-output": String(i), "aria-label": t("output", letter(i)) },
    h("header", {}, h("h3", {}, t("output", letter(i)))),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("output", letter(i)) }, text(task.outputs[i])));
  const choices = [["a_better", "A"], ["equal", "0"], ["b_better", "B"]];
  const choice = ([word, key], side) => h("button", { type: "button", class: "button verdict", "data-side": String(side), onclick: () => judge(side) }, t(word), kbd(key));
  return [h("section", { class: "sides", "aria-label": t("compare") }, outputs().map(card)),
    h("section", { class: "panel judged", "aria-label": t("compare") },
      h("div", { class: "verdicts", role: "group", "aria-label": t("which") }, h("h2", {}, t("which")), h("div", { class: "verdict-row" }, choices.map(choice))),
      h("div", { class: "walk" }, noteField("task_note", t("task_note"), work.note, (value) => { work.note = value; }),
        button([t("submit"), kbd("⏎")], finish, { class: "button primary", "data-part": "submit" })))];
}

const chosenSide = () => SIDES.findIndex((side) => JSON.stringify(side) === JSON.stringify(filled()));

function judge(side) {
  change(() => { work.tiers = SIDES[side]; });
  announce(t(["a_better", "equal", "b_better"][side]));
}

function paintCompare() {
  const chosen = chosenSide();
  for (const one of root.querySelectorAll(".verdict")) one.setAttribute("aria-pressed", String(Number(one.dataset.side) === chosen));
  for (const card of root.querySelectorAll(".side")) card.classList.toggle("selected", chosen >= 0 && SIDES[chosen][0].includes(Number(card.dataset.output)));
  find('[data-part="submit"]').disabled = chosen < 0;
}

function compareKey(event, key) {
  const onControl = event.target.matches("button, a, summary");
  if (key === "a" || key === "1" || key === "arrowleft") judge(0);
  else if (key === "b" || key === "2" || key === "arrowright") judge(2);
  else if (digitOf(event) === 0 || key === "=") judge(1);
  else if (key === "n") find("[data-part=note]").focus();
  else if (key === "enter" && !onControl) finish();
  else return false;
  return true;
}
