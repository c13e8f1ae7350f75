"use strict";
// Sorting of the table and choosing what is shown. Everything else on the page works without a script.
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

(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const shown = document.getElementById("shown");
  const boxes = Array.from(form.querySelectorAll("input[data-group]"));
  const items = Array.from(document.querySelectorAll("[data-facets]"), (node) => [node, node.dataset.facets.split(" ")]);
  const rows = Array.from(document.querySelectorAll("#table tbody tr"));
  form.hidden = false;

  // the points that no visible one beats in both; up and left is better, and y grows downwards
  const front = (points) => {
    const kept = [];
    let best = Infinity;
    points.sort((a, b) => a.x - b.x || a.y - b.y);
    for (const point of points) {
      const twin = kept.length && kept[kept.length - 1].x === point.x && kept[kept.length - 1].y === point.y;
      if (point.y < best || twin) kept.push(point);
      best = Math.min(best, point.y);
    }
    return kept;
  };

  const redraw = (drawing) => {
    const points = Array.from(drawing.querySelectorAll(".point"), (node) => ({
      node, run: Number(node.dataset.run), x: Number(node.dataset.x), y: Number(node.dataset.y),
    }));
    const runs = Array.from(new Set(points.map((point) => point.run))).sort((a, b) => a - b);
    drawing.querySelectorAll("polyline.front").forEach((line, number) => {
      const mine = points.filter((point) => point.run === runs[number] && !point.node.classList.contains("out"));
      const kept = front(mine);
      mine.forEach((point) => point.node.classList.toggle("on-front", kept.includes(point)));
      line.setAttribute("points", kept.map((point) => `${point.x},${point.y}`).join(" "));
    });
  };

  const apply = () => {
    const chosen = new Map();
    for (const box of boxes) {
      if (!chosen.has(box.dataset.group)) chosen.set(box.dataset.group, new Set());
      if (box.checked) chosen.get(box.dataset.group).add(box.value);
    }
    for (const [node, facets] of items) {
      const kept = Array.from(chosen).every(([group, values]) => values.has(facets[Number(group)]));
      node.classList.toggle("out", !kept);
    }
    document.querySelectorAll(".scatter").forEach(redraw);
    // a heading over nothing says nothing
    document.querySelectorAll("ol.bars").forEach((list) => {
      const empty = !list.querySelector("li:not(.out)");
      list.classList.toggle("out", empty);
      const heading = list.previousElementSibling;
      if (heading && heading.tagName === "H3") heading.classList.toggle("out", empty);
    });
    const left = rows.filter((row) => !row.classList.contains("out")).length;
    shown.textContent = left === rows.length ? `All ${left} configurations are shown.` : `${left} of ${rows.length} configurations are shown.`;
  };

  form.addEventListener("change", apply);
  // the boxes are reset after the event
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  // a browser that goes back to the page may remember the boxes
  if (boxes.some((box) => !box.checked)) apply();
})();
