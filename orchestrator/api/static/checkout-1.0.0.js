/*! checkout.js 1.0.0, Apache-2.0: payment methods, the start of a payment and its live state in a shop's page.
 *
 * In the page, where nothing else is needed:
 *   <div data-checkout="ID" data-client-token="TOKEN" data-api="https://pay.example"></div>
 * or by a script: const view = OrchestratorCheckout.mount(element, {id, clientToken, api, …}); view.close()
 *
 * Options (and attributes): api (data-api; left out: the page's own origin), language (data-language), texts (replaces single texts), logos (false: none),
 * follow (data-follow: goes on to the shop's page by itself once the checkout has ended),
 * wallets: {TYPE: {probe: async (method) => boolean, pay: async ({method, payment}) => void}}.
 * Events on the element: checkout:methods, checkout:status, checkout:initiate, checkout:redirect (may be
 * prevented), checkout:error. It writes text alone, never markup, and stores nothing but the chosen method and
 * the payment that was started (its id and the address of its page), in sessionStorage.
 */
(() => {
  "use strict";

  const VERSION = "1.0.0";
  const TEXTS = {
    "en": {
      "legend": "Choose how to pay",
      "pay": "Continue to payment",
      "starting": "Opening the payment page …",
      "choose": "Choose a payment method to continue.",
      "declined": "The payment was not completed: {reason}",
      "declinedPlain": "The payment was not completed. You can try again.",
      "again": "You can try again, or choose another method.",
      "failedStart": "The payment could not be started. Nothing was charged. Please try again.",
      "noMethods": "No payment method is available for this order.",
      "unreachable": "The connection was lost. We keep trying.",
      "gone": "This checkout is not available any more.",
      "continue": "Continue",
      "preparing": "Your payment methods are being prepared …",
      "ready": "Ready for payment.",
      "processing": "Your payment is being confirmed …",
      "closing": "This order is being cancelled …",
      "completed": "Your payment is confirmed. Thank you.",
      "failed": "This order cannot be paid.",
      "cancelled": "This order was cancelled.",
      "expired": "The time to pay for this order is over."
    },
    "da": {
      "legend": "Vælg betalingsmetode",
      "pay": "Fortsæt til betaling",
      "starting": "Åbner betalingssiden …",
      "choose": "Vælg en betalingsmetode for at fortsætte.",
      "declined": "Betalingen blev ikke gennemført: {reason}",
      "declinedPlain": "Betalingen blev ikke gennemført. Du kan prøve igen.",
      "again": "Du kan prøve igen eller vælge en anden metode.",
      "failedStart": "Betalingen kunne ikke startes. Der er ikke trukket penge. Prøv igen.",
      "noMethods": "Der er ingen betalingsmetode til denne ordre.",
      "unreachable": "Forbindelsen blev afbrudt. Vi forsøger igen.",
      "gone": "Denne betaling er ikke længere tilgængelig.",
      "continue": "Fortsæt",
      "preparing": "Dine betalingsmetoder gøres klar …",
      "ready": "Klar til betaling.",
      "processing": "Din betaling bekræftes …",
      "closing": "Denne ordre annulleres …",
      "completed": "Din betaling er bekræftet. Tak.",
      "failed": "Denne ordre kan ikke betales.",
      "cancelled": "Denne ordre er annulleret.",
      "expired": "Tiden til at betale denne ordre er udløbet."
    },
    "sv": {
      "legend": "Välj betalningssätt",
      "pay": "Fortsätt till betalning",
      "starting": "Betalningssidan öppnas …",
      "choose": "Välj ett betalningssätt för att fortsätta.",
      "declined": "Betalningen genomfördes inte: {reason}",
      "declinedPlain": "Betalningen genomfördes inte. Du kan försöka igen.",
      "again": "Du kan försöka igen eller välja ett annat sätt.",
      "failedStart": "Betalningen kunde inte startas. Inget har debiterats. Försök igen.",
      "noMethods": "Det finns inget betalningssätt för den här ordern.",
      "unreachable": "Anslutningen bröts. Vi försöker igen.",
      "gone": "Den här betalningen är inte längre tillgänglig.",
      "continue": "Fortsätt",
      "preparing": "Dina betalningssätt förbereds …",
      "ready": "Redo för betalning.",
      "processing": "Din betalning bekräftas …",
      "closing": "Ordern avbryts …",
      "completed": "Din betalning är bekräftad. Tack.",
      "failed": "Den här ordern kan inte betalas.",
      "cancelled": "Ordern har avbrutits.",
      "expired": "Tiden för att betala ordern har gått ut."
    },
    "nb": {
      "legend": "Velg betalingsmåte",
      "pay": "Fortsett til betaling",
      "starting": "Åpner betalingssiden …",
      "choose": "Velg en betalingsmåte for å fortsette.",
      "declined": "Betalingen ble ikke gjennomført: {reason}",
      "declinedPlain": "Betalingen ble ikke gjennomført. Du kan prøve igjen.",
      "again": "Du kan prøve igjen eller velge en annen måte.",
      "failedStart": "Betalingen kunne ikke startes. Ingenting er trukket. Prøv igjen.",
      "noMethods": "Det finnes ingen betalingsmåte for denne ordren.",
      "unreachable": "Forbindelsen ble brutt. Vi prøver igjen.",
      "gone": "Denne betalingen er ikke lenger tilgjengelig.",
      "continue": "Fortsett",
      "preparing": "Betalingsmåtene dine gjøres klare …",
      "ready": "Klar til betaling.",
      "processing": "Betalingen din bekreftes …",
      "closing": "Ordren avbestilles …",
      "completed": "Betalingen din er bekreftet. Takk.",
      "failed": "Denne ordren kan ikke betales.",
      "cancelled": "Ordren er avbestilt.",
      "expired": "Tiden for å betale ordren er ute."
    },
    "de": {
      "legend": "Zahlungsart wählen",
      "pay": "Weiter zur Zahlung",
      "starting": "Die Zahlungsseite wird geöffnet …",
      "choose": "Bitte wählen Sie eine Zahlungsart.",
      "declined": "Die Zahlung wurde nicht abgeschlossen: {reason}",
      "declinedPlain": "Die Zahlung wurde nicht abgeschlossen. Sie können es erneut versuchen.",
      "again": "Sie können es erneut versuchen oder eine andere Zahlungsart wählen.",
      "failedStart": "Die Zahlung konnte nicht gestartet werden. Es wurde nichts abgebucht. Bitte versuchen Sie es erneut.",
      "noMethods": "Für diese Bestellung gibt es keine Zahlungsart.",
      "unreachable": "Die Verbindung wurde unterbrochen. Wir versuchen es weiter.",
      "gone": "Diese Zahlung ist nicht mehr verfügbar.",
      "continue": "Weiter",
      "preparing": "Ihre Zahlungsarten werden geladen …",
      "ready": "Bereit zur Zahlung.",
      "processing": "Ihre Zahlung wird bestätigt …",
      "closing": "Diese Bestellung wird storniert …",
      "completed": "Ihre Zahlung ist bestätigt. Vielen Dank.",
      "failed": "Diese Bestellung kann nicht bezahlt werden.",
      "cancelled": "Diese Bestellung wurde storniert.",
      "expired": "Die Zeit zum Bezahlen dieser Bestellung ist abgelaufen."
    }
  };
  const OTHER_NAMES = { no: "nb", nn: "nb" };
  const MOST_METHODS = 50, LONGEST_TEXT = 300, LONGEST_STREAM = 262144, LONGEST_ANSWER = 1048576;
  const PROBE_MS = 1500, ANSWER_MS = 20000, SILENCE_MS = 45000, REUSE_MS = 600000;
  const GONE = new Set([401, 403, 404]);
  let number = 0;

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const backoff = (tries) => pause((0.5 + Math.random() / 2) * Math.min(30000, 1000 * 2 ** tries));
  const short = (value) => String(value ?? "").slice(0, LONGEST_TEXT);
  const webUrl = (value) => {
    try {
      const url = new URL(value);
      return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
    } catch { return null; }
  };
  const languageOf = (wanted) => {
    for (const each of [wanted, document.documentElement.lang, ...(navigator.languages ?? [])]) {
      const name = String(each ?? "").toLowerCase().split("-")[0];
      const known = OTHER_NAMES[name] ?? name;
      if (Object.hasOwn(TEXTS, known)) return known;
    }
    return "en";
  };
  const node = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };
  const stored = (key, value) => {
    // Storage may be switched off; then a reload forgets the choice, and nothing else.
    try {
      if (value === undefined) return JSON.parse(sessionStorage.getItem(key) ?? "null") ?? {};
      sessionStorage.setItem(key, JSON.stringify(value));
    } catch {}
    return value ?? {};
  };

  class Problem extends Error {
    constructor(status) { super(`HTTP ${status}`); this.status = status; }
  }

  // Whether a wallet can be used in this browser; each type is asked by itself, and one that fails hides itself alone.
  const PROBES = {
    APPLE_PAY: () => Boolean(globalThis.ApplePaySession?.canMakePayments()),
    ANDROID_WALLET: () => typeof globalThis.PaymentRequest === "function" && /Android/.test(navigator.userAgent),
    GOOGLE_PAY: () => typeof globalThis.PaymentRequest === "function",
  };

  class View {
    constructor(root, options) {
      const data = root.dataset;
      const chosen = { id: data.checkout, clientToken: data.clientToken, api: data.api, language: data.language, ...options };
      if (!chosen.id || !chosen.clientToken) throw new TypeError("checkout.js: id and clientToken are needed");
      this.root = root;
      this.base = `${new URL(chosen.api || location.origin, location.href).href.replace(/\/+$/, "")}/v1/checkouts/${encodeURIComponent(chosen.id)}`;
      this.token = chosen.clientToken;
      this.language = languageOf(chosen.language);
      this.texts = { ...TEXTS[this.language], ...chosen.texts };
      this.wallets = chosen.wallets ?? {};
      this.logos = chosen.logos ?? data.logos !== "false";
      this.follow = chosen.follow ?? "follow" in data;
      this.key = `checkout:${chosen.id}`;
      this.name = `checkout-method-${++number}`;
      this.open = new AbortController();
      this.busy = false;
      this.said = this.texts.preparing;
      root.classList.add("checkout");
      root.lang = this.language;
      this.alert = node("p", "checkout-alert");
      this.alert.setAttribute("role", "alert");
      this.alert.tabIndex = -1;
      this.alert.hidden = true;
      this.state = node("p", "checkout-state", this.said);
      this.state.setAttribute("role", "status");
      this.form = node("form", "checkout-form");
      this.form.noValidate = true;
      this.form.hidden = true;
      this.fieldset = node("fieldset", "checkout-methods");
      this.fieldset.append(node("legend", "", this.texts.legend));
      this.button = node("button", "checkout-pay", this.texts.pay);
      this.button.type = "submit";
      this.form.append(this.fieldset, this.button);
      this.onward = node("a", "checkout-continue", this.texts.continue);
      this.onward.hidden = true;
      root.replaceChildren(this.alert, this.state, this.form, this.onward);
      const until = { signal: this.open.signal };
      this.form.addEventListener("submit", (event) => { event.preventDefault(); this.pay(); }, until);
      this.form.addEventListener("change", () => { this.alertAbout("choose", null); this.keep(); }, until);
      // The browser may show the page again as it was when the shopper left it for the payment page.
      addEventListener("pageshow", (event) => { if (event.persisted) this.rest(); }, until);
      this.run();
    }

    close() {
      this.open.abort();
      this.root.replaceChildren();
    }

    tell(kind, detail, cancelable = false) {
      return this.root.dispatchEvent(new CustomEvent(`checkout:${kind}`, { detail, cancelable, bubbles: true }));
    }

    alertAbout(kind, text, focus = true) {
      if (text === null) {
        if (this.alerted === kind) { this.alert.hidden = true; this.alerted = undefined; }
        return;
      }
      this.alerted = kind;
      this.alert.textContent = text;
      this.alert.hidden = false;
      if (focus) this.alert.focus();
    }

    // The line has the state, or that the connection is lost; the alert is for what the shopper must read.
    line(text) {
      if (this.state.textContent !== text) this.state.textContent = text;
    }

    async get(end, { stream = false, last = "" } = {}) {
      const aborted = new AbortController();
      const abort = () => aborted.abort();
      const stop = () => { this.open.signal.removeEventListener("abort", abort); abort(); };
      this.open.signal.addEventListener("abort", abort);
      const timer = setTimeout(abort, ANSWER_MS);
      let kept = false;
      try {
        const answer = await fetch(`${this.base}/${end}`, {
          headers: { Authorization: `Bearer ${this.token}`, ...(last && { "Last-Event-ID": last }) },
          cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer", signal: aborted.signal,
        });
        if (!answer.ok) throw new Problem(answer.status);
        if (stream) { kept = true; return { answer, stop }; }
        const text = await answer.text();
        if (text.length > LONGEST_ANSWER) throw new Problem(answer.status);
        return JSON.parse(text);
      } finally {
        clearTimeout(timer);
        if (!kept) stop();
      }
    }

    // The stream first; where it cannot be had twice in a row, /status every few seconds, and the stream again later.
    async run() {
      let failures = 0;
      while (!this.open.signal.aborted && !this.final) {
        try {
          if (failures % 6 < 2) await this.stream();
          else this.show(await this.get("status"));
          if (failures) failures += failures % 6 < 2 ? -failures : 1;
          if (!this.final) await pause((1 + Math.random()) * (failures ? 2000 : 1000));
        } catch (error) {
          if (this.open.signal.aborted) return;
          if (GONE.has(error.status)) {
            this.end();
            this.line("");
            this.alertAbout("gone", this.texts.gone);
            this.tell("error", { kind: "gone", status: error.status });
            return;
          }
          const polled = failures % 6 >= 2;
          failures += 1;
          // A stream that is refused is no lost connection: /status is read next.
          if (failures > 1 && (polled || !error.status)) this.line(this.texts.unreachable);
          this.tell("error", { kind: "unreachable", status: error.status ?? null });
          await backoff(Math.min(failures, 5));
        }
      }
    }

    async stream() {
      const { answer, stop } = await this.get("stream", { stream: true, last: this.last });
      if (answer.status === 204) { stop(); this.final = true; return; }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "", silence;
      const heard = () => {
        clearTimeout(silence);
        silence = setTimeout(stop, SILENCE_MS);
        this.line(this.said);
      };
      try {
        for (heard(); ; heard()) {
          const { done, value } = await reader.read();
          if (done) return;
          text += value;
          if (text.length > LONGEST_STREAM) throw new Problem(answer.status);
          for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
            const event = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s, 2)));
            if (event.event !== "status") continue;
            this.last = event.id;
            this.show(JSON.parse(event.data));
          }
        }
      } finally {
        clearTimeout(silence);
        stop();
      }
    }

    show(status) {
      this.final = status.final === true;
      this.root.dataset.state = short(status.state);
      this.tell("status", status);
      this.said = this.texts[status.state] ?? short(status.state);
      this.line(this.said);
      const declinedAt = this.final ? undefined : status.declined?.at;
      if (declinedAt !== this.declinedAt) {
        this.declinedAt = declinedAt;
        this.alertAbout("declined", null);
        if (declinedAt) {
          const reason = short(status.declined.reason);
          const text = reason ? `${this.texts.declined.replace("{reason}", () => reason).replace(/[^.!?]$/, "$&.")} ${this.texts.again}` : this.texts.declinedPlain;
          this.rest();
          this.alertAbout("declined", text, this.root.ownerDocument.hasFocus());
        }
      }
      const methods = Array.isArray(status.paymentMethods) ? status.paymentMethods.slice(0, MOST_METHODS) : [];
      const payable = status.state === "ready";
      if (payable) this.list(methods);
      this.form.hidden = !payable;
      if (this.final) this.finish(status);
    }

    finish(status) {
      this.end();
      const next = webUrl(status.nextUrl);
      if (next === null || next.split("#")[0] === location.href.split("#")[0]) return;
      this.onward.href = next;
      this.onward.hidden = false;
      if (this.follow && this.tell("redirect", { url: next }, true)) location.assign(next);
    }

    end() {
      this.final = true;
      this.form.hidden = true;
      this.alertAbout(this.alerted, null);
      try { sessionStorage.removeItem(this.key); } catch {}
    }

    async list(methods) {
      const drawn = JSON.stringify(methods);
      if (drawn === this.drawn) return;
      this.drawn = drawn;
      const usable = await Promise.all(methods.map((method) => this.usable(method)));
      if (drawn !== this.drawn) return;
      let shown = methods.filter((_, index) => usable[index]);
      // The payment page of the gateway is the way of every method: without a usable wallet row it takes them all.
      if (!shown.length) shown = methods;
      this.methods = new Map(shown.map((method) => [String(method.id), method]));
      const before = this.chosen()?.id ?? stored(this.key).method;
      const rows = shown.map((method) => this.row(method, String(method.id) === String(before)));
      this.fieldset.replaceChildren(this.fieldset.firstChild, ...rows);
      if (rows.length === 1) rows[0].querySelector("input").checked = true;
      this.button.hidden = !rows.length;
      this.alertAbout("noMethods", rows.length ? null : this.texts.noMethods);
      this.tell("methods", { methods: shown });
    }

    async usable(method) {
      const probe = this.wallets[method.type]?.probe ?? PROBES[method.type];
      if (!probe) return true;
      try {
        return await Promise.race([Promise.resolve(probe(method)), pause(PROBE_MS).then(() => false)]);
      } catch { return false; }
    }

    row(method, checked) {
      const row = node("label", "checkout-method");
      const input = node("input");
      input.type = "radio";
      input.name = this.name;
      input.value = String(method.id);
      input.checked = checked;
      const words = node("span", "checkout-words");
      words.append(node("span", "checkout-name", short(method.name)));
      if (method.description) {
        const about = node("span", "checkout-description", short(method.description));
        words.append(about);
      }
      row.append(input, words);
      const logo = this.logos ? webUrl(method.logoUrl) : null;
      if (logo) {
        const image = node("img", "checkout-logo");
        image.alt = "";
        image.referrerPolicy = "no-referrer";
        image.width = 48;
        image.height = 30;
        image.addEventListener("error", () => image.remove());
        image.src = logo;
        row.append(image);
      }
      return row;
    }

    chosen() {
      return this.methods?.get(this.fieldset.querySelector("input:checked")?.value);
    }

    keep() {
      const method = this.chosen();
      if (method) stored(this.key, { ...stored(this.key), method: String(method.id) });
    }

    rest() {
      this.busy = false;
      this.button.disabled = false;
      this.button.textContent = this.texts.pay;
    }

    async pay() {
      const method = this.chosen();
      if (!method) {
        this.alertAbout("choose", this.texts.choose, false);
        this.fieldset.querySelector("input")?.focus();
        return;
      }
      if (this.busy) return;
      this.busy = true;
      this.button.disabled = true;
      this.button.textContent = this.texts.starting;
      this.alertAbout("failedStart", null);
      try {
        const payment = await this.initiate(method);
        if (this.open.signal.aborted) return;
        const pay = this.wallets[method.type]?.pay;
        if (pay) {
          try {
            await pay({ method, payment });
            return this.rest();
          } catch (error) {
            if (this.open.signal.aborted) return;
            this.tell("error", { kind: "wallet", message: short(error?.message) });
          }
        }
        const url = webUrl(payment.url);
        if (!url) throw new Problem(0);
        if (this.tell("redirect", { url }, true)) location.assign(url);
        else this.rest();
      } catch (error) {
        if (this.open.signal.aborted) return;
        this.rest();
        this.alertAbout("failedStart", this.texts.failedStart);
        this.tell("error", { kind: "start", status: error.status ?? null });
      }
    }

    // Every call of the gateway makes another payment, so a payment page that was opened a moment ago is opened again,
    // unless an attempt was declined since, or the order was offered again: a changed amount keeps its session and gets
    // another deadline. The status is read after the session, so no page is kept for a later offer than its own.
    async initiate(method) {
      const session = await this.get("session");
      const { deadline, declined } = await this.get("status");
      const same = [session.id, deadline, method.id, declined?.at].join(" ");
      const kept = stored(this.key);
      if (kept.same === same && Date.now() - kept.at < REUSE_MS && webUrl(kept.url)) return { paymentId: kept.paymentId, url: kept.url };
      const address = webUrl(method.onInitiatePayment?.value);
      if (!address) throw new Problem(0);
      const aborted = AbortSignal.timeout(ANSWER_MS);
      const answer = await fetch(address, {
        method: "POST", credentials: "omit", referrerPolicy: "no-referrer", signal: aborted,
        headers: { "Content-Type": "application/json", Authorization: `Bearer ${session.token}` },
        body: JSON.stringify({ paymentMethodId: method.id, sessionId: session.id }),
      });
      if (!answer.ok) throw new Problem(answer.status);
      const payment = await answer.json();
      this.tell("initiate", { methodId: method.id, paymentId: payment.paymentId });
      stored(this.key, { method: String(method.id), same, paymentId: payment.paymentId, url: payment.url, at: Date.now() });
      return payment;
    }
  }

  globalThis.OrchestratorCheckout = Object.freeze({
    version: VERSION,
    texts: TEXTS,
    mount: (root, options = {}) => new View(root, options),
  });
  const start = () => {
    for (const root of document.querySelectorAll("[data-checkout][data-client-token]")) new View(root, {});
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start, { once: true });
  else start();
})();
