// Two outputs side by side: the words that differ are marked, and both scroll together. While outputs are ranked
// any two can be; in a comparison the two are all there is, and one is better, or they are about equal.
const SIDES = [[[0], [1]], [[0, 1]], [[1], [0]]]; // A, equal, B, as ranks
let beside = null;       // the output beside the selected one
let before = null;       // the one that was selected before it
let hasMarks = true;
let changeAtHand = -1;
let differences = {};    // of this task, by pair

const pairAtHand = () => (work.step === "compare" ? [0, 1] : beside == null ? null : [work.selected, beside].sort());
const cardOf = (i) => find('.card[data-output="' + i + '"]');
const paneOf = (i) => cardOf(i).querySelector(".scroll");
const marksOf = (pane, n) => [...pane.querySelectorAll("mark" + (n == null ? "" : '[data-change="' + n + '"]'))];

// The cards of all outputs, over them what can be done with two.
function readingPanel(cards) {
  const tool = (word, key, onclick) => button([t(word), kbd(key)], onclick, { class: "quiet", "data-part": word });
  const step = (sign, word, by) => button(sign, () => goToChange(changeAtHand + by), { class: "quiet", "data-part": word, "aria-label": t(word), title: t(word) });
  return h("section", { class: "reading", "aria-label": t("compare") },
    h("div", { class: "pair-tools" }, h("span", { "data-part": "differences" }), step("‹", "previous_difference", -1), step("›", "next_difference", 1),
      h("span", { class: "gap" }), tool("marks", "M", toggleMarks), work.step === "rank" ? tool("one_alone", "V", () => putBeside(null)) : null),
    h("div", { class: "sheets" }, h("div", { class: "cards", [SWIPED]: onSwipe }, cards)));
}

// A text in its card. A finger or the mouse on one of two scrolls the other along.
function scrollPane(i) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("output", letter(i)), onscroll: (event) => scrollAlong(event.target) }, text(task.outputs[i]));
}

function comparePanels() {
  const card = (i) => h("article", { class: "card panel grown", "data-output": String(i), "aria-label": t("output", letter(i)) },
    h("header", {}, h("h3", {}, t("output", letter(i)))), scrollPane(i));
  const choices = [["a_better", "A"], ["equal", "0"], ["b_better", "B"]];
  const choice = ([word, key], side) => h("button", { type: "button", class: "button verdict", "data-side": String(side), onclick: () => judge(side) }, t(word), kbd(key));
  return [readingPanel(outputs().map(card)),
    h("section", { class: "board panel judged", "aria-label": t("which") },
      h("div", { class: "verdicts", role: "group", "aria-label": t("which") }, h("h2", {}, t("which")), choices.map(choice),
        noteField("task_note", t("task_note"), work.note, (value) => { work.note = value; })),
      h("div", { class: "walk" }, h("span", { class: "gap" }), button([t("submit"), kbd("⏎")], finish, { class: "button primary", "data-part": "submit" })))];
}

const chosenSide = () => SIDES.findIndex((side) => JSON.stringify(side) === JSON.stringify(filled()));

function judge(side) {
  change(() => { work.tiers = SIDES[side]; });
  announce(t(["a_better", "equal", "b_better"][side]));
}

function paintCompare() {
  const chosen = chosenSide();
  for (const one of root.querySelectorAll(".verdict")) one.setAttribute("aria-pressed", String(Number(one.dataset.side) === chosen));
  for (const card of root.querySelectorAll(".card")) card.classList.toggle("selected", chosen >= 0 && SIDES[chosen][0].includes(Number(card.dataset.output)));
  find('[data-part="submit"]').disabled = chosen < 0;
  showPair();
}

function compareKey(event, key) {
  const onControl = event.target.matches("button, a, summary");
  if (key === "a" || key === "1" || key === "arrowleft") judge(0);
  else if (key === "b" || key === "2" || key === "arrowright") judge(2);
  else if (digitOf(event) === 0 || key === "=") judge(1);
  else if (key === "n") find("[data-part=note]").focus();
  else if (key === "enter" && !onControl) finish();
  else return pairKey(key);
  return true;
}

function pairKey(key) {
  if (!pairAtHand()) return false;
  if (key === ".") goToChange(changeAtHand + 1);
  else if (key === ",") goToChange(changeAtHand - 1);
  else if (key === "m") toggleMarks();
  else return false;
  return true;
}

// Put an output beside the selected one, or (null) read that one alone again.
function putBeside(i) {
  beside = i === work.selected ? null : i;
  paintSelected();
  bringCard();
  if (beside == null) announce(t("selected", letter(work.selected), rankInWords(work.selected)));
}

const nextToCompare = () => (before != null && before !== work.selected ? before : (work.selected + 1) % numOutputs());

// Show the two, and mark what differs once the server has sent it; cards that are no longer one of two lose their marks.
async function showPair() {
  const reading = find(".reading"), pair = pairAtHand(), key = pair ? pair.join() : "", shown = reading.dataset.pair;
  if (shown === key) return;
  reading.dataset.pair = key;
  reading.classList.toggle("two", Boolean(pair));
  changeAtHand = -1;
  for (const i of shown ? shown.split(",") : []) fill(i, task.outputs[i]);
  if (!pair) return foldShared(outputs());
  find('[data-part="differences"]').textContent = "";
  foldShared(pair);
  const asked = task;
  try { differences[key] ??= await call("differences", { token: task.token, outputs: pair }); } catch (error) { return showError(error); }
  const reply = differences[key];
  if (asked !== task || find(".reading")?.dataset.pair !== key) return;
  if (reply.error) return notice(reply.error);
  pair.forEach((i, n) => fill(i, reply.outputs[n]));
  foldShared(pair);
  const line = t("beside", ...pair.map(letter)) + " · " + differencesInWords(reply);
  find('[data-part="differences"]').textContent = line;
  announce(line);
  if (work.step === "rank") goToChange(0, true); // there both were read before
}

function differencesInWords(reply) {
  const count = reply.changes[isRaw ? "plain" : "html"];
  if (reply.same) return t("same_text");
  if (count == null) return t("few_shared");
  return count ? t(count === 1 ? "one_difference" : "num_differences", count) : t("same_words");
}

const fill = (i, content) => paneOf(i).replaceChildren(text(content));

function toggleMarks() {
  hasMarks = !hasMarks;
  find(".reading").classList.toggle("without-marks", !hasMarks);
}

// Go to a change on both sides, at the same height; at first only where none is in sight.
function goToChange(n, atFirst = false) {
  const pair = pairAtHand(), panes = pair.map(paneOf);
  const count = Math.max(0, ...panes.flatMap((pane) => marksOf(pane).map((mark) => 1 + Number(mark.dataset.change))));
  if (!count) return;
  n = (n + count) % count;
  const marks = panes.map((pane) => marksOf(pane, n));
  if (!atFirst || !panes.every((pane, side) => isInSight(pane, marks[side][0]))) {
    panes.forEach((pane, side) => {
      const [mark] = marks[side];
      if (mark.closest(".wide")) mark.scrollIntoView({ block: "nearest", inline: "nearest" });
      setScroll(pane, pane.scrollTop + mark.getBoundingClientRect().top - pane.getBoundingClientRect().top - 0.35 * pane.clientHeight);
    });
  }
  if (atFirst) return;
  changeAtHand = n;
  for (const pane of panes) for (const mark of marksOf(pane)) mark.classList.toggle("at-hand", Number(mark.dataset.change) === n);
  const words = marks.map((side) => side.map((mark) => mark.textContent).join(" ") || t("nothing"));
  announce(t("difference", n + 1, count, ...words));
}

function isInSight(pane, mark) {
  const inner = mark.getBoundingClientRect(), outer = pane.getBoundingClientRect();
  return inner.top >= outer.top && inner.bottom <= outer.bottom;
}

// Both texts have the same change at the same height when it is read: between changes the way is divided evenly.
const expected = new WeakMap(); // where a text was scrolled to by the other one
function scrollAlong(pane) {
  const panes = pairAtHand()?.map(paneOf);
  if (!panes?.includes(pane)) return;
  const isEcho = Math.abs((expected.get(pane) ?? -9) - pane.scrollTop) < 2;
  expected.delete(pane);
  if (isEcho) return;
  const other = panes.find((one) => one !== pane);
  const share = pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);
  const [from, to] = [pane, other].map(levels);
  const at = pane.scrollTop + share * pane.clientHeight;
  const next = Math.max(1, from.findIndex((y) => y >= at));
  const part = (at - from[next - 1]) / Math.max(1, from[next] - from[next - 1]);
  setScroll(other, to[next - 1] + part * (to[next] - to[next - 1]) - share * other.clientHeight);
}

function setScroll(pane, top) {
  const old = pane.scrollTop;
  pane.scrollTop = top;
  if (pane.scrollTop !== old) expected.set(pane, pane.scrollTop);
}

// The heights of the changes in a text, from its beginning to its end.
function levels(pane) {
  const top = pane.getBoundingClientRect().top - pane.scrollTop, heights = [0];
  for (const mark of marksOf(pane)) heights[1 + Number(mark.dataset.change)] ??= mark.getBoundingClientRect().top - top;
  return [...heights, pane.scrollHeight];
}

// What all these texts begin or end with, block by block, is folded where it is long; what differs never is.
const FOLDED_CHARACTERS = 400;
function foldShared(indices) {
  const blocks = indices.map((i) => [...paneOf(i).firstChild.children]);
  const least = Math.min(...blocks.map((one) => one.length));
  const isAlike = (at) => blocks.every((one) => one.at(at).outerHTML === blocks[0].at(at).outerHTML);
  let head = 0, tail = 0;
  while (head < least - 1 && isAlike(head)) head += 1;
  while (head + tail < least - 1 && isAlike(-1 - tail)) tail += 1;
  for (const one of blocks) {
    fold(one.slice(0, head));
    fold(one.slice(one.length - tail));
  }
}

function fold(blocks) {
  const words = blocks.map((one) => one.textContent).join(" ");
  if (words.length < FOLDED_CHARACTERS || blocks[0].classList.contains("alike")) return;
  const count = words.trim().split(/\s+/).length;
  blocks[0].before(button(t("alike", count), unfold, { class: "quiet fold", "aria-expanded": "false" }));
  for (const block of blocks) block.classList.add("alike");
}

function unfold(event) {
  event.stopPropagation();
  const isOpen = find(".reading").classList.toggle("unfolded");
  for (const one of root.querySelectorAll(".fold")) one.setAttribute("aria-expanded", String(isOpen));
}

// On a phone a swipe brings the next output, and selects it once it has come to rest. Where a browser does not say
// when (scrollend), it has when nothing moved for a moment.
const SWIPED = "onscrollend" in window ? "onscrollend" : "onscroll";
let swipeTimer = null;
function onSwipe(event) {
  if (!isNarrow() || work.step !== "rank" || beside != null) return;
  const cards = event.currentTarget;
  clearTimeout(swipeTimer);
  swipeTimer = setTimeout(() => {
    const i = Math.round(cards.scrollLeft / cards.firstChild.offsetWidth);
    if (cards.isConnected && i !== work.selected) select(Math.min(i, numOutputs() - 1), true);
  }, SWIPED === "onscrollend" ? 0 : 120);
}
