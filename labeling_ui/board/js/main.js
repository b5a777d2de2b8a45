// A task comes in, or none does; and the page begins.
function receive(reply) {
  me = { name: reply.name, role: reply.role ?? me?.role, progress: reply.progress };
  find(".done").textContent = t("done_count", me.progress.answered, me.progress.today, me.progress.open);
  task = reply.task;
  form = task ? forms[task.kind] : null;
  past = [];
  [beside, before, differences] = [null, null, {}];
  undone = [];
  isDirty = false;
  focusWork();
  if (!task) return showNoTask(reply.why);
  work = null;
  const draft = newestDraft();
  work = workFrom(draft);
  status(draft && !task.amends ? t("restored") : "");
  draw();
  if (isNarrow()) document.scrollingElement.scrollTop = 0;
  announce(isWriting() ? t("write_" + task.kind) : t("task_ready", numOutputs()));
}

function showNoTask(why) {
  work = null;
  status("");
  find(".steps").replaceChildren();
  find(".stage").replaceChildren(h("div", { class: "wait" }, h("p", {}, t(why === "done" ? "none_left" : why)),
    button(t("look_again"), () => load("next_task"))));
  announce(t(why === "done" ? "none_left" : why));
  clearTimeout(lookTimer);
  lookTimer = setTimeout(lookForTask, LOOK_MS);
}

// A task may come back: a lease runs out, the owner hands something out again or goes on.
const LOOK_MS = 20_000;
let lookTimer = null;
async function lookForTask() {
  if (task || !root.isConnected) return;
  let reply = {};
  try { reply = await call("next_task"); } catch { /* the next look may do */ }
  if (reply.task && !task) return receive(reply);
  lookTimer = setTimeout(lookForTask, LOOK_MS);
}

async function load(name) {
  for (;;) {
    try {
      const reply = await call(name);
      if (reply.error) return notice(reply.error);
      notice("");
      if (reply.forms) ({ forms, guidelines, live: isLive } = reply);
      me = { name: reply.name, role: reply.role };
      drawTools();
      if (await sendPending()) return undefined;
      receive(reply);
      const settle = new URLSearchParams(location.search).get("settle");
      if (settle && name === "start") {
        history.replaceState(null, "", location.pathname);
        await requestTask("adjudicate", { task: settle });
      }
      return undefined;
    } catch (error) {
      showError(error);
      if (error instanceof SignedOut) return undefined;
      await pause(2000);
    }
  }
}

addEventListener("beforeunload", () => { if (isDirty) save(); });
load("start");
