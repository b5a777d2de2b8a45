// Small figures drawn as SVG: bars over days, shares with intervals, means over positions.
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child != null) made.append(child);
  return made;
}

const percent = (value) => (value == null ? "–" : (100 * value).toFixed(0) + " %");
const figure = (title, words, drawn, more) => h("figure", { class: "panel" }, h("figcaption", {}, h("h2", {}, title), words ? h("p", { class: "soft" }, words) : null), drawn, more);
const canvas = (height, name, ...parts) => svg("svg", { viewBox: "0 0 520 " + height, role: "img", "aria-label": name, class: "drawn" }, parts);
const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor || "start", class: "word" }, text);

// counts: {day: number}
function barsOverDays(counts, name) {
  const days = Object.keys(counts).slice(-30), most = Math.max(1, ...days.map((day) => counts[day]));
  const wide = 500 / Math.max(days.length, 1);
  const bar = (day, i) => {
    const tall = 110 * counts[day] / most;
    return svg("rect", { x: 10 + i * wide + 1, y: 130 - tall, width: Math.max(2, Math.min(wide - 2, 60)), height: tall, rx: 3, class: "bar" }, svg("title", {}, day + ": " + counts[day]));
  };
  const ends = days.length ? [label(10, 150, days[0]), days.length > 1 ? label(510, 150, days.at(-1), "end") : null] : [];
  return canvas(160, name, svg("line", { x1: 10, y1: 130.5, x2: 510, y2: 130.5, class: "axis" }), days.map(bar), ends, label(10, 14, String(most)));
}

// rows: [{name, rate: {value, low, high, num_pairs}}], shares from `from` to 1, with a line at `mark`
function sharesWithIntervals(rows, from, mark, name) {
  const x = (value) => 150 + 330 * (Math.max(value, from) - from) / (1 - from);
  const line = (row, i) => {
    const y = 30 + i * 26, { value, low, high } = row.rate;
    const parts = [label(140, y + 5, row.name.length > 18 ? row.name.slice(0, 17) + "…" : row.name, "end")];
    if (value == null) return [...parts, label(150, y + 5, "–")];
    return [...parts, svg("line", { x1: x(low), y1: y, x2: x(high), y2: y, class: "interval" }),
      svg("circle", { cx: x(value), cy: y, r: 5, class: "point" }, svg("title", {}, row.name + ": " + percent(value) + " [" + percent(low) + ", " + percent(high) + "], " + row.rate.num_pairs)),
      label(515, y + 5, percent(value), "end")];
  };
  const bottom = 30 + rows.length * 26;
  const ticks = [from, (from + 1) / 2, 1].map((value) => [svg("line", { x1: x(value), y1: 14, x2: x(value), y2: bottom - 8, class: "axis" }), label(x(value), bottom + 8, percent(value), "middle")]);
  return canvas(bottom + 16, name, ticks, svg("line", { x1: x(mark), y1: 14, x2: x(mark), y2: bottom - 8, class: "mark-line" }), rows.map(line));
}

// positions: [{position, rank, num}], rank 0 best to 1 worst
function ranksByPosition(positions, name) {
  const x = (i) => 115 + i * 370 / Math.max(1, positions.length - 1), y = (rank) => 20 + 110 * rank;
  const points = positions.map((one, i) => svg("circle", { cx: x(i), cy: y(one.rank), r: 5, class: "point" }, svg("title", {}, one.position + ": " + one.rank.toFixed(2) + " (" + one.num + ")")));
  const path = svg("polyline", { points: positions.map((one, i) => x(i) + "," + y(one.rank)).join(" "), class: "line" });
  return canvas(165, name, svg("line", { x1: 95, y1: y(0.5), x2: 500, y2: y(0.5), class: "axis" }), label(88, y(0) + 4, t("best"), "end"), label(88, y(1) + 4, t("worst"), "end"),
    path, points, positions.map((one, i) => label(x(i), 158, String(one.position), "middle")));
}

// flags: [{flag, yes, no, unanswered, alpha}]
function flagBars(flags) {
  const row = (one) => {
    const all = Math.max(1, one.yes + one.no + one.unanswered);
    const part = (count, kind) => h("span", { class: kind, style: "width:" + 100 * count / all + "%", title: kind + ": " + count });
    return h("tr", {}, h("th", { scope: "row" }, one.flag.replaceAll("_", " ")), h("td", {}, h("div", { class: "split" }, part(one.yes, "yes"), part(one.no, "no"))),
      h("td", { class: "number" }, String(one.yes)), h("td", { class: "number" }, String(one.no)), h("td", { class: "number" }, String(one.unanswered)),
      h("td", { class: "number" }, one.alpha == null ? "–" : one.alpha.toFixed(2)));
  };
  const heads = [t("o_flag"), "", t("yes"), t("no"), t("o_unanswered"), "α"].map((word) => h("th", { scope: "col" }, word));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_flags") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, flags.map(row))));
}

// The owner's page: progress, agreement, people, and their actions.
let me = null, task = null, overview = null;

const number = (value) => (value == null ? "–" : value.toFixed(2));
const tile = (value, words, more) => h("div", { class: "tile panel" }, h("b", {}, value), h("span", {}, words), more ? h("small", { class: "soft" }, more) : null);
const interval = (rate) => (rate.low == null ? "" : "95 %: " + percent(rate.low) + " – " + percent(rate.high) + ", n = " + rate.num_pairs);

function tiles(report) {
  const kinds = Object.entries(report.kinds).map(([kind, count]) => count + " " + kind).join(", ");
  return h("div", { class: "tiles" },
    tile(String(report.num_rankings), t("o_rankings"), kinds),
    tile(String(overview.open), t("o_open"), report.num_tasks + " " + t("o_tasks")),
    tile(String(report.num_pairs), t("o_pairs")),
    tile(percent(report.agreement.value), t("o_agreement"), interval(report.agreement)),
    tile(number(report.tau_b), t("o_tau"), t("o_ties", percent(report.ties.both), percent(report.ties.one))),
    tile(number(report.alpha_ratings), t("o_alpha")));
}

function peopleTable(report) {
  const accounts = Object.fromEntries(overview.people.map((one) => [one.name, one]));
  const names = [...new Set([...report.annotators.map((one) => one.name), ...overview.people.map((one) => one.name), ...Object.keys(overview.withdrawn)])];
  const line = (name) => {
    const did = report.annotators.find((one) => one.name === name), account = accounts[name];
    const cells = did ? [String(did.num_rankings), did.seconds == null ? "–" : Math.round(did.seconds) + " s", percent(did.agreement.value), percent(did.gold.value),
      percent(did.model.value), percent(did.tie_rate), percent(did.first_wins.value), percent(did.contradictions)] : ["0", "–", "–", "–", "–", "–", "–", "–"];
    const warnings = did ? did.warnings.map((warning) => h("div", { class: "warning" }, warning)) : [];
    if (account && account.screening) warnings.unshift(h("div", { class: account.screening === "failed" ? "warning" : "soft" }, t("o_screening_" + account.screening)));
    if (account && !account.is_active) warnings.unshift(h("div", { class: "soft" }, t("o_closed")));
    if (overview.withdrawn[name]) warnings.unshift(h("div", { class: "soft" }, t("o_withdrawn", overview.withdrawn[name])));
    const doing = name === overview.name ? null : button(t("o_change"), () => showPerson(name, account), { class: "quiet", "aria-label": t("o_change") + " " + name });
    return h("tr", {}, h("th", { scope: "row" }, name, h("small", { class: "soft" }, " " + (account ? account.role : did ? did.kind : "")), warnings), cells.map((cell) => h("td", { class: "number" }, cell)), h("td", {}, doing));
  };
  const heads = ["o_name", "o_rankings", "o_seconds", "o_agrees", "o_gold", "o_model", "o_tied", "o_first", "o_odd", "o_do"].map((key) => h("th", { scope: "col" }, t(key)));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_people") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, names.map(line))));
}

function judgesTable(judges) {
  const line = (one) => h("tr", {}, h("th", { scope: "row" }, one.name, one.warnings.map((warning) => h("div", { class: "warning" }, warning))),
    [String(one.num_rankings), percent(one.agreement.value), number(one.kappa), number(one.tau_b), percent(one.followed_position.value), percent(one.first_wins.value), percent(one.longer_wins.value)]
      .map((cell) => h("td", { class: "number" }, cell)));
  const heads = ["o_name", "o_rankings", "o_agrees", "κ", "τ-b", "o_swapped", "o_first", "o_longer"].map((key) => h("th", { scope: "col" }, key.startsWith("o_") ? t(key) : key));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_judges") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, judges.map(line))));
}

function draw() {
  const { report } = overview;
  const rates = (all) => Object.entries(all).map(([name, rate]) => ({ name, rate }));
  const people = report.annotators.map((one) => ({ name: one.name, rate: one.agreement }));
  const gold = report.annotators.filter((one) => one.gold.value != null).map((one) => ({ name: one.name, rate: one.gold }));
  const model = report.annotators.filter((one) => one.model.value != null).map((one) => ({ name: one.name, rate: one.model }));
  const disputed = report.disputed.map((one) => h("li", {}, h("a", { class: "earlier", href: "/?settle=" + encodeURIComponent(one.task) },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, percent(one.agreement)))));
  const settled = report.settled.map((one) => h("li", {}, h("button", { type: "button", class: "earlier", onclick: () => showSettled(one.task) },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, one.by))));
  find(".overview").replaceChildren(tiles(report),
    h("div", { class: "figures" },
      figure(t("o_per_day"), t("o_per_day_words"), barsOverDays(report.per_day, t("o_per_day"))),
      figure(t("o_agreement"), t("o_agreement_words"), sharesWithIntervals(people, 0.4, 0.73, t("o_agreement"))),
      gold.length ? figure(t("o_gold"), t("o_gold_words"), sharesWithIntervals(gold, 0.4, 0.75, t("o_gold"))) : "",
      model.length ? figure(t("o_model"), t("o_model_words"), sharesWithIntervals(model, 0.4, report.model.value, t("o_model"))) : "",
      figure(t("o_category"), null, sharesWithIntervals(rates(report.by_category), 0.4, 0.73, t("o_category"))),
      report.positions.length ? figure(t("o_position"), t("o_position_words"), ranksByPosition(report.positions, t("o_position"))) : ""),
    figure(t("o_people"), null, peopleTable(report), h("div", { class: "actions" }, button(t("o_invite"), () => invite("annotator")), button(t("o_invite_reviewer"), () => invite("reviewer")))),
    overview.held.length ? figure(t("o_held"), t("o_held_words"), heldTable()) : "",
    report.judges.length ? figure(t("o_judges"), t("o_judges_words"), judgesTable(report.judges)) : "",
    report.flags.length ? figure(t("o_flags"), t("o_flags_words"), flagBars(report.flags)) : "",
    figure(t("o_disputed"), t("o_disputed_words"), disputed.length ? h("ul", { class: "list" }, disputed) : h("p", { class: "soft" }, t("recent_none"))),
    settled.length ? figure(t("o_settled"), t("o_settled_words"), h("ul", { class: "list" }, settled)) : "");
  find(".done").textContent = overview.paused ? t("paused") : "";
  drawOwnerTools();
}

function drawOwnerTools() {
  const download = (form, words) => h("a", { class: "quiet", href: "/export/" + form, download: true }, words);
  const menu = h("details", { class: "menu" }, h("summary", { class: "quiet" }, t("o_export")), h("div", { class: "menu-items" },
    download("jsonl", "JSON lines"), download("trl", "TRL"), download("label-studio", "Label Studio"), download("argilla", "Argilla"), download("audit", t("o_audit"))));
  find(".tools").replaceChildren(h("a", { class: "quiet", href: "/" }, t("o_room")), button(overview.paused ? t("o_resume") : t("o_pause"), togglePause, { class: "quiet" }),
    button(t("look_again"), load, { class: "quiet" }), button(t("theme"), () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"), { class: "quiet" }), menu);
}

async function ask(name, message) {
  try {
    const reply = await call(name, message);
    if (!reply.error) return reply;
    notice(reply.error);
  } catch (error) { showError(error); }
  return null;
}

async function togglePause() {
  const reply = await ask("pause", { paused: !overview.paused });
  if (!reply) return;
  overview.paused = reply.paused;
  draw();
}

async function invite(role) {
  const reply = await ask("invite", { role });
  if (!reply) return;
  const field = h("input", { class: "line", type: "text", readonly: true, "aria-label": t("o_link"), value: location.origin + reply.path, onfocus: (event) => event.target.select() });
  openDialog(t("o_link"), h("p", { class: "soft" }, t("o_link_words")), field, closing());
}

// Who holds a task now, the longest idle first.
function heldTable() {
  const minutes = (seconds) => t("o_minutes", Math.floor(seconds / 60));
  const line = (one) => h("tr", {}, h("th", { scope: "row" }, one.annotator), h("td", { class: "words", dir: "auto" }, one.prompt), [one.held_s, one.idle_s, one.left_s].map((value) => h("td", { class: "number" }, minutes(value))),
    h("td", {}, button(t("o_release"), async () => { if (await ask("release", { account: one.annotator })) load(); }, { class: "quiet", "aria-label": t("o_release") + ", " + one.annotator })));
  const heads = ["o_name", "prompt", "o_since", "o_idle", "o_left", "o_do"].map((key) => h("th", { scope: "col", class: key === "prompt" ? "words" : null }, t(key)));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_held") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, overview.held.map(line))));
}

// What the owner does about a person, each of which can be done the other way round.
function showPerson(name, account) {
  const after = async (action, message) => {
    closeDialog();
    const reply = await ask(action, { account: name, ...message });
    if (reply) await load();
    return reply;
  };
  const withdrawAll = async () => {
    const reply = await after("withdraw");
    if (reply) notice(t("o_withdrew", reply.number, name), button(t("o_restore"), restoreAll));
  };
  const restoreAll = async () => {
    const reply = await after("restore");
    if (reply) notice(t(reply.surplus ? "o_restored_surplus" : "o_restored", reply.number, reply.surplus));
  };
  const limit = account ? h("input", { class: "line", type: "text", inputmode: "numeric", id: "owner-limit", value: account.daily_limit ?? "" }) : null;
  const change = (active) => after("change_account", { active, daily_limit: limit.value.trim() ? Number(limit.value) : null });
  const canChange = account && account.role !== "owner";
  openDialog(name, canChange ? [h("label", { for: "owner-limit" }, t("o_limit")), limit] : null,
    h("div", { class: "reasons" }, overview.answered[name] ? button(t("o_withdraw"), withdrawAll) : null, overview.withdrawn[name] ? button(t("o_restore"), restoreAll) : null,
      canChange && account.is_active ? button(t("o_close_account"), () => change(false)) : null, canChange && !account.is_active ? button(t("o_open_account"), () => change(true)) : null,
      canChange && account.screening === "failed" ? button(t("o_admit"), () => after("admit")) : null),
    h("div", { class: "walk" }, button(t("cancel"), closeDialog), canChange ? button(t("o_keep"), () => change(account.is_active), { class: "button primary" }) : null));
}

async function showSettled(name) {
  const reply = await ask("compare", { task: name });
  if (!reply) return;
  const read = (content) => h("div", { class: "text", dir: "auto", html: content || t("empty") });
  const heads = ["", ...reply.annotators].map((word) => h("th", { scope: "col" }, word));
  const line = (one) => h("tr", {}, h("td", {}, h("small", { class: "soft" }, one.model), read(one.html)), one.ranks.map((rank) => h("td", { class: "number" }, String(rank))));
  openDialog(t("o_settled"), reply.turns.map((turn) => h("div", { class: "turn" }, h("h3", {}, t("role_" + turn.role)), read(turn.html))), h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_settled") },
    h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, reply.outputs.map(line)))), closing());
}

async function load() {
  const reply = await ask("overview");
  if (!reply) return;
  notice("");
  overview = reply;
  me = { name: reply.name };
  draw();
}

load();
