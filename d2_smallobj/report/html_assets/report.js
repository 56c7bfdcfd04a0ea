(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("scripted");

  // Theme: the system's until the reader chooses; storage may be forbidden for files.
  var KEY = "d2_smallobj-theme";
  var button = document.getElementById("theme");
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function stored() { try { return localStorage.getItem(KEY); } catch (error) { return null; } }
  function isDark() {
    var chosen = root.getAttribute("data-theme");
    return chosen ? chosen === "dark" : system.matches;
  }
  function tell() {
    button.textContent = isDark() ? "☀ Light" : "☾ Dark";
    button.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
  }
  var before = stored();
  if (before === "dark" || before === "light") { root.setAttribute("data-theme", before); }
  button.addEventListener("click", function () {
    var theme = isDark() ? "light" : "dark";
    root.setAttribute("data-theme", theme);
    try { localStorage.setItem(KEY, theme); } catch (error) { /* kept for this visit only */ }
    tell();
  });
  if (system.addEventListener) { system.addEventListener("change", tell); }
  tell();

  // Sorting: numbers from high to low first, texts from A to Z; undefined last either way.
  var collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  function sort(table, heading) {
    var headings = Array.prototype.slice.call(heading.parentNode.children);
    var column = headings.indexOf(heading);
    var isText = heading.classList.contains("text");
    var now = heading.getAttribute("aria-sort");
    var up = now === "none" ? isText : now === "descending";
    headings.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    var body = table.tBodies[0];
    var rows = Array.prototype.map.call(body.rows, function (row, place) {
      return { row: row, place: place, value: row.cells[column].getAttribute("data-value") };
    });
    var numeric = rows.every(function (item) { return item.value === "" || isFinite(item.value); });
    rows.sort(function (a, b) {
      if (a.value === "" || b.value === "") {
        return (a.value === "") - (b.value === "") || a.place - b.place;
      }
      var order = numeric ? a.value - b.value : collator.compare(a.value, b.value);
      return (up ? order : -order) || a.place - b.place;
    });
    rows.forEach(function (item) { body.appendChild(item.row); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (heading) {
      heading.querySelector("button").addEventListener("click", function () { sort(table, heading); });
    });
  });

  // One figure at a time where several methods make a table wide.
  document.querySelectorAll("select.chooser").forEach(function (select) {
    var table = document.getElementById(select.getAttribute("data-table"));
    function show() {
      table.querySelectorAll("[data-group]").forEach(function (cell) {
        cell.hidden = select.value !== "" && cell.getAttribute("data-group") !== select.value;
      });
    }
    select.addEventListener("change", show);
    show();
  });
}());
