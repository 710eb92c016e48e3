"use strict";
// Column heads become buttons that sort their table. Without this script the page says the same.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const by = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -by : by;
      };
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort(order));
    });
  });
}
// A slider over the measured models of a front: numbers, ring and images follow it.
for (const panel of document.querySelectorAll(".front")) {
  const states = JSON.parse(panel.querySelector(".front-states").textContent);
  const slider = panel.querySelector("input[type=range]");
  const show = () => {
    const state = states[Number(slider.value)];
    slider.setAttribute("aria-valuetext", state.spoken);
    for (const field of panel.querySelectorAll("[data-field]")) {
      field.textContent = state[field.dataset.field];
    }
    for (const other of states) {
      const ring = document.getElementById(`${panel.id}-${other.halo}`);
      if (ring) ring.style.visibility = other === state ? "visible" : "hidden";
    }
    panel.querySelectorAll(".card").forEach((card, i) => {
      card.querySelectorAll(".shots > div").forEach((shot, j) => {
        const { uri, read, wrong } = state.images[i][j];
        shot.querySelector("img").setAttribute("src", uri);
        shot.querySelector("b").textContent = read;
        shot.querySelector("b").classList.toggle("wrong", wrong);
      });
    });
  };
  slider.addEventListener("input", show);
  panel.querySelector(".front-control").hidden = false;
  show();
}
