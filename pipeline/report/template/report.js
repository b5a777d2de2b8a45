// The page is complete without this script; it only adds the filter above the sampled outputs.
const kind = document.getElementById("kind");
if (kind) {
  kind.closest(".filters").hidden = false;
  kind.addEventListener("change", () => {
    for (const card of document.querySelectorAll("#cards .card")) {
      card.hidden = kind.value !== "" && card.dataset.kind !== kind.value;
    }
  });
}
