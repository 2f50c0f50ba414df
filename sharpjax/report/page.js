for (const table of document.querySelectorAll("table.sortable")) {
  const head = table.tHead.rows[0], body = table.tBodies[0];
  const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  [...head.cells].forEach((cell, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = cell.dataset.sort === "number", sign = down ? -1 : 1;
      const compare = (a, b) => {
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        const [x, y] = [Number.parseFloat(a), Number.parseFloat(b)];
        return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y)
          : sign * (x - y);
      };
      body.append(...[...body.rows].sort((a, b) => compare(key(a, i), key(b, i))));
    });
  });
}
for (const section of document.querySelectorAll("section:has(> .scroll > table.searchable)")) {
  const rows = [...section.querySelectorAll("table.searchable tbody tr")];
  if (rows.length < 10) continue;
  const label = document.createElement("label"), input = document.createElement("input");
  input.type = "search";
  label.className = "search";
  label.append("Search ", input);
  section.firstElementChild.after(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
