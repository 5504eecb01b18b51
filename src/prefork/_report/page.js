// The runs of the chart can be walked through: what the mouse is on, or the arrow keys have come to,
// is told below it.
"use strict";
const chart = document.getElementById("gantt");
const told = document.getElementById("told");
if (chart && told) {
  const rows = [...chart.querySelectorAll("g")].map((row) => [...row.querySelectorAll(":scope > rect")])
    .filter((row) => row.length);
  let chosen = null;
  const choose = (rect) => {
    if (!rect || rect === chosen) return;
    if (chosen) chosen.classList.remove("on");
    chosen = rect;
    chosen.classList.add("on");
    told.textContent = chosen.querySelector("title").textContent;
  };
  const middle = (rect) => rect.x.baseVal.value + rect.width.baseVal.value / 2;
  const nearest = (row, x) => row.reduce((best, rect) =>
    Math.abs(middle(rect) - x) < Math.abs(middle(best) - x) ? rect : best);
  const go = (key) => {
    const at = rows.findIndex((row) => row.includes(chosen));
    if (at < 0) return rows.length ? rows[0][0] : null;
    const row = rows[at];
    const place = row.indexOf(chosen);
    switch (key) {
      case "ArrowRight": return row[place + 1];
      case "ArrowLeft": return row[place - 1];
      case "ArrowDown": return rows[at + 1] && nearest(rows[at + 1], middle(chosen));
      case "ArrowUp": return rows[at - 1] && nearest(rows[at - 1], middle(chosen));
      case "Home": return row[0];
      default: return row[row.length - 1];
    }
  };
  const keys = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"];
  chart.addEventListener("keydown", (event) => {
    if (!keys.includes(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
    choose(go(event.key));
    event.preventDefault();
  });
  chart.addEventListener("pointerover", (event) => choose(event.target.closest("rect")));
}
