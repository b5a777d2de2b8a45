// Step 2: all outputs in order. Rows of the board are ranks; outputs in one row are tied.
function rankPanels() {
  const card = (i) => h("article", { class: "card panel", "data-output": String(i), "aria-label": t("output", letter(i)), onclick: () => select(i) },
    h("header", {}, h("h3", {}, t("output", letter(i))), qualityMark(i), h("span", { class: "gap" }), h("span", { class: "soft", "data-part": "rank" })), givenRanks(i),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("output", letter(i)) }, text(task.outputs[i])));
  return [
    h("section", { class: "cards", "aria-label": t("rank") }, outputs().map(card)),
    h("section", { class: "board panel", "aria-label": t("rank") },
      h("div", { class: "rows" }), h("p", { class: "order", "data-part": "order" }), h("ul", { class: "odd", "data-part": "odd" }),
      h("div", { class: "walk" }, stepsOf().length > 1 ? button(t("back"), () => goToStep("rate")) : h("span"),
        button([t("submit"), kbd("Ctrl ⏎")], finish, { class: "button primary", "data-part": "submit" }))),
  ];
}

// The ranks of the annotators whose disagreement is settled here.
function givenRanks(i) {
  return task.given ? h("p", { class: "given" }, t("given"), task.given.map((ranks) => h("kbd", {}, String(ranks[i])))) : null;
}

function qualityMark(i) {
  const given = work.ratings[i];
  return given == null ? null : h("span", { class: "mark", "data-level": String(given), "aria-label": words(form.quality.text) + " " + given }, String(given));
}

function chip(i) {
  const where = rankOf(i) < 0 ? t("unranked") : t("tier", rankOf(i) + 1);
  return h("button", {
    type: "button", class: "chip", "data-output": String(i), "aria-pressed": String(i === work.selected),
    "aria-label": t("output", letter(i)) + ", " + where, onpointerdown: (event) => startDrag(event, i),
    onclick: () => select(i),
  }, h("b", {}, letter(i)), h("span", { class: "words" }, task.outputs[i].snippet || t("empty")), qualityMark(i));
}

// Where outputs wait to be ranked.
function tray(left) {
  const seed = form.quality && form.seed_from_quality && left.length
    ? button([t("seed"), kbd("Q")], seedFromQuality, { class: "quiet" }) : null;
  return h("div", { class: "row tray", "data-tier": "-1", onclick: (event) => { if (!event.target.closest("button")) moveToTier(work.selected, -1); } },
    h("div", { class: "label" }, left.length ? t("tray") : t("all_ranked"), h("span", { class: "gap" }), seed),
    left.length ? h("div", { class: "slots" }, left.map(chip)) : null);
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
  paintSelected();
}

function paintSelected() {
  for (const one of root.querySelectorAll(".card, .chip")) {
    const i = Number(one.dataset.output), isIt = i === work.selected;
    one.classList.toggle("selected", isIt);
    if (one.classList.contains("chip")) one.setAttribute("aria-pressed", String(isIt));
    else one.querySelector('[data-part="rank"]').textContent = rankOf(i) < 0 ? t("unranked") : t("tier", rankOf(i) + 1);
  }
}

function select(i) {
  work.selected = (i + numOutputs()) % numOutputs();
  paintSelected();
  const card = find('.card[data-output="' + work.selected + '"]');
  if (innerWidth > 900) card.scrollIntoView({ block: "nearest" });
  announce(t("selected", letter(work.selected), rankOf(work.selected) < 0 ? t("unranked") : t("tier", rankOf(work.selected) + 1)));
}

// One rank up (-1) or down (+1); an unranked output enters from the end it comes from.
function move(by) {
  const i = work.selected, from = rankOf(i), last = numOutputs() - 1;
  const to = from < 0 ? (by > 0 ? 0 : last) : Math.min(last, Math.max(0, from + by));
  if (to !== from) moveToTier(i, to);
}

// Drag and drop by pointer events: mouse, pen and finger take one path. A short press is a click.
function startDrag(press, i) {
  if (press.button) return;
  const held = press.currentTarget;
  let ghost = null, over = null, scroll = 0;
  const isSame = (event) => event.pointerId === press.pointerId;
  const rowAt = (x, y) => document.elementFromPoint(x, y)?.closest?.(".room [data-tier]");

  function lift() {
    ghost = held.cloneNode(true);
    ghost.classList.add("ghost");
    ghost.style.width = held.offsetWidth + "px";
    root.append(ghost);
    held.classList.add("lifted");
    root.classList.add("dragging");
  }

  function moved(event) {
    if (!isSame(event)) return;
    if (!ghost && Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < 6) return;
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

  const scroller = setInterval(() => {
    if (scroll) (innerWidth > 900 ? find(".rows") : document.scrollingElement).scrollBy(0, scroll);
  }, 16);

  function dropped(event) {
    if (!isSame(event)) return;
    clearInterval(scroller);
    removeEventListener("pointermove", moved);
    removeEventListener("pointerup", dropped);
    removeEventListener("pointercancel", dropped);
    ghost?.remove();
    held.classList.remove("lifted");
    root.classList.remove("dragging");
    over?.classList.remove("over");
    if (event.type !== "pointerup") return;
    if (!ghost) return select(i);
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
}
