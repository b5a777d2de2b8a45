// Tasks that one asks for: fresh outputs on one's own prompt, and disagreements to settle.
async function askFor(name, asked) {
  clearTimeout(saveTimer);
  await save();
  let reply;
  try { reply = await call(name, asked); } catch (error) { tellWhyNot(error); return false; }
  if (reply.error) notice(reply.error);
  else receive(reply);
  return !reply.error;
}

function askPolicy() {
  const field = h("textarea", { rows: "6", id: "labeling-own", maxlength: "8000", dir: "auto" });
  const waiting = h("span", { class: "soft", role: "status" });
  const ask = button(t("ask"), async () => {
    if (!field.value.trim()) return field.focus();
    ask.disabled = true;
    waiting.textContent = t("writing");
    await askFor("ask_policy", { prompt: field.value });
    closeDialog();
  }, { class: "button primary" });
  openDialog(t("own_prompt"), h("div", { class: "note" }, h("label", { for: "labeling-own" }, t("own_prompt_words")), field),
    h("div", { class: "walk" }, button(t("cancel"), closeDialog), waiting, ask));
}

async function showDisputes() {
  let reply;
  try { reply = await call("disputes"); } catch (error) { return tellWhyNot(error); }
  if (reply.error) return notice(reply.error);
  const line = (one) => h("li", {}, h("button", { type: "button", class: "earlier", onclick: () => { closeDialog(); askFor("adjudicate", { task: one.task }); } },
    h("span", { dir: "auto" }, one.prompt), h("small", { class: "soft" }, t("agree", Math.round(100 * one.agreement)))));
  openDialog(t("disputes"), reply.disputes.length ? h("ul", { class: "list" }, reply.disputes.map(line)) : h("p", { class: "soft" }, t("recent_none")), closing());
}
