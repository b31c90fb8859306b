// What a cell says when it is pointed at or focused.

const tip = byId("tip");

function showTip(target) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - size.width / 2, 6),
    document.documentElement.clientWidth - size.width - 6);
  const above = box.top - size.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
}

for (const [enter, leave] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
  document.addEventListener(enter, (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) showTip(target);
  });
  document.addEventListener(leave, () => { tip.hidden = true; });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("scroll", () => {
  const focused = document.activeElement;
  if (!tip.hidden && focused.dataset.tip === tip.textContent) showTip(focused); // walked there
  else tip.hidden = true;
}, { passive: true, capture: true });
