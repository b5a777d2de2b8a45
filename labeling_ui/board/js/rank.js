// Step 2: all outputs in order. Rows of the board are ranks; outputs in one row are tied.
function rankPanels() {
  return [
    readingPanel(outputs().map(rankCard)),
    h("section", { class: "board panel", "aria-label": t("rank"), style: "--num-outputs:" + numOutputs() + ";--tray-lines:" + Math.ceil(numOutputs() / 5) },
      h("div", { class: "rows" }), h("p", { class: "order", "data-part": "order" }), h("ul", { class: "odd", "data-part": "odd" }),
      h("div", { class: "walk" }, stepsOf().length > 1 ? button(t("back"), () => goToStep("rate")) : task.kind === "adjudication" ? button(t("show_given"), showGiven, { "data-part": "given" }) : h("span"),
        button([t("submit"), kbd("Ctrl ⏎")], finish, { class: "button primary", "data-part": "submit" }))),
  ];
}

// The selected card is as high as the page and has the whole text, the others show how theirs begins.
function rankCard(i) {
  const put = (name, label, onclick) => button(label, (event) => { event.stopPropagation(); onclick(); }, { class: "quiet " + name, "aria-label": t("compare") + ": " + t("output", letter(i)) });
  return h("article", { class: "card panel", "data-output": String(i), "aria-label": t("output", letter(i)), onclick: () => select(i),
    onpointerdown: (event) => startDrag(event, i), ondragstart: (event) => event.preventDefault() },
  h("header", {}, h("h3", {}, t("output", letter(i))), qualityMark(i), h("span", { class: "soft", "data-part": "rank" }), h("span", { class: "gap" }),
    put("compare_one", [t("compare"), kbd("V")], () => putBeside(nextToCompare())), put("put_beside", t("compare"), () => putBeside(i))),
  givenRanks(i), scrollPane(i));
}

// The ranks of the annotators whose disagreement is settled here; the reviewer ranks without them first.
async function showGiven() {
  const asked = task;
  let reply;
  try { reply = await call("others_ranks", { token: task.token, tiers: filled() }); } catch (error) { return showError(error); }
  if (reply.error) return notice(reply.error);
  asked.given = reply.given;
  if (asked === task) draw();
}

function givenRanks(i) {
  return task.given ? h("p", { class: "given" }, t("given"), task.given.map((ranks) => h("kbd", {}, String(ranks[i])))) : null;
}

function qualityMark(i) {
  const given = work.ratings[i];
  return given == null ? null : h("span", { class: "mark", "data-level": String(given), "aria-label": words(form.quality.text) + " " + given }, String(given));
}

const rankInWords = (i) => (rankOf(i) < 0 ? t("unranked") : t("tier", rankOf(i) + 1));

function chip(i) {
  return h("button", {
    type: "button", class: "chip", "data-output": String(i), "aria-pressed": String(i === work.selected),
    "aria-label": t("output", letter(i)) + ", " + rankInWords(i), onpointerdown: (event) => startDrag(event, i),
    onclick: (event) => (event.shiftKey ? putBeside(i) : select(i)),
  }, h("b", {}, letter(i)), h("span", { class: "words" }, task.outputs[i].snippet || t("empty")), qualityMark(i));
}

// Where outputs wait to be ranked.
function tray(left) {
  const seed = form.quality && form.seed_from_quality && left.length
    ? button([t("seed"), kbd("Q")], seedFromQuality, { class: "quiet" }) : null;
  return h("div", { class: "row tray", "data-tier": "-1", onclick: (event) => { if (!event.target.closest("button")) moveToTier(work.selected, -1); } },
    h("div", { class: "label" }, left.length ? t("tray") : t("all_ranked"), h("span", { class: "gap" }), seed),
    h("div", { class: "slots" }, left.map(chip)));
}

// A rank; a click on its row puts the selected output there, which is how a finger ranks.
function row(tier, chips, hint) {
  const last = numOutputs() - 1;
  const end = tier === 0 ? t("best") : tier === last ? t("worst") : "";
  return h("div", {
    class: "row" + (chips.length > 1 ? " many" : ""), "data-tier": String(tier), style: "--depth:" + tier / Math.max(1, last),
    onclick: (event) => { if (!event.target.closest(".chip")) rankSelected(tier); },
  }, h("div", { class: "label" }, h("kbd", {}, String(tier + 1)), h("span", {}, end)),
  h("div", { class: "slots" }, chips.length ? chips : h("span", { class: "soft hint" }, hint)));
}

function paintRank() {
  const left = unranked();
  const hadFocus = document.activeElement.closest?.(".chip")?.dataset.output;
  find(".rows").replaceChildren(tray(left),
    ...work.tiers.map((tier, n) => row(n, tier.map(chip), left.length && n === 0 ? t("drop") : "")));
  if (hadFocus != null) find('.chip[data-output="' + hadFocus + '"]').focus({ preventScroll: true });
  const part = (name) => find('[data-part="' + name + '"]');
  part("order").replaceChildren(h("b", {}, orderInWords()),
    h("span", { class: "soft" }, left.length ? t("still", left.length) : t("summary", ...countPairs())));
  part("odd").replaceChildren(...contradictions().slice(0, 3).map(([a, b]) =>
    h("li", {}, t("odd", letter(a), work.ratings[a], letter(b), work.ratings[b]))));
  part("submit").disabled = left.length > 0;
  if (part("given")) Object.assign(part("given"), { disabled: left.length > 0, hidden: Boolean(task.given) });
  paintSelected();
  bringCard();
}

function paintSelected() {
  const grown = pairAtHand() || [work.selected];
  for (const one of root.querySelectorAll(".card, .chip")) {
    const i = Number(one.dataset.output), isIt = i === work.selected;
    one.classList.toggle("selected", isIt);
    one.classList.toggle("grown", grown.includes(i));
    if (one.classList.contains("chip")) one.setAttribute("aria-pressed", String(isIt));
    else {
      one.querySelector('[data-part="rank"]').textContent = rankOf(i) < 0 ? "" : t("tier", rankOf(i) + 1);
      one.querySelector(".scroll").tabIndex = grown.includes(i) || isNarrow() ? 0 : -1;
    }
  }
  showPair();
}

// On a phone the cards stand in a row.
function bringCard() {
  if (isNarrow() && beside == null) find(".cards").scrollLeft = cardOf(work.selected).offsetLeft - cardOf(0).offsetLeft;
}

// Select an output. Beside another, it takes the place of the one that was selected.
function select(i, isSwiped = false) {
  const last = work.selected;
  work.selected = (i + numOutputs()) % numOutputs();
  if (last !== work.selected) before = last;
  if (beside === work.selected) beside = last === beside ? null : last;
  paintSelected();
  if (!isSwiped) bringCard();
  announce(t("selected", letter(work.selected), rankInWords(work.selected)));
}

// One rank up (-1) or down (+1); an unranked output enters from the end it comes from.
function move(by) {
  const i = work.selected, from = rankOf(i), last = numOutputs() - 1;
  const to = from < 0 ? (by > 0 ? 0 : last) : Math.min(last, Math.max(0, from + by));
  if (to !== from) moveToTier(i, to);
}

// Drag and drop by pointer events: mouse, pen and finger take one path. A short press is a click. A finger on a
// card scrolls its text, unless it stays put for a moment; the text of a grown card is for the mouse to select.
function startDrag(press, i) {
  const held = press.currentTarget, isCard = held.classList.contains("card");
  if (press.button || (isCard && press.target.closest("button, a, summary" + (held.classList.contains("grown") ? ", .text" : "")))) return;
  let ghost = null, over = null, scroll = 0;
  const isSame = (event) => event.pointerId === press.pointerId;
  const rowAt = (x, y) => document.elementFromPoint(x, y)?.closest?.(".room [data-tier]");
  const waits = isCard && press.pointerType === "touch";
  const ripening = waits ? setTimeout(lift, 350) : null;

  function lift() {
    ghost = chip(i);
    ghost.classList.add("ghost");
    ghost.style.transform = "translate(" + (press.clientX - 18) + "px," + (press.clientY - 18) + "px)";
    root.append(ghost);
    held.classList.add("lifted");
    root.classList.add("dragging");
  }

  function moved(event) {
    if (!isSame(event)) return;
    if (!ghost && Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < 6) return;
    if (!ghost && waits) return end();
    if (!ghost) lift();
    event.preventDefault();
    ghost.style.transform = "translate(" + (event.clientX - 18) + "px," + (event.clientY - 18) + "px)";
    const row = rowAt(event.clientX, event.clientY);
    if (row !== over) {
      over?.classList.remove("over");
      row?.classList.add("over");
      over = row;
    }
    scroll = event.clientY > innerHeight - 50 ? 10 : event.clientY < 60 ? -10 : 0;
  }

  const scroller = setInterval(() => { if (ghost && scroll) find(".rows").scrollBy(0, scroll); }, 16);
  const holdPage = (event) => { if (ghost) event.preventDefault(); };

  function end() {
    clearInterval(scroller);
    clearTimeout(ripening);
    removeEventListener("pointermove", moved);
    removeEventListener("pointerup", dropped);
    removeEventListener("pointercancel", dropped);
    removeEventListener("touchmove", holdPage);
    ghost?.remove();
    held.classList.remove("lifted");
    root.classList.remove("dragging");
    over?.classList.remove("over");
  }

  function dropped(event) {
    if (!isSame(event)) return;
    end();
    if (event.type !== "pointerup" || !ghost) return;
    const swallow = (click) => click.stopPropagation(); // a mouse clicks after a drag, a finger does not
    addEventListener("click", swallow, { capture: true });
    setTimeout(() => {
      removeEventListener("click", swallow, { capture: true });
      if (over) { work.selected = i; moveToTier(i, Number(over.dataset.tier)); }
    }, 0);
  }

  addEventListener("pointermove", moved, { passive: false });
  addEventListener("pointerup", dropped);
  addEventListener("pointercancel", dropped);
  addEventListener("touchmove", holdPage, { passive: false });
}
