
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const REASONS = ["wrong mask", "wrong class", "object without a mask", "several objects in one mask", "poor picture", "other"];
  // Okabe and Ito's colours, bright enough to lie on a picture.
  const COLOURS = ["#e69f00", "#56b4e9", "#00c792", "#f0e442", "#ff7ac6", "#3d8bff", "#ff6b2c", "#c9a6ff"];
  const LOOKS = ["filled", "outlines", "none"];
  const $ = id => document.getElementById(id);
  const sheet = JSON.parse($("sheet").textContent);
  const images = sheet.images;

  /* ---- images: parsed when they are shown, the last ones kept ---- */
  const parsed = new Map();
  function load(index) {
    let data = parsed.get(index);
    if (!data) {
      data = JSON.parse($("image-" + index).textContent);
      if (parsed.size >= 64) { parsed.delete(parsed.keys().next().value); }
      parsed.set(index, data);
    }
    return data;
  }

  /* ---- decisions: one stored entry an image, so that open sheets do not overwrite each other ---- */
  const PREFIX = "d2_smallobj-review:" + sheet.set + ":";
  const PLACE = "d2_smallobj-review-place:" + sheet.set + ":" + sheet.number;
  const decisions = new Map();
  const history = [];
  let storing = true, unsaved = false;
  function keyOf(id) { return JSON.stringify(id); }
  function take(key, text) {
    try {
      const entry = JSON.parse(text);
      if (entry && (entry.decision === "keep" || entry.decision === "reject")) { decisions.set(key, entry); }
    } catch (error) { /* not ours */ }
  }
  function store(key, text) {
    try {
      if (text === null) { localStorage.removeItem(key); } else { localStorage.setItem(key, text); }
    } catch (error) { storing = false; }
  }
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      if (key.startsWith(PREFIX)) { take(key.slice(PREFIX.length), localStorage.getItem(key)); }
    }
  } catch (error) { storing = false; }
  function put(key, entry) {
    if (entry) { decisions.set(key, entry); } else { decisions.delete(key); }
    store(PREFIX + key, entry ? JSON.stringify(entry) : null);
    unsaved = true;
  }
  /** Make changes [{id, decision, reason}] that one undo takes back. */
  function change(entries) {
    history.push({ at: current, before: entries.map(e => [keyOf(e.id), decisions.get(keyOf(e.id)) || null]) });
    entries.forEach(entry => put(keyOf(entry.id), entry));
  }
  function undo() {
    const last = history.pop();
    if (!last) { return; }
    last.before.forEach(pair => put(pair[0], pair[1]));
    if (shown.indexOf(last.at) < 0) { $("filters").reset(); filter(); }
    go(last.at);
    tell(last.before.length > 1 ? "Undone: the loaded list." : "Undone.");
  }
  window.addEventListener("storage", event => {
    if (event.key === null) { decisions.clear(); }
    else if (!event.key.startsWith(PREFIX)) { return; }
    else {
      const key = event.key.slice(PREFIX.length);
      decisions.delete(key);
      if (event.newValue !== null) { take(key, event.newValue); }
    }
    render();
  });
  window.addEventListener("beforeunload", event => {
    if (!storing && unsaved) { event.preventDefault(); }
  });

  /* ---- filters ---- */
  let shown = images.map((_, index) => index), current = 0;
  const decisionOf = index => decisions.get(keyOf(images[index].id));
  function filter() {
    const by = name => $("by-" + name).value;
    const words = by("name").trim().toLowerCase();
    const size = by("size"), kind = by("class"), why = by("suspicion");
    shown = images.map((_, index) => index).filter(index => {
      const image = images[index], made = decisionOf(index);
      if (by("decision") && by("decision") !== (made ? made.decision : "none")) { return false; }
      if (why && !(why === "some" ? image.why.length : why === "none" ? !image.why.length : image.why.includes(why.slice(1)))) { return false; }
      if ((kind || size) && !image.cells.some(cell => (!kind || cell[0] === +kind) && (!size || cell[1] === +size))) { return false; }
      return !words || image.file.toLowerCase().includes(words) || String(image.id) === words;
    });
    if (shown.length && shown.indexOf(current) < 0) { current = shown[0]; }
    render();
  }
  function options(select, pairs) {
    pairs.forEach(pair => select.add(new Option(pair[1], pair[0])));
  }
  const present = new Set(images.flatMap(image => image.cells.map(cell => cell[0])));
  options($("by-class"), sheet.classes.map((name, number) => [number + 1, name]).filter(pair => present.has(pair[0])));
  options($("by-size"), sheet.sizes.map((name, number) => [number, name]));
  // A mark before the text keeps a reason called "none" apart from the option.
  options($("by-suspicion"), [...new Set(images.flatMap(image => image.why))].sort().map(text => ["=" + text, text]));
  $("filters").addEventListener("change", event => {
    filter();
    // Letters are keys of the sheet again, not of the list of options.
    if (event.target.tagName === "SELECT") { event.target.blur(); }
  });
  $("by-name").addEventListener("input", filter);
  $("filters").addEventListener("submit", event => { event.preventDefault(); $("by-name").blur(); });
  $("filters").addEventListener("reset", () => setTimeout(filter));

  /* ---- moving ---- */
  function go(index) {
    current = index;
    zoomed = -1;
    store(PLACE, String(index));
    render();
  }
  function step(by) {
    const place = shown.indexOf(current) + by;
    if (place >= 0 && place < shown.length) { go(shown[place]); } else { tell(by > 0 ? "That was the last image." : "This is the first image."); render(); }
  }
  function nextUndecided() {
    const place = shown.indexOf(current);
    const next = [...shown.slice(place + 1), ...shown.slice(0, place + 1)].find(index => !decisionOf(index));
    if (next === undefined) { tell("Every image shown has a decision."); } else { go(next); }
  }
  function decide(decision, reason) {
    if (!shown.length) { return; }
    const image = images[current];
    const entry = { id: image.id, decision: decision };
    if (decision === "reject") { entry.reason = reason || image.why.join("; ") || "rejected by eye"; }
    tell("");
    change([entry]);
    step(1);
  }

  /* ---- drawing ---- */
  // Mask and row of every object shown.
  let look = 0, zoomed = -1, parts = [];
  function element(name, attributes, text) {
    const made = name === "path" ? document.createElementNS(SVG, name) : document.createElement(name);
    Object.entries(attributes || {}).forEach(pair => made.setAttribute(pair[0], pair[1]));
    if (text !== undefined) { made.textContent = text; }
    return made;
  }
  function said(entry) {
    return !entry ? "No decision yet" : entry.decision === "keep" ? "Kept" : "Rejected: " + entry.reason;
  }
  function tell(text, bad) {
    $("message").textContent = text;
    $("message").classList.toggle("bad", Boolean(bad));
  }
  function light(number) {
    parts.forEach((pair, place) => pair.forEach(part => part.classList.toggle("lit", place === number)));
  }
  function viewBox(data) {
    const [w, h] = data.view;
    if (zoomed < 0) { return [0, 0, w, h]; }
    const [x, y, bw, bh] = data.objects[zoomed][4];
    const side = Math.min(Math.max(2.5 * Math.max(bw, bh), 48), Math.max(w, h));
    return [x + bw / 2 - side / 2, y + bh / 2 - side / 2, side, side];
  }
  function zoom(number) {
    zoomed = number === zoomed ? -1 : number;
    renderView();
  }
  function renderView() {
    const data = load(current);
    $("view").setAttribute("viewBox", viewBox(data).join(" "));
    $("stage").classList.toggle("bare", look === 2);
    $("masks").classList.toggle("outlines", look === 1);
    $("toggle-masks").firstChild.data = "Masks: " + LOOKS[look] + " ";
    light(zoomed);
  }
  function renderImage() {
    const image = images[current], data = load(current), entry = decisionOf(current);
    const picture = $("picture");
    picture.setAttribute("href", data.picture);
    picture.setAttribute("width", data.view[0]);
    picture.setAttribute("height", data.view[1]);
    $("void").setAttribute("d", data.void);
    $("name").textContent = image.file;
    $("facts").textContent = "id " + image.id + " · " + data.size.join(" × ") + " px · image " + (shown.indexOf(current) + 1) + " of " + shown.length + (data.void ? " · striped: ignored" : "");
    ["decision", "stage"].forEach(id => ["keep", "reject"].forEach(name => {
      $(id).classList.toggle(name, Boolean(entry) && entry.decision === name);
    }));
    $("decision").textContent = said(entry);
    $("reason").value = entry && entry.reason || "";
    $("why-box").hidden = !image.why.length;
    $("why").replaceChildren(...image.why.map(text => element("li", {}, text)));
    const masks = [], rows = [];
    data.objects.forEach(([kind, size, area, outline], number) => {
      const style = "--c:" + COLOURS[number % COLOURS.length];
      const words = [sheet.classes[kind - 1], sheet.sizes[size], area.toLocaleString("en") + " px"];
      const mask = element("path", { d: outline, style: style, "fill-rule": "evenodd" });
      const button = element("button", { type: "button" });
      button.append(element("span", { class: "dab", style: style }), ...words.map(text => element("span", {}, text)));
      [mask, button].forEach(part => {
        part.addEventListener("pointerenter", () => light(number));
        part.addEventListener("pointerleave", () => light(zoomed));
        part.addEventListener("click", () => zoom(number));
      });
      const row = element("li");
      row.append(button);
      masks.push(mask);
      rows.push(row);
    });
    parts = masks.map((mask, number) => [mask, rows[number].firstChild]);
    // Smaller objects lie on top, as in the label map.
    $("masks").replaceChildren(...masks.slice().reverse());
    $("objects").replaceChildren(...rows);
    renderView();
  }
  function renderStrip() {
    const room = Math.max(Math.floor($("strip").clientWidth / 110), 1), place = shown.indexOf(current);
    const first = Math.max(Math.min(place - (room >> 1), shown.length - room), 0);
    $("strip").replaceChildren(...shown.slice(first, first + room).map(index => {
      const entry = decisionOf(index), button = element("button", { type: "button", title: images[index].file, "data-index": index });
      if (entry) { button.classList.add(entry.decision); }
      if (index === current) { button.setAttribute("aria-current", "true"); }
      button.append(element("img", { src: load(index).picture, alt: images[index].file + ": " + said(entry) }));
      button.addEventListener("click", () => go(index));
      return button;
    }));
  }
  function render() {
    const made = images.map((_, index) => decisionOf(index)).filter(Boolean);
    const rejected = made.filter(entry => entry.decision === "reject").length;
    $("bar").max = images.length;
    $("bar").value = made.length;
    $("count").textContent = made.length + " of " + images.length + " decided, " + rejected + " rejected";
    $("shown").textContent = shown.length + " shown";
    $("undo").disabled = !history.length;
    $("nothing").hidden = shown.length > 0;
    $("view").toggleAttribute("hidden", !shown.length);
    $("about").hidden = !shown.length;
    if (shown.length) { renderImage(); }
    renderStrip();
  }

  /* ---- lists ---- */
  /** What the builder reads; "kept" is for another browser to go on from. */
  function rejectList() {
    const entries = [...decisions.values()].sort((a, b) => typeof a.id === "number" && typeof b.id === "number" ? a.id - b.id : String(a.id) < String(b.id) ? -1 : 1);
    const made = decision => entries.filter(entry => entry.decision === decision);
    return {
      version: 1,
      rejected: made("reject").map(entry => ({ image_id: entry.id, reason: entry.reason })),
      kept: made("keep").map(entry => entry.id)
    };
  }
  function save() {
    const list = rejectList();
    const address = URL.createObjectURL(new Blob([JSON.stringify(list, null, 1) + "\n"], { type: "application/json" }));
    const link = element("a", { href: address, download: "rejected.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    unsaved = false;
    const open = images.filter((_, index) => !decisionOf(index)).length;
    tell("Saved " + list.rejected.length + " rejected image(s)" + (open ? "; " + open + " on this sheet have no decision yet." : "."));
  }
  function readList(text) {
    const list = JSON.parse(text);
    if (!list || list.version !== 1 || !Array.isArray(list.rejected)) {
      throw new Error('it is not {"version": 1, "rejected": [...]}');
    }
    const isId = id => Number.isSafeInteger(id) || typeof id === "string";
    const kept = list.kept === undefined ? [] : list.kept;
    if (!Array.isArray(kept) || !kept.every(isId)) { throw new Error("'kept' is no list of image ids"); }
    const rejected = list.rejected.map((entry, place) => {
      const id = entry && entry.image_id, reason = entry && entry.reason;
      if (!isId(id) || !(reason === undefined || typeof reason === "string")) {
        throw new Error("entry " + (place + 1) + " has no image_id, or a reason that is no text");
      }
      return { id: id, decision: "reject", reason: reason || "rejected by eye" };
    });
    const gone = new Set(rejected.map(entry => keyOf(entry.id)));
    return [...rejected, ...kept.filter(id => !gone.has(keyOf(id))).map(id => ({ id: id, decision: "keep" }))];
  }
  function loadList(text, name) {
    let entries;
    try { entries = readList(text); } catch (error) {
      tell(name + " is no reject list: " + error.message, true);
      return;
    }
    const here = new Set(images.map(image => keyOf(image.id)));
    const known = entries.filter(entry => here.has(keyOf(entry.id))).length;
    if (entries.length) { change(entries); }
    filter();
    tell("Loaded " + entries.length + " decision(s), " + known + " of them on this sheet" + (known < entries.length ? "; the others are saved with this sheet's." : "."));
  }
  $("import").addEventListener("change", event => {
    const file = event.target.files[0];
    if (file) { file.text().then(text => loadList(text, file.name)); }
    event.target.value = "";
  });

  /* ---- mouse and keyboard ---- */
  function help() {
    $("keys").hidden = !$("keys").hidden;
    $("help").setAttribute("aria-expanded", String(!$("keys").hidden));
  }
  function nextZoom() {
    const number = load(current).objects.length;
    if (number) { zoomed = zoomed + 1 < number ? zoomed + 1 : -1; renderView(); }
  }
  const ACTIONS = {
    k: () => decide("keep"), r: () => decide("reject"), u: undo, m: () => { look = (look + 1) % 3; renderView(); },
    z: nextZoom, n: nextUndecided, s: save, e: () => $("reason").focus(), "?": help,
    arrowleft: () => step(-1), arrowright: () => step(1), home: () => shown.length && go(shown[0]),
    end: () => shown.length && go(shown[shown.length - 1]), escape: () => { zoomed = -1; renderView(); }
  };
  REASONS.forEach((reason, place) => { ACTIONS[place + 1] = () => decide("reject", reason); });
  document.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "file";
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing) { event.preventDefault(); undo(); return; }
    if (typing && event.key === "Escape") { event.target.blur(); return; }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) { return; }
    const action = ACTIONS[event.key.toLowerCase()];
    if (action && (shown.length || event.key === "u" || event.key === "?" || event.key === "s")) { event.preventDefault(); action(); }
  });
  const buttons = { keep: ACTIONS.k, reject: ACTIONS.r, undo: undo, help: help, zoom: nextZoom, export: save, "toggle-masks": ACTIONS.m };
  Object.entries(buttons).forEach(pair => $(pair[0]).addEventListener("click", pair[1]));
  // A reason that is written rejects the image, and stays there to be read over.
  $("reason").addEventListener("change", event => {
    const text = event.target.value.trim();
    if (text) { change([{ id: images[current].id, decision: "reject", reason: text }]); render(); }
  });
  $("reason").addEventListener("keydown", event => { if (event.key === "Enter") { event.target.blur(); } });
  window.addEventListener("resize", renderStrip);

  /* ---- start ---- */
  $("reasons").textContent = REASONS.map((reason, place) => (place + 1) + " " + reason).join(", ");
  [["previous-sheet", -1], ["next-sheet", 1]].forEach(pair => {
    const name = sheet.sheets[sheet.number + pair[1]];
    if (name) { $(pair[0]).href = encodeURIComponent(name); $(pair[0]).hidden = false; }
  });
  if (sheet.sheets.length > 1) {
    document.querySelector("h1").append(" · sheet " + (sheet.number + 1) + " of " + sheet.sheets.length);
  }
  try {
    const place = Number(localStorage.getItem(PLACE));
    if (place > 0 && place < images.length) { current = place; }
  } catch (error) { /* from the beginning, then */ }
  render();
  if (!storing) { tell("This browser stores nothing for files: save the reject list before you leave.", true); }
}());
