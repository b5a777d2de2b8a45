// The page is complete without this script; it only adds the filters above the sampled outputs.
const kind = document.getElementById("kind");
if (kind) {
  const mark = document.getElementById("mark");
  const words = document.getElementById("words");
  const left = document.getElementById("left");
  const cards = [...document.querySelectorAll("#cards .card")];
  const show = () => {
    const wanted = words.value.trim().toLowerCase();
    let count = 0;
    for (const card of cards) {
      const fits =
        (kind.value === "" || card.dataset.kind === kind.value) &&
        (mark.value === "" || card.dataset.marks.split(" ").includes(mark.value)) &&
        (wanted === "" || card.textContent.toLowerCase().includes(wanted));
      card.hidden = !fits;
      count += fits ? 1 : 0;
    }
    left.textContent = `${count} of ${cards.length} prompts`;
  };
  kind.closest(".filters").hidden = false;
  for (const field of [kind, mark, words]) field.addEventListener("input", show);
  show();
}
