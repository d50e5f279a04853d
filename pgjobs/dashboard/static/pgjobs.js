// Refreshes the live part of a page, and helps to tick many jobs. Every page works without it.
"use strict";

(() => {
  // On a narrow screen the links to the pages scroll to the side: show the one of this page.
  const present = document.querySelector(".top nav [aria-current]");
  if (present !== null) {
    const nav = present.parentElement;
    nav.scrollLeft = present.offsetLeft - nav.offsetLeft - (nav.clientWidth - present.clientWidth) / 2;
  }

  // --- live refresh: fetch the same page, and make the live part like the new one, element by element

  const live = document.getElementById("live");
  const seconds = live === null ? 0 : Number(live.dataset.refresh || 0);
  let leaving = null; // set when the browser goes to another page: an answer that is still coming is not wanted
  let failedSince = null;

  // The element of the new page that an old one becomes: the one of the same id, else the one in the same place.
  const key = (node) => (node.nodeType === Node.ELEMENT_NODE && node.id) || "";
  const alike = (old, fresh) =>
    old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && key(old) === key(fresh);

  // What the user does to an element is not in its attributes on the server: whether it is open, ticked or typed in.
  const isUsers = (element, name) =>
    name === "open" || (name === "hidden" && "all" in element.dataset) ||
    (/^(INPUT|TEXTAREA|SELECT|OPTION|BUTTON)$/.test(element.nodeName) && /^(value|checked|selected|disabled)$/.test(name));

  function updateAttributes(old, fresh) {
    for (const { name, value } of fresh.attributes) {
      if (!isUsers(old, name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!isUsers(old, name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
  }

  function update(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    updateAttributes(old, fresh);
    if (old.nodeName !== "TEXTAREA") updateChildren(old, fresh);
  }

  function updateChildren(old, fresh) {
    const byKey = new Map([...old.children].filter(key).map((child) => [child.id, child]));
    const kept = new Set([...fresh.children].map(key));
    for (const [id, child] of byKey) if (!kept.has(id)) child.remove(); // first, so that what stays is not moved
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      let found = key(child) ? byKey.get(child.id) : place;
      if (!key(child)) while (found && key(found)) found = found.nextSibling; // never take a row for another
      if (found && alike(found, child)) {
        if (found === place) place = place.nextSibling;
        else old.insertBefore(found, place);
        update(found, child);
      } else {
        old.insertBefore(document.importNode(child, true), place);
      }
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  function say(problem) {
    let note = document.getElementById("stale");
    if (problem === null) {
      failedSince = null;
      if (note) note.remove();
      return;
    }
    failedSince = failedSince || new Date();
    if (!note) {
      note = document.createElement("p");
      note.id = "stale";
      note.className = "stale";
      note.setAttribute("role", "status");
      live.before(note);
    }
    note.textContent = `This page is as it was at ${failedSince.toLocaleTimeString()}: ${problem}. It goes on trying.`;
  }

  async function refresh() {
    if (leaving) leaving(); // an older answer must not come after a newer one
    const request = new AbortController();
    let late = false;
    const timer = setTimeout(() => { late = true; request.abort(); }, 20000);
    leaving = () => request.abort();
    try {
      const answer = await fetch(location.href, { signal: request.signal, credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) return say(`the server answered with status ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      if (request.signal.aborted) return;
      if (answer.redirected || fresh === null) return say("the server sent another page, perhaps a login");
      say(null);
      updateChildren(live, fresh);
      countTicks();
    } catch (error) {
      if (late || !request.signal.aborted) say(late ? "the server is too slow" : "the server cannot be reached");
    } finally {
      clearTimeout(timer);
    }
  }

  let gone = false; // the browser is on its way to another page
  async function again() {
    if (!gone && !document.hidden && !isSelecting()) await refresh();
    setTimeout(again, seconds * 1000);
  }

  // A refresh would take away the text that is being marked to be copied.
  function isSelecting() {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && live.contains(selection.anchorNode);
  }

  if (seconds > 0) setTimeout(again, seconds * 1000);
  document.addEventListener("submit", () => {
    gone = true;
    if (leaving) leaving();
    setTimeout(() => { gone = false; }, 30000); // the form led nowhere, as a download or a stopped request
  });
  window.addEventListener("pagehide", () => {
    gone = true;
    if (leaving) leaving();
  });

  // --- ticks: all of a page, a range with Shift, their number; the buttons need one

  const bulk = document.querySelector("form[data-bulk]");
  const ticks = () => [...document.querySelectorAll('input[type="checkbox"][form="bulk"]')];
  let lastTick = null;

  function countTicks() {
    const all = document.querySelector("[data-all]");
    if (bulk === null) return;
    const boxes = ticks();
    const ticked = boxes.filter((box) => box.checked).length;
    bulk.querySelector("[data-count]").textContent = `(${ticked})`;
    for (const button of bulk.querySelectorAll("button")) button.disabled = ticked === 0;
    if (all === null) return;
    all.hidden = false;
    all.checked = ticked > 0 && ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
  }

  document.addEventListener("click", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement) || box.type !== "checkbox" || bulk === null) return;
    if ("all" in box.dataset) {
      for (const each of ticks()) each.checked = box.checked;
    } else if (box.getAttribute("form") === "bulk") {
      const boxes = ticks();
      const [from, to] = [boxes.indexOf(lastTick), boxes.indexOf(box)];
      if (event.shiftKey && from >= 0) {
        for (const each of boxes.slice(Math.min(from, to), Math.max(from, to) + 1)) each.checked = box.checked;
      }
      lastTick = box;
    } else return;
    countTicks();
  });

  // The browser may show a page as it was left: no tick of an action that is over may stay, to be repeated.
  window.addEventListener("pageshow", (event) => {
    gone = false;
    if (event.persisted) for (const box of ticks()) box.checked = false;
    countTicks();
  });
  countTicks();

  // --- what was done is said once, also when the page is loaded again

  const here = new URL(location.href);
  if (here.searchParams.has("done")) {
    here.searchParams.delete("done");
    history.replaceState(null, "", here);
  }
})();
