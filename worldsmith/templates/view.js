"use strict";
const stories = [...document.querySelectorAll("details.story")];
const filters = [...document.querySelectorAll("[data-filter]")];
const text = document.getElementById("text");

function apply() {
  const words = text.value.toLowerCase();
  let shown = 0;
  for (const story of stories) {
    const fits = filters.every((one) => !one.value || story.dataset[one.dataset.filter] === one.value);
    story.hidden = !(fits && (!words || story.textContent.toLowerCase().includes(words)));
    shown += story.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = shown;
}

for (const one of filters) one.addEventListener("change", apply);
text.addEventListener("input", apply);
text.value = decodeURIComponent(location.hash.slice(1));
apply();
