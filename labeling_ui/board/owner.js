// The owner's page: how far, how well, who; and what can be done about it.
let me = null, task = null, shown = null;

const number = (value) => (value == null ? "–" : value.toFixed(2));
const tile = (value, words, more) => h("div", { class: "tile panel" }, h("b", {}, value), h("span", {}, words), more ? h("small", { class: "soft" }, more) : null);
const interval = (rate) => (rate.low == null ? "" : "95 %: " + percent(rate.low) + " – " + percent(rate.high) + ", n = " + rate.num_pairs);

function tiles(report) {
  const kinds = Object.entries(report.kinds).map(([kind, count]) => count + " " + kind).join(", ");
  return h("div", { class: "tiles" },
    tile(String(report.num_rankings), t("o_rankings"), kinds),
    tile(String(shown.open), t("o_open"), report.num_tasks + " " + t("o_tasks")),
    tile(String(report.num_pairs), t("o_pairs")),
    tile(percent(report.agreement.value), t("o_agreement"), interval(report.agreement)),
    tile(number(report.tau_b), t("o_tau"), t("o_ties", percent(report.ties.both), percent(report.ties.one))),
    tile(number(report.alpha_ratings), t("o_alpha")));
}

function peopleTable(report) {
  const accounts = Object.fromEntries(shown.people.map((one) => [one.name, one]));
  const names = [...new Set([...report.annotators.map((one) => one.name), ...shown.people.map((one) => one.name)])];
  const line = (name) => {
    const did = report.annotators.find((one) => one.name === name), account = accounts[name];
    const cells = did ? [String(did.num_rankings), did.seconds == null ? "–" : Math.round(did.seconds) + " s", percent(did.agreement.value), percent(did.gold.value),
      percent(did.model.value), percent(did.tie_rate), percent(did.first_wins.value), percent(did.contradictions)] : ["0", "–", "–", "–", "–", "–", "–", "–"];
    const remarks = did ? did.remarks.map((remark) => h("div", { class: "remark" }, remark)) : [];
    if (account && account.screening) remarks.unshift(h("div", { class: account.screening === "failed" ? "remark" : "soft" }, t("o_screening_" + account.screening)));
    const doing = account && account.role !== "owner" ? button(t("o_change"), () => askAccount(account), { class: "quiet", "aria-label": t("o_change") + " " + name }) : null;
    return h("tr", {}, h("th", { scope: "row" }, name, h("small", { class: "soft" }, " " + (account ? account.role : did.kind)), remarks), cells.map((cell) => h("td", { class: "number" }, cell)), h("td", {}, doing));
  };
  const heads = ["o_name", "o_rankings", "o_seconds", "o_agrees", "o_gold", "o_model", "o_tied", "o_first", "o_odd", "o_do"].map((key) => h("th", { scope: "col" }, t(key)));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_people") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, names.map(line))));
}

function draw() {
  const { report } = shown;
  const rates = (all) => Object.entries(all).map(([name, rate]) => ({ name, rate }));
  const people = report.annotators.map((one) => ({ name: one.name, rate: one.agreement }));
  const gold = report.annotators.filter((one) => one.gold.value != null).map((one) => ({ name: one.name, rate: one.gold }));
  const model = report.annotators.filter((one) => one.model.value != null).map((one) => ({ name: one.name, rate: one.model }));
  const disputed = report.disputed.map((one) => h("li", {}, h("button", { type: "button", class: "earlier", onclick: () => showDispute(one.task) },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, percent(one.agreement)))));
  find(".overview").replaceChildren(tiles(report),
    h("div", { class: "figures" },
      figure(t("o_per_day"), t("o_per_day_words"), barsOverDays(report.per_day, t("o_per_day"))),
      figure(t("o_agreement"), t("o_agreement_words"), sharesWithIntervals(people, 0.4, 0.73, t("o_agreement"))),
      gold.length ? figure(t("o_gold"), t("o_gold_words"), sharesWithIntervals(gold, 0.4, 0.75, t("o_gold"))) : "",
      model.length ? figure(t("o_model"), t("o_model_words"), sharesWithIntervals(model, 0.4, report.model.value, t("o_model"))) : "",
      figure(t("o_category"), null, sharesWithIntervals(rates(report.by_category), 0.4, 0.73, t("o_category"))),
      report.positions.length ? figure(t("o_position"), t("o_position_words"), placesByPosition(report.positions, t("o_position"))) : ""),
    figure(t("o_people"), null, peopleTable(report), h("div", { class: "actions" }, button(t("o_invite"), () => invite("annotator")), button(t("o_invite_reviewer"), () => invite("reviewer")))),
    report.flags.length ? figure(t("o_flags"), t("o_flags_words"), flagBars(report.flags)) : "",
    figure(t("o_disputed"), t("o_disputed_words"), disputed.length ? h("ul", { class: "list" }, disputed) : h("p", { class: "soft" }, t("recent_none"))));
  find(".done").textContent = shown.paused ? t("paused") : "";
  drawOwnerTools();
}

function drawOwnerTools() {
  const download = (form, words) => h("a", { class: "quiet", href: "/export/" + form, download: true }, words);
  const menu = h("details", { class: "menu" }, h("summary", { class: "quiet" }, t("o_export")), h("div", { class: "menu-items" },
    download("jsonl", "JSON lines"), download("trl", "TRL"), download("label-studio", "Label Studio"), download("argilla", "Argilla"), download("audit", t("o_audit"))));
  find(".tools").replaceChildren(h("a", { class: "quiet", href: "/" }, t("o_room")), button(shown.paused ? t("o_resume") : t("o_pause"), togglePause, { class: "quiet" }),
    button(t("look_again"), load, { class: "quiet" }), button(t("theme"), () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"), { class: "quiet" }), menu);
}

async function ask(name, asked) {
  try {
    const reply = await call(name, asked);
    if (!reply.error) return reply;
    notice(reply.error);
  } catch (error) { tellWhyNot(error); }
  return null;
}

async function togglePause() {
  const reply = await ask("pause", { paused: !shown.paused });
  if (!reply) return;
  shown.paused = reply.paused;
  draw();
}

async function invite(role) {
  const reply = await ask("invite", { role });
  if (!reply) return;
  const field = h("input", { class: "line", type: "text", readonly: true, "aria-label": t("o_link"), value: location.origin + reply.path, onfocus: (event) => event.target.select() });
  openDialog(t("o_link"), h("p", { class: "soft" }, t("o_link_words")), field, closing());
}

function askAccount(account) {
  const limit = h("input", { class: "line", type: "text", inputmode: "numeric", id: "owner-limit", value: account.daily_limit ?? "" });
  const change = async (active) => {
    const asked = { account: account.name, active, daily_limit: limit.value.trim() ? Number(limit.value) : null };
    closeDialog();
    if (await ask("change_account", asked)) load();
  };
  const admit = async () => { closeDialog(); if (await ask("admit", { account: account.name })) load(); };
  openDialog(account.name, h("label", { for: "owner-limit" }, t("o_limit")), limit,
    h("div", { class: "walk" }, button(t("o_close_account"), () => change(false)), account.screening === "failed" ? button(t("o_admit"), admit) : null, h("span", { class: "gap" }), button(t("o_keep"), () => change(true), { class: "button primary" })));
}

async function showDispute(name) {
  const reply = await ask("compare", { task: name });
  if (!reply) return;
  const heads = ["", ...reply.annotators].map((word) => h("th", { scope: "col" }, word));
  const line = (one) => h("tr", {}, h("th", { scope: "row", dir: "auto" }, one.text, h("small", { class: "soft" }, " " + one.model)), one.ranks.map((rank) => h("td", { class: "number" }, String(rank))));
  openDialog(t("o_disputed"), reply.history.map((turn) => h("p", { class: "soft", dir: "auto" }, turn)), h("p", { dir: "auto" }, reply.prompt), h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_disputed") },
    h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, reply.outputs.map(line)))),
    h("div", { class: "walk" }, button(t("close"), closeDialog), h("a", { class: "button primary", href: "/?settle=" + encodeURIComponent(name) }, t("o_settle"))));
}

async function load() {
  const reply = await ask("overview");
  if (!reply) return;
  notice("");
  shown = reply;
  me = { name: reply.name };
  draw();
}

load();
