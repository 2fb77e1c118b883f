// Shows the messages of an order as they happen: steps of the diagrams light up, and the list grows. Text alone is written.
(() => {
  "use strict";
  const stage = document.querySelector("[data-messages]");
  if (!stage) return;
  const list = stage.querySelector(".messages");
  const address = stage.dataset.messages;
  const began = Date.now();
  const FOLLOWED_MS = 1800000;
  let shown = list.children.length;
  list.scrollTop = list.scrollHeight;

  const row = (message) => {
    const item = document.createElement("li");
    const part = (name, text, className) => {
      const made = document.createElement(name);
      if (className) made.className = className;
      made.textContent = text;
      item.append(made, " ");
    };
    part("time", message.time);
    part("span", `${message.from} → ${message.to}`);
    part("b", message.label);
    part("span", message.detail, "soft");
    return item;
  };

  const show = ({ messages, status }) => {
    const rows = messages.map(row);
    if (rows.length !== shown) {
      const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 20;
      list.replaceChildren(...rows);
      if (atEnd) list.scrollTop = list.scrollHeight;
      shown = rows.length;
    }
    for (const message of messages) {
      for (const name of message.steps) {
        for (const step of stage.querySelectorAll(`[data-step="${CSS.escape(name)}"]`)) {
          const mark = message.lost ? "lost" : "seen";
          if (!step.classList.contains(mark)) step.classList.add(mark, "new");
        }
      }
    }
    const said = document.querySelector("[data-payment-status]");
    if (said && said.textContent !== status) said.textContent = status;
  };

  const follow = async () => {
    let pause = 700;
    while (Date.now() - began < FOLLOWED_MS) {
      if (!document.hidden) {
        try {
          const answer = await fetch(address, { signal: AbortSignal.timeout(10000) });
          if (answer.status === 404) return;
          if (answer.ok) { show(await answer.json()); pause = 700; } else pause = Math.min(pause * 2, 10000);
        } catch { pause = Math.min(pause * 2, 10000); }
      }
      await new Promise((resolve) => setTimeout(resolve, pause * (0.9 + Math.random() / 5)));
    }
  };

  // What only the browser sees; the shop's server keeps it beside the rest.
  const tell = (name, count) => fetch(address, {
    method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name, count }),
  }).catch(() => {});
  document.addEventListener("checkout:methods", (event) => tell("methods", event.detail.methods.length));
  document.addEventListener("checkout:redirect", () => tell("redirect", 1));
  follow();
})();
