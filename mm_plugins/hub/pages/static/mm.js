// Copy buttons, and pulls as they go on. The page works without: forms are forms.
"use strict";

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  });
}

const pulls = document.getElementById("pulls");
if (pulls) {
  const live = document.getElementById("live");

  // Only what tells of the state is exchanged, so that a button keeps the focus.
  const show = ({ id, html }) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.firstElementChild;
    const known = document.getElementById("pull-" + id);
    if (known?.dataset.status !== fresh.dataset.status) {
      live.textContent = fresh.dataset.name + ": " + fresh.dataset.status;
    }
    if (!known) {
      pulls.prepend(fresh);
      document.getElementById("none").hidden = true;
      return;
    }
    known.dataset.status = fresh.dataset.status;
    known.querySelector(".state").replaceWith(fresh.querySelector(".state"));
    if (!fresh.querySelector("form")) known.querySelector("form")?.remove();
  };

  const events = new EventSource(pulls.dataset.events);
  events.addEventListener("pull", (event) => show(JSON.parse(event.data)));
  addEventListener("pagehide", () => events.close());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}
