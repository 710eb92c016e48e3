"use strict";
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
    states.forEach((other) => {
      const ring = document.getElementById(`${panel.id}-${other.halo}`);
      if (ring) ring.style.visibility = other === state ? "visible" : "hidden";
    });
    panel.querySelectorAll(".front-image").forEach((card, i) => {
      const image = state.images[i];
      card.querySelector("img.attacked").src = image.attacked;
      for (const when of ["before", "after"]) {
        const read = card.querySelector(`.${when}`);
        read.textContent = image[when];
        read.classList.toggle("wrong", image[`${when}Wrong`]);
      }
    });
  };
  slider.addEventListener("input", show);
  panel.querySelector(".front-control").hidden = false;
  show();
}
