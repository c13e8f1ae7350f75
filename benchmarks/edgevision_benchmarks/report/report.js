"use strict";
// Sorting of the table. Everything else on the page works without a script.
(() => {
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const status = document.getElementById("sorted");
  const keys = new Map(Array.from(body.rows, (row) => [row, JSON.parse(row.dataset.keys)]));
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

  const sort = (button) => {
    const column = Number(button.dataset.column);
    const header = button.closest("th");
    const first = button.dataset.first || "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = header.getAttribute("aria-sort") === first ? other : first;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows).sort((x, y) => {
      const a = keys.get(x)[column];
      const b = keys.get(y)[column];
      // rows without a value stay at the end, whichever way the others go
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * compare(a, b);
    });
    table.querySelectorAll("th[aria-sort]").forEach((cell) => cell.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", direction);
    body.append(...rows);
    status.textContent = `Sorted by ${button.firstChild.textContent}, ${direction}.`;
  };

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-column]");
    if (button) sort(button);
  });
})();
