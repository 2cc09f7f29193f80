"use strict";
for (const slider of document.querySelectorAll('input[type="range"]')) {
  const views = slider.closest("figure").querySelector(".views div");
  slider.addEventListener("input", () => views.style.setProperty("--cut", slider.value + "%"));
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const value = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const order = new Intl.Collator(undefined, {numeric: true});
    const compare = (one, other) => head.dataset.numbers !== undefined
      ? value(one) - value(other) : order.compare(value(one), value(other));
    const rows = [...body.rows].sort((one, other) => (direction === "ascending" ? 1 : -1) * compare(one, other));
    body.append(...rows);
  });
}
