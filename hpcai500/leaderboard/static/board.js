// Makes boards answer at once. Without it forms and links do the same, a page at a time.
"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const isStatic = document.body.dataset.static === "1";
  const words = () => {
    const found = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (String(value).trim() !== "") found.append(name, String(value).trim());
    }
    return found;
  };

  // On a server: fetch the page that the link or form leads to, and put its results in place of these.
  let newest = 0;
  const load = async (address, isNew) => {
    newest += 1;
    const mine = newest;
    let text;
    try {
      const answer = await fetch(address, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(String(answer.status));
      text = await answer.text();
    } catch {
      window.location.assign(address); // the browser says what is wrong
      return;
    }
    if (mine !== newest) return; // another was asked for since
    const page = new DOMParser().parseFromString(text, "text/html");
    const results = page.getElementById("results");
    if (!results) {
      window.location.assign(address);
      return;
    }
    const sort = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.sort : "";
    document.getElementById("results").replaceWith(results);
    const links = page.querySelector("main .links");
    if (links) document.querySelector("main .links").replaceWith(links);
    if (isNew) window.history.pushState(null, "", address);
    if (sort) {
      const header = results.querySelector(`a[data-sort="${sort}"]`);
      if (header) header.focus();
    }
    // A status that is new in a page is not read out; one that changes is.
    const status = document.getElementById("status");
    const said = status.innerHTML;
    status.textContent = "";
    window.setTimeout(() => { status.innerHTML = said; }, 50);
  };
  const keepSort = (address) => {
    const sort = new URL(address, window.location.href).searchParams.get("sort");
    let field = form.querySelector('input[name="sort"]');
    if (!field) {
      field = Object.assign(document.createElement("input"), { type: "hidden", name: "sort" });
      form.append(field);
    }
    field.value = sort || "";
  };
  const apply = () => {
    const query = words().toString();
    load(form.getAttribute("action") + (query ? `?${query}` : ""), true);
  };

  // In files: hide the rows that the filters leave out; ranks stay those of the whole board.
  const rows = () => [...document.querySelectorAll("table.board tbody tr")];
  const isWanted = (row, found) => {
    const nodes = Number(row.dataset.nodes);
    const equal = ["precision", "size_class", "year"].every((name) => !found.get(name) || row.dataset[name] === found.get(name));
    return equal
      && (!found.get("accelerator") || row.dataset.accelerator.includes(found.get("accelerator").toLowerCase()))
      && (!found.get("nodes_min") || nodes >= Number(found.get("nodes_min")))
      && (!found.get("nodes_max") || nodes <= Number(found.get("nodes_max")))
      && (!found.get("registered") || row.dataset.registered === "1")
      && (!found.get("energy") || row.dataset.energy === "1");
  };
  const hide = () => {
    const found = words();
    const all = rows();
    for (const row of all) row.hidden = !isWanted(row, found);
    document.body.classList.toggle("narrowed", [...found].length > 0); // rows above are others then
    const left = all.filter((row) => !row.hidden).length;
    const status = document.getElementById("status");
    status.dataset.whole = status.dataset.whole || status.textContent.trim();
    status.textContent = [...found].length === 0 ? status.dataset.whole
      : `${left} of ${all.length} submissions on this page; ranks are those of the whole board.`
        + (left === 0 ? " No submission is like that: take away a filter." : "");
    for (const link of document.querySelectorAll("#results thead a, #results .pages a")) link.search = found.toString();
  };
  const fill = () => {
    for (const [name, value] of new URLSearchParams(window.location.search)) {
      const field = form.elements.namedItem(name);
      if (field && field.type === "checkbox") field.checked = true;
      else if (field) field.value = value;
    }
  };

  let pause;
  const soon = () => {
    window.clearTimeout(pause);
    pause = window.setTimeout(isStatic ? hide : apply, 300);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    window.clearTimeout(pause);
    (isStatic ? hide : apply)();
  });
  form.addEventListener("input", soon);
  const panel = form.closest("details");
  if (window.matchMedia("(max-width: 40rem)").matches && words().toString() === "") panel.open = false;
  if (isStatic) {
    panel.hidden = false;
    fill();
    hide(); // also where a browser that comes back filled the form as it was
    return;
  }
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const link = event.target.closest("#results thead a, #results .pages a");
    if (!link) return;
    event.preventDefault();
    keepSort(link.href);
    load(link.href, true);
    if (link.closest(".pages")) document.getElementById("filters").scrollIntoView({ block: "start" });
  });
  window.addEventListener("popstate", () => window.location.reload());
})();
