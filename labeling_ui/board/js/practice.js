// After a practice task: the order known to be right beside one's own, and why.
function showFeedback(feedback) {
  const row = (one) => h("tr", {}, h("th", { scope: "row", dir: "auto" }, one.snippet),
    h("td", { class: "number" }, String(one.right)), h("td", { class: "number" }, String(one.given)));
  const heads = ["practice_output", "practice_right", "practice_given"].map((key) => h("th", { scope: "col" }, t(key)));
  openDialog(t("practice_title"), h("p", { role: "status" }, t("practice_pairs", feedback.same, feedback.pairs)),
    h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("practice_title") },
      h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, feedback.outputs.map(row)))),
    feedback.explanation ? h("div", { class: "text", html: feedback.explanation }) : null, closing());
}
