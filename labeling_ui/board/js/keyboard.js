// The keyboard: everything can be done by it, and nothing needs more than one key.
const isTyping = (target) => target.matches("textarea, input[type=text], select");

function onKey(event) {
  if (!root.isConnected) return document.removeEventListener("keydown", onKey);
  if (event.isComposing || !forms || find("dialog[open]")) return;
  const hasCtrl = event.ctrlKey || event.metaKey;
  if (isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    if (!(hasCtrl && event.key === "Enter")) return;
  }
  if (event.altKey) return;
  if (handle(event, hasCtrl)) event.preventDefault();
}

function handle(event, hasCtrl) {
  const key = event.key.toLowerCase();
  if (key === "?") return showKeys() ?? true;
  if (!task) return false;
  if (hasCtrl) {
    if (key === "enter") (work.step === "rate" ? next() : finish());
    else if (key === "y" || (key === "z" && event.shiftKey)) redo();
    else if (key === "z") undo();
    else return false;
    return true;
  }
  if (key === "l") showGuideline();
  else if (key === "r") toggleRaw();
  else if (key === "x" && task.context) toggleContext();
  else if (isScroll(event, key)) scrollText(key, event.shiftKey);
  else return { rate: rateKey, rank: rankKey, compare: compareKey, write: () => false }[work.step](event, key);
  return true;
}

// The text that is being judged scrolls whatever has the focus, unless that scrolls by itself. Arrows rank while
// outputs are ranked.
function isScroll(event, key) {
  if (event.target.closest(".scroll[tabindex='0'], .wide, .menu")) return false;
  if (key === " ") return !event.target.matches("button, a, summary, input");
  return key === "pagedown" || key === "pageup" || (work.step !== "rank" && (key === "arrowdown" || key === "arrowup") && event.target.type !== "radio");
}

// One of two outputs takes the other along.
function scrollText(key, isBack) {
  const panes = [".card.selected .scroll", ".card.grown .scroll, .read .scroll, .writing .scroll"].flatMap((which) => [...root.querySelectorAll(which)]);
  const pane = panes.find((one) => one.scrollHeight > one.clientHeight) || document.scrollingElement;
  const sign = key.endsWith("up") || (key === " " && isBack) ? -1 : 1;
  pane.scrollBy(0, sign * (key.startsWith("arrow") ? 60 : 0.85 * pane.clientHeight));
}

// Digits by key position as well: some layouts need Shift for them.
function digitOf(event) {
  const match = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (/^\d$/.test(event.key)) return Number(event.key);
  return match && !event.shiftKey ? Number(match[1]) : null;
}

function rateKey(event, key) {
  const onControl = event.target.matches("button, a, summary, input");
  const digit = digitOf(event);
  const flag = activeFlags().find((one) => one.key === key);
  if (digit === 0 && scaleAtHand()[0]?.lowest !== 0) answerRestNo();
  else if (digit !== null) answerByDigit(digit);
  else if (key === "enter" && !event.target.matches("button, a, summary")) next();
  else if (key === "arrowright" && !(onControl && event.target.type === "radio")) goTo(work.at + 1);
  else if (key === "arrowleft" && !(onControl && event.target.type === "radio")) goTo(work.at - 1);
  else if (key === "n") find("[data-part=note]").focus();
  else if (key === "p" && hasPromptQuestions()) goTo(work.at < 0 ? 0 : -1);
  else if (flag) answerFlag(flag, nextAnswer(flagAnswers()[flag.id]));
  else return false;
  return true;
}

function rankKey(event, key) {
  const digit = digitOf(event);
  const output = key.length === 1 ? key.charCodeAt(0) - 97 : -1;
  if (digit === 0 || key === "backspace") moveToTier(work.selected, -1);
  else if (digit !== null) rankSelected(digit - 1);
  else if (key === "arrowdown") move(1);
  else if (key === "arrowup") move(-1);
  else if (key === "arrowright") select(beside ?? work.selected + 1);
  else if (key === "arrowleft") select(beside ?? work.selected - 1);
  else if (key === "q") seedFromQuality();
  else if (key === "v") putBeside(beside == null ? nextToCompare() : null);
  else if (key === "escape" && beside != null) putBeside(null);
  else if (output >= 0 && output < numOutputs()) (event.shiftKey ? putBeside : select)(output);
  else return pairKey(key);
  return true;
}

document.addEventListener("keydown", onKey);
