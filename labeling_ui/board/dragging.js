// Drag and drop by pointer events: mouse, pen and finger take one path. A short press is a click.
function startDrag(press, i) {
  if (press.button) return;
  const held = press.currentTarget;
  let ghost = null, over = null, scroll = 0;
  const isSame = (event) => event.pointerId === press.pointerId;
  const rowAt = (x, y) => document.elementFromPoint(x, y)?.closest?.(".room [data-tier]");

  function lift() {
    ghost = held.cloneNode(true);
    ghost.classList.add("ghost");
    ghost.style.width = held.offsetWidth + "px";
    root.append(ghost);
    held.classList.add("lifted");
    root.classList.add("dragging");
  }

  function moved(event) {
    if (!isSame(event)) return;
    if (!ghost && Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < 6) return;
    if (!ghost) lift();
    event.preventDefault();
    ghost.style.transform = "translate(" + (event.clientX - 18) + "px," + (event.clientY - 18) + "px)";
    const row = rowAt(event.clientX, event.clientY);
    if (row !== over) {
      over?.classList.remove("over");
      row?.classList.add("over");
      over = row;
    }
    scroll = event.clientY > innerHeight - 50 ? 10 : event.clientY < 60 ? -10 : 0;
  }

  const scroller = setInterval(() => {
    if (scroll) (innerWidth > 900 ? find(".rows") : document.scrollingElement).scrollBy(0, scroll);
  }, 16);

  function dropped(event) {
    if (!isSame(event)) return;
    clearInterval(scroller);
    removeEventListener("pointermove", moved);
    removeEventListener("pointerup", dropped);
    removeEventListener("pointercancel", dropped);
    ghost?.remove();
    held.classList.remove("lifted");
    root.classList.remove("dragging");
    over?.classList.remove("over");
    if (event.type !== "pointerup") return;
    if (!ghost) return select(i);
    const swallow = (click) => click.stopPropagation(); // a mouse clicks after a drag, a finger does not
    addEventListener("click", swallow, { capture: true });
    setTimeout(() => {
      removeEventListener("click", swallow, { capture: true });
      if (over) { work.selected = i; place(i, Number(over.dataset.tier)); }
    }, 0);
  }

  addEventListener("pointermove", moved, { passive: false });
  addEventListener("pointerup", dropped);
  addEventListener("pointercancel", dropped);
}
