// Drafts are saved in this browser at once and on the server soon after; a submit is sent until the server has it.
const draftKey = () => "labeling/draft/" + me.name + "/" + task.token;
const sendingKey = () => "labeling/sending/" + me.name;
const pause = (ms) => new Promise((go) => setTimeout(go, ms));
class Offline extends Error {}
class ServerProblem extends Error {}
class SignedOut extends Error {}

// A function of the server that fails resolves to undefined: ask /alive for the reason.
async function call(name, message) {
  let reply;
  try { reply = await server[name](message || {}); } catch { reply = undefined; }
  if (reply && reply.error !== "signed out") return reply.error ? { ...reply, error: errorText(reply.error) } : reply;
  let session;
  try { session = await (await fetch("/alive", { cache: "no-store" })).json(); } catch { throw new Offline(); }
  throw session.signed_in ? new ServerProblem() : new SignedOut();
}

function showError(error) {
  if (error instanceof SignedOut) {
    notice(t("signed_out"), h("a", { class: "button", href: "/login" }, t("sign_in")));
  } else if (error instanceof Offline || error instanceof ServerProblem) {
    notice(t(error instanceof Offline ? "offline" : "trouble"));
    isNoticeAboutSaving = true;
    status(t("kept"));
  } else throw error;
}

let isDirty = false, isSaving = false, saveTimer = null;

function saveSoon() {
  task.revision += 1;
  isDirty = true;
  localStorage.setItem(draftKey(), JSON.stringify({ revision: task.revision, work }));
  status(t("saving"));
  clearTimeout(saveTimer);
  saveTimer = setTimeout(save, 400);
}

async function save() {
  if (isSaving || !isDirty || !task) return;
  isSaving = true;
  isDirty = false;
  const saved = task;
  try {
    const message = { token: task.token, revision: task.revision, writer: tab, body: work };
    const reply = await call("save_draft", message);
    if (saved === task) showSaved(reply);
  } catch (error) {
    if (saved === task) {
      showError(error);
      isDirty = true;
    }
  }
  isSaving = false;
  if (isDirty) saveTimer = setTimeout(save, isNoticeAboutSaving ? 3000 : 400);
}

function showSaved(reply) {
  if (reply.error) return notice(reply.error);
  if (!reply.saved) {
    notice(t("elsewhere"), button(t("take_that"), () => reopen(task.token)));
    return;
  }
  if (isNoticeAboutSaving) notice("");
  if (!isDirty) status(t("saved", new Date(reply.time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })));
}

// The draft to go on with: the browser's if it is newer than the server's.
function newestDraft() {
  const local = JSON.parse(localStorage.getItem(draftKey()) || "null");
  if (local && local.revision > task.revision) {
    task.revision = local.revision;
    isDirty = true;
    saveTimer = setTimeout(save, 100);
    return local.work;
  }
  return task.draft;
}

let isSending = false;

// Send the task for good. What is sent stays in this browser until the server has it, over reloads as well.
async function submit(skipped) {
  if (isSending) return;
  toast("");
  const body = skipped ? { ...answersToSend(), tiers: [], skipped } : answersToSend();
  const sent = { token: task.token, form: Math.random().toString(36).slice(2), body };
  localStorage.setItem(sendingKey(), JSON.stringify(sent));
  await sendPending();
}

async function sendPending() {
  const pending = localStorage.getItem(sendingKey());
  if (!pending || isSending) return false;
  const sent = JSON.parse(pending);
  isSending = true;
  clearTimeout(saveTimer);
  isDirty = false;
  status(t("sending"));
  for (let wait = 500; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const reply = await call("submit", sent);
      isSending = false;
      localStorage.removeItem(sendingKey());
      if (reply.error) {
        status("");
        notice(reply.error);
        return false;
      }
      localStorage.removeItem("labeling/draft/" + me.name + "/" + sent.token);
      notice("");
      receive(reply);
      const outcome = sent.body.skipped ? "skipped" : reply.outcome === "surplus" ? "surplus" : "stored";
      toast(t(outcome), button(t(outcome === "skipped" ? "take_back" : "amend"), () => reopen(sent.token)), outcome === "skipped");
      if (reply.feedback) showFeedback(reply.feedback);
      if (reply.conversation) showOwnPrompt(reply.conversation);
      return true;
    } catch (error) {
      showError(error);
      if (error instanceof SignedOut) {
        isSending = false;
        return false;
      }
      await pause(wait);
    }
  }
}
