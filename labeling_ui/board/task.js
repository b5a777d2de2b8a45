// The task on the page, the work on it, and what can be read off them. Outputs are numbers, 0 first shown.
let form = null;   // the questions
let me = null;     // {name, role, progress}
let task = null;   // what the server gave
let work = null;   // what the annotator did; this is the draft
let past = [];     // earlier states of `work`, for undo

const tab = Math.random().toString(36).slice(2); // tells this tab's drafts from another's
const outputs = () => task.outputs.map((_, i) => i);
const numOutputs = () => task.outputs.length;

const freshWork = () => ({
  step: "rate", at: 0, selected: 0, tiers: task.outputs.map(() => []), ratings: {}, flags: {}, scales: {},
  notes: {}, prompt_flags: {}, prompt_scales: {}, note: "", seeded: false, seconds: 0,
});

// The draft as it was kept, completed by what a fresh one has; rows of the board up to one an output.
function workFrom(draft) {
  const restored = { ...freshWork(), ...(draft || {}) };
  restored.tiers = task.outputs.map((_, i) => restored.tiers[i] || []);
  return restored;
}

const rankOf = (i) => work.tiers.findIndex((tier) => tier.includes(i));
const unranked = () => outputs().filter((i) => rankOf(i) < 0);
const filled = () => work.tiers.filter((tier) => tier.length);
const isRated = (i) => (!form.quality || work.ratings[i] != null)
  && form.scales.every((scale) => (work.scales[i] || {})[scale.id] != null);
const isPromptRated = () => form.prompt_scales.every((scale) => work.prompt_scales[scale.id] != null);
const firstUnrated = () => (isPromptRated() ? outputs().findIndex((i) => !isRated(i)) : -2);
const asksAboutPrompt = () => form.prompt_flags.length + form.prompt_scales.length > 0;

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
  const found = [];
  for (const a of outputs()) for (const b of outputs()) {
    const both = rankOf(a) >= 0 && rankOf(b) >= 0;
    if (both && work.ratings[a] >= work.ratings[b] + 2 && rankOf(a) > rankOf(b)) found.push([a, b]);
  }
  return found;
}

// Every change goes through here: it can be undone, is kept, and is shown.
function change(how) {
  past.push(JSON.stringify(work));
  if (past.length > 300) past.shift();
  how();
  keep();
  paint();
}

function undo() {
  if (!past.length) return;
  const seconds = work.seconds;
  work = { ...JSON.parse(past.pop()), seconds };
  keep();
  draw();
  say(t("undone"));
}

function place(i, tier) {
  change(() => {
    work.tiers = work.tiers.map((row) => row.filter((other) => other !== i));
    if (tier >= 0) work.tiers[tier].push(i);
  });
  if (tier < 0) return say(t("taken", letter(i)));
  const others = work.tiers[tier].filter((other) => other !== i).map(letter).join(", ");
  say(t("placed", letter(i), tier + 1, numOutputs()) + (others ? t("tied", others) : ""));
}

// Place the selected output, and select the next one that has no rank.
function placeSelected(tier) {
  if (tier >= numOutputs()) return;
  place(work.selected, tier);
  const left = unranked();
  if (left.length) select(left.find((i) => i > work.selected) ?? left[0]);
}

function seedFromQuality() {
  if (!form.quality || !form.seed_from_quality) return;
  const levels = [...new Set(Object.values(work.ratings))].sort((a, b) => b - a);
  change(() => {
    work.tiers = outputs().map((row) => outputs().filter((i) => work.ratings[i] === levels[row]));
    work.seeded = true;
  });
  say(t("seeded"));
}

const answersToSend = () => ({
  tiers: filled(), ratings: work.ratings, flags: work.flags, scales: work.scales, notes: work.notes,
  prompt_flags: work.prompt_flags, prompt_scales: work.prompt_scales, note: work.note,
  seeded: work.seeded, seconds: work.seconds,
});

// Seconds at work: the page is in sight and something happened in the last half minute.
let lastSign = Date.now();
for (const sign of ["pointermove", "keydown", "touchstart", "wheel"]) {
  addEventListener(sign, () => { lastSign = Date.now(); }, { passive: true });
}
const clock = setInterval(() => {
  if (!root.isConnected) clearInterval(clock);
  else if (work && !document.hidden && Date.now() - lastSign < 30000) work.seconds += 1;
}, 1000);
