// The tools of the top bar and their dialogs: keys, guidelines, skipping, earlier tasks.
const PAIR_KEYS = [[", .", "key_change"], ["M", "key_marks"]];
const KEYS = {
  rate: [["1 – 7", "key_quality"], ["A – Z", "key_flag"], ["0", "key_rest"], ["⏎", "key_next"], ["← →", "key_moves"], ["N", "key_note"], ["P", "key_prompt"], ["↑ ↓  PgUp PgDn", "key_scroll"]],
  rank: [["A – I", "key_select"], ["1 – 9", "key_place"], ["↑ ↓", "key_move"], ["0  ⌫", "key_unrank"], ["Q", "key_seed"], ["V", "key_compare"], ["⇧ A – I", "key_beside"], ...PAIR_KEYS, ["PgUp PgDn", "key_scroll"]],
  compare: [["A  ←", "a_better"], ["B  →", "b_better"], ["0  =", "equal"], ...PAIR_KEYS, ["N", "key_note"], ["↑ ↓  PgUp PgDn", "key_scroll"], ["⏎", "submit"]],
  write: [["Esc", "key_leave"]],
};
const KEYS_EVERYWHERE = [["Ctrl Z", "key_undo"], ["Ctrl ⇧ Z", "key_redo"], ["Ctrl ⏎", "key_send"], ["R", "key_raw"], ["X", "key_context"], ["L", "key_guide"], ["?", "key_help"]];

function showKeys() {
  const lines = [...(task ? stepsOf().flatMap((step) => KEYS[step]) : []), ...KEYS_EVERYWHERE];
  const list = h("dl", { class: "keymap" }, lines.map(([keys, text]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, t(text))]));
  openDialog(t("keys"), list, closing());
}

let guidelines = {}, isLive = false;
function showGuideline() {
  const guideline = guidelines[task ? task.kind : "ranking"];
  openDialog(t("guideline"), h("div", { class: "text", html: guideline[language] ?? Object.values(guideline)[0] }), closing());
}

function showSkip() {
  if (!task || isSending) return;
  const other = h("input", { type: "text", class: "line", maxlength: "400", "aria-label": t("skip_other"), placeholder: t("skip_other") });
  const skip = (why) => {
    if (!why.trim()) return other.focus();
    closeDialog();
    focusWork();
    submit(why.trim());
  };
  other.addEventListener("keydown", (event) => { if (event.key === "Enter") skip(other.value); });
  openDialog(t("skip_title"), h("p", { class: "soft" }, t("skip_why")),
    h("div", { class: "reasons" }, form.skip_reasons.map((why) => button(words(why), () => skip(named(why))))), other,
    h("div", { class: "walk" }, button(t("cancel"), closeDialog), h("span", { class: "gap" }),
      button(t("skip"), () => skip(other.value), { class: "button primary" })));
}

async function showRecent() {
  let reply;
  try { reply = await call("recent"); } catch (error) { return showError(error); }
  const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const line = (one) => h("li", {}, h("button", { type: "button", class: "earlier", onclick: () => { closeDialog(); reopen(one.token); } },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, when(one.time) + (one.skipped ? " · " + t("skipped_mark") : ""))));
  const list = reply.answers.length ? h("ul", { class: "list" }, reply.answers.map(line)) : h("p", { class: "soft" }, t("recent_none"));
  openDialog(t("recent_title"), list, closing());
}

async function reopen(token) {
  clearTimeout(saveTimer);
  await save();
  let reply;
  try { reply = await call("reopen", { token }); } catch (error) { return showError(error); }
  if (reply.error) return notice(reply.error);
  toast("");
  localStorage.removeItem("labeling/draft/" + me.name + "/" + token);
  receive(reply);
  if (task.amends) notice(t("amending"), button(t("go_on"), () => { notice(""); load("next_task"); }));
}

function signOut() {
  const sent = h("form", { method: "post", action: "/logout" });
  root.append(sent);
  sent.submit();
}

function drawTools() {
  const tool = (word, onclick, key, where) => button([t(word), key ? kbd(key) : null].filter(Boolean), onclick, { class: "quiet " + (where || "") });
  const theme = () => setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  const speak = h("button", { type: "button", class: "quiet", lang: language === "en" ? "de" : "en", onclick: () => {
    localStorage.setItem("labeling/language", language === "en" ? "de" : "en");
    location.reload();
  } }, language === "en" ? "Deutsch" : "English");
  const asking = (where) => [isLive ? tool("own_prompt", () => showOwnPrompt(), null, where) : null, me.role === "annotator" ? null : tool("disputes", showDisputes, null, where)].filter(Boolean);
  const more = h("details", { class: "menu" }, h("summary", { class: "quiet", "aria-label": t("menu") + ", " + me.name }, me.name),
    h("div", { class: "menu-items", onclick: () => { more.open = false; } }, asking("only-narrow"), tool("theme", theme), speak,
      me.role === "owner" ? h("a", { class: "quiet", href: "/owner/" }, t("owner")) : null, tool("sign_out", signOut)));
  const arrow = (sign, word, onclick) => button(sign, onclick, { class: "quiet only-touch", "data-part": word, "aria-label": t("key_" + word), title: t("key_" + word) });
  const tools = [...asking("only-wide"), arrow("↶", "undo", undo), arrow("↷", "redo", redo), tool("recent", showRecent),
    tool("guideline", showGuideline, "L"), tool("keys", showKeys, "?", "no-touch"), tool("skip", showSkip), more];
  find(".tools").replaceChildren(...tools);
}

// Tasks on request: fresh outputs on one's own prompt, and disagreements to settle.
async function requestTask(name, message) {
  clearTimeout(saveTimer);
  await save();
  let reply;
  try { reply = await call(name, message); } catch (error) { showError(error); return false; }
  if (reply.error) notice(reply.error);
  else receive(reply);
  return !reply.error;
}

// A prompt of one's own; or the next turn of a conversation, after one of its outputs ranked best.
function showOwnPrompt(conversation) {
  const field = h("textarea", { rows: "6", id: "labeling-own", maxlength: "8000", dir: "auto" });
  const waiting = h("span", { class: "soft", role: "status" });
  const ask = button(t("ask"), async () => {
    if (!field.value.trim()) return field.focus();
    ask.disabled = true;
    waiting.textContent = t("writing");
    const after = conversation ? { token: conversation.token, output } : {};
    await requestTask("ask_policy", { prompt: field.value, ...after });
    closeDialog();
  }, { class: "button primary" });
  let output = conversation?.best[0].output;
  const turn = (one) => h("div", { class: "turn" }, h("h3", {}, t("role_" + one.role)), text(one));
  const answer = h("div", {});
  const showAnswer = (best) => { output = best.output; answer.replaceChildren(turn({ role: "assistant", ...best })); };
  const choice = (best, n) => h("label", { class: "choice" }, h("input", { type: "radio", name: "best", checked: n === 0, onchange: () => showAnswer(best) }), h("span", {}, letter(best.output)));
  const tied = conversation && conversation.best.length > 1 ? h("fieldset", { class: "scale" }, h("legend", {}, t("go_on_with")), h("div", { class: "choices" }, conversation.best.map(choice))) : null;
  if (conversation) showAnswer(conversation.best[0]);
  const talk = conversation ? [h("div", { class: "talk", tabindex: "0", role: "group", "aria-label": t("conversation") }, conversation.turns.map(turn), answer), tied] : null;
  openDialog(t(conversation ? "conversation" : "own_prompt"), talk, h("div", { class: "note" }, h("label", { for: "labeling-own" }, t(conversation ? "next_turn" : "own_prompt_words")), field),
    h("div", { class: "walk" }, button(t(conversation ? "end_here" : "cancel"), closeDialog), waiting, ask));
  const shown = find(".talk");
  if (shown) shown.scrollTop = shown.scrollHeight;
}

async function showDisputes() {
  let reply;
  try { reply = await call("disputes"); } catch (error) { return showError(error); }
  if (reply.error) return notice(reply.error);
  const line = (one) => h("li", {}, h("button", { type: "button", class: "earlier", onclick: () => { closeDialog(); requestTask("adjudicate", { task: one.task }); } },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, t("agree", Math.round(100 * one.agreement)))));
  openDialog(t("disputes"), reply.disputes.length ? h("ul", { class: "list" }, reply.disputes.map(line)) : h("p", { class: "soft" }, t("recent_none")), closing());
}
