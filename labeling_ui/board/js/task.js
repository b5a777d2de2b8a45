// The task on the page, the work on it, and what follows from them. Outputs are numbers, 0 first shown.
let forms = null;  // the questions about each kind of task
let form = null;   // those about this one
let me = null;     // {name, role, progress}
let task = null;   // what the server gave
let work = null;   // what the annotator did; this is the draft
let past = [];     // earlier states of `work`, for undo
let undone = [];   // and those that were taken back, for redo

const tab = Math.random().toString(36).slice(2); // names this tab as the writer of its drafts
const STEPS = { comparison: ["compare"], rating: ["rate"], demonstration: ["write"], prompt: ["write"], adjudication: ["rank"] };
const outputs = () => task.outputs.map((_, i) => i);
const numOutputs = () => task.outputs.length;

// The steps of this task, in order. Where nothing is message about single outputs, they are only ranked.
function stepsOf() {
  const asks = form.quality || form.flags.length || form.scales.length || hasPromptQuestions();
  return STEPS[task.kind] || (asks ? ["rate", "rank"] : ["rank"]);
}

const isWriting = () => stepsOf()[0] === "write";
const freshWork = () => ({ step: stepsOf()[0], note: "", seconds: 0, ...(isWriting() ? freshWriting() : freshJudging()) });
const freshWriting = () => ({ prompt: "", response: "", instruction: "", pairs: [freshPair(), freshPair()] });
const freshJudging = () => ({
  at: 0, selected: 0, tiers: task.outputs.map(() => []), ratings: {}, flags: {}, scales: {}, notes: {},
  prompt_flags: {}, prompt_scales: {}, seeded: false,
});

// The draft as it was saved, completed by what a fresh one has; rows of the board up to one an output.
function workFrom(draft) {
  const restored = { ...freshWork(), ...(draft || {}) };
  if (!isWriting()) restored.tiers = task.outputs.map((_, i) => restored.tiers[i] || []);
  return restored;
}

const rankOf = (i) => work.tiers.findIndex((tier) => tier.includes(i));
const unranked = () => outputs().filter((i) => rankOf(i) < 0);
const filled = () => work.tiers.filter((tier) => tier.length);
const isRated = (i) => (!form.quality || work.ratings[i] != null)
  && activeScales().every((scale) => (work.scales[i] || {})[scale.id] != null);
const activeScales = () => form.scales.filter((scale) => !scale.relative || task.prompt);
const isPromptRated = () => form.prompt_scales.every((scale) => work.prompt_scales[scale.id] != null);
const firstUnrated = () => (isPromptRated() ? outputs().findIndex((i) => !isRated(i)) : -2);
const hasPromptQuestions = () => form.prompt_flags.length + form.prompt_scales.length > 0;

function orderInWords() {
  return filled().map((tier) => tier.map(letter).join(" = ")).join(" > ");
}

function countPairs() {
  const all = numOutputs() * (numOutputs() - 1) / 2;
  const ties = filled().reduce((sum, tier) => sum + tier.length * (tier.length - 1) / 2, 0);
  return [all - ties, ties];
}

// Pairs whose order contradicts their quality by two points or more.
function contradictions() {
  const pairs = [];
  for (const a of outputs()) for (const b of outputs()) {
    const both = rankOf(a) >= 0 && rankOf(b) >= 0;
    if (both && work.ratings[a] >= work.ratings[b] + 2 && rankOf(a) > rankOf(b)) pairs.push([a, b]);
  }
  return pairs;
}

// Every change goes through here: it can be undone, is saved, and is drawn.
function change(how) {
  past.push(JSON.stringify(work));
  if (past.length > 300) past.shift();
  undone = [];
  if (!toastStays) toast("");
  how();
  saveSoon();
  paint();
}

// Take a change back, or make it again. What was typed in notes meanwhile stays.
function retrace(from, to, word) {
  if (!task || !from.length) return;
  const { seconds, note, notes } = work;
  to.push(JSON.stringify(work));
  work = { ...JSON.parse(from.pop()), seconds, note, ...(notes && { notes }) };
  saveSoon();
  draw();
  announce(t(word));
}

const undo = () => retrace(past, undone, "undone");
const redo = () => retrace(undone, past, "redone");

function moveToTier(i, tier) {
  change(() => {
    work.tiers = work.tiers.map((row) => row.filter((other) => other !== i));
    if (tier >= 0) work.tiers[tier].push(i);
  });
  if (tier < 0) return announce(t("taken", letter(i)));
  const others = work.tiers[tier].filter((other) => other !== i).map(letter).join(", ");
  announce(t("placed", letter(i), tier + 1, numOutputs()) + (others ? t("tied", others) : ""));
}

// Place the selected output, and select the next one that has no rank: the one beside it before others.
function rankSelected(tier) {
  if (tier >= numOutputs()) return;
  moveToTier(work.selected, tier);
  const left = unranked();
  if (left.length) select(left.includes(beside) ? beside : left.find((i) => i > work.selected) ?? left[0]);
}

function seedFromQuality() {
  if (!form.quality || !form.seed_from_quality) return;
  const levels = [...new Set(Object.values(work.ratings))].sort((a, b) => b - a);
  change(() => {
    work.tiers = outputs().map((row) => outputs().filter((i) => work.ratings[i] === levels[row]));
    work.seeded = true;
  });
  announce(t("seeded"));
}

function answersToSend() {
  const { note, seconds } = work;
  if (!isWriting()) return { ...judgements(), note, seconds };
  const written = task.shape === "few-shot" ? { instruction: work.instruction, pairs: work.pairs } : { prompt: work.prompt, response: work.response };
  return { ...written, note, seconds };
}

const judgements = () => ({
  tiers: task.kind === "rating" ? [] : filled(), ratings: work.ratings, flags: work.flags, scales: work.scales, notes: work.notes,
  prompt_flags: work.prompt_flags, prompt_scales: work.prompt_scales, seeded: work.seeded,
});

// Seconds at work: the page is in sight and something happened in the last half minute.
let lastSign = Date.now();
for (const sign of ["pointermove", "keydown", "touchstart", "wheel"]) {
  addEventListener(sign, () => { lastSign = Date.now(); }, { passive: true });
}
const clock = setInterval(() => {
  if (!root.isConnected) clearInterval(clock);
  else if (work && !document.hidden && Date.now() - lastSign < 30000) {
    work.seconds += 1;
    if (work.seconds % 60 === 0 && !task.amends) saveSoon(); // who reads for long keeps the task
  }
}, 1000);
