"use strict";
// Shows each snapshot that the server sends; texts come ready-made and go in as text, never as HTML.
(() => {
  const LOST_MS = 5000, RETRY_MS = 5000;
  const $ = (id) => document.getElementById(id);
  const state = $("state"), svgs = [...document.querySelectorAll("figure svg")];
  const SPANS = { charts: ["four minutes", "4 min ago"], hour: ["hour", "1 h ago"] };
  let source = null, view = null, heardAt = Date.now(), pointed = null, span = "charts";

  const toThree = (value) => String(Number(value.toPrecision(3)));
  const toCount = (value) => {
    for (const [bound, divisor, unit] of [[1e9, 1e9, " G"], [1e6, 1e6, " M"], [1e4, 1e3, " k"]])
      if (value >= bound) return toThree(value / divisor) + unit;
    return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(value < 100 ? 1 : 0);
  };
  const FORMATS = {
    count: toCount,
    ms: (value) => (value < 1000 ? `${value.toFixed(0)} ms` : `${toThree(value / 1000)} s`),
    usd: (value) => `$${toThree(value)}`,
  };

  const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  function toCell(value, className, isFirst) {
    const cell = document.createElement(isFirst ? "th" : "td");
    if (isFirst) cell.scope = "row";
    const [text, kind, share] = typeof value === "string" ? [value, ""] : value;
    cell.className = `${className} ${kind === "meter" ? "" : kind}`.trim();
    if (kind === "meter") {
      const meter = document.createElement("meter");
      Object.assign(meter, { max: 1, low: 0.1, high: 0.3, optimum: 1, value: share });
      meter.textContent = text;
      cell.append(meter, " ");
    }
    cell.append(text);
    return cell;
  }

  function showTable(table, rows) {
    const scroll = table.parentElement, shown = JSON.stringify(rows);
    if (table.shown === shown) return;
    if ("moves" in table.dataset && table.shown && scroll.matches(":hover, :focus-within")) return;
    table.shown = shown;
    const classes = [...table.tHead.rows[0].cells].map((heading) => heading.className);
    table.tBodies[0].replaceChildren(...rows.map((row) => {
      const line = document.createElement("tr");
      line.append(...row.map((value, at) => toCell(value, classes[at], at === 0)));
      return line;
    }));
    scroll.hidden = !rows.length;
    scroll.previousElementSibling.hidden = !!rows.length;
  }

  function showTiles(tiles) {
    [...$("tiles").children].forEach((element, at) => {
      const { label, value, note, level } = tiles[at];
      [label, value, note].forEach((text, index) => setText(element.children[index], text));
      element.className = `tile ${level}`;
    });
  }

  function toCeiling(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    return [1, 2, 2.5, 5, 10].map((step) => step * power).find((ceiling) => ceiling >= most * 0.999);
  }

  function toPath(values, ceiling) {
    let path = "", isOpen = false;
    values.forEach((value, at) => {
      if (value !== null) {
        const x = (at * 100 / (values.length - 1)).toFixed(2), y = (99 - value * 98 / ceiling).toFixed(2);
        // A value between two gaps is a dot.
        path += isOpen ? `L${x} ${y}` : `M${x} ${y}h.01`;
      }
      isOpen = value !== null;
    });
    return path;
  }

  function showChart(svg) {
    const figure = svg.closest("figure"), format = FORMATS[figure.dataset.unit];
    const lines = [...svg.querySelectorAll(".line")].map((path) => [path, view[span][path.dataset.line]]);
    const known = lines.flatMap(([, values]) => values).filter((value) => value !== null);
    const most = Math.max(0, ...known), length = lines[0][1].length;
    const ceiling = most > 0 ? toCeiling(most) : 1;
    const at = pointed === null ? length - 1 : Math.min(pointed, length - 1);
    for (const [path, values] of lines) {
      path.setAttribute("d", toPath(values, ceiling));
      const value = values[at];
      setText(figure.querySelector(`[data-latest="${path.dataset.line}"]`), value === null ? "–" : format(value));
    }
    const first = lines[0][1], solid = first.findIndex((value) => value !== null);
    const isWhole = solid >= 0 && first.slice(solid).every((value) => value !== null);
    const from = (solid * 100 / (length - 1)).toFixed(2);
    const line = isWhole ? toPath(first.slice(), ceiling) : "";
    svg.querySelector(".area").setAttribute("d", line && `${line}V99H${from}Z`);
    svg.querySelector(".cross").setAttribute("d", pointed === null ? "" : `M${at * 100 / (length - 1)} 0V100`);
    setText(figure.querySelector(".max"), most > 0 ? format(ceiling) : "");
    figure.querySelector(".none").hidden = most > 0 || (figure.dataset.unit === "ms" && known.length > 0);
    const title = figure.querySelector("h3").textContent;
    const told = lines.map(([path, values]) => {
      const label = figure.querySelector(`[data-latest="${path.dataset.line}"]`).parentElement.firstChild.data.trim();
      return `${label} ${values[length - 1] === null ? "unknown" : format(values[length - 1])}`;
    });
    svg.setAttribute("aria-label", `${title} over the last ${SPANS[span][0]}; now ${told.join(", ")}`);
  }

  function showCharts() {
    const times = view[span].t;
    setText($("pointed"), pointed === null ? "" : `figures of ${times[Math.min(pointed, times.length - 1)]}`);
    for (const from of document.querySelectorAll(".from")) setText(from, SPANS[span][1]);
    svgs.forEach(showChart);
  }

  function showState() {
    const isLost = Date.now() - heardAt > LOST_MS;
    document.body.classList.toggle("lost", isLost);
    state.className = isLost ? "lost" : "live";
    if (!isLost) setText(state, view ? `live, ${view.time} UTC` : "connecting");
    else setText(state, `Connection lost; ${view ? `data of ${view.time} UTC` : "no data yet"}. Trying again; reload if this stays.`);
  }

  function show(event) {
    view = JSON.parse(event.data);
    heardAt = Date.now();
    document.title = `${view.title} · openai_gateway`;
    setText($("version"), view.version);
    const alerts = view.alerts.map((text) => Object.assign(document.createElement("p"), { textContent: text }));
    if ($("alerts").textContent !== view.alerts.join("")) $("alerts").replaceChildren(...alerts);
    showTiles(view.tiles);
    for (const [id, rows] of Object.entries(view.tables)) showTable($(id), rows);
    $("charts").hidden = false;
    showCharts();
    showState();
  }

  function connect() {
    if (source) source.close();
    source = new EventSource(document.body.dataset.events);
    source.onmessage = show;
    source.onerror = () => {
      // The browser tries again by itself unless it was refused.
      if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(resume, RETRY_MS); }
    };
  }

  function resume() { if (!document.hidden && !source) connect(); }

  function point(event) {
    const svg = event.target.closest(".plot") && event.target.closest(".plot").querySelector("svg");
    let index = null;
    if (svg && view) {
      const box = svg.getBoundingClientRect(), length = view[span].t.length;
      index = Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (length - 1));
    }
    if (index !== pointed) { pointed = index; showCharts(); }
  }

  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      span = button.dataset.span;
      for (const other of document.querySelectorAll("[data-span]")) other.setAttribute("aria-pressed", other === button);
      if (view) showCharts();
    });
  }
  $("charts").addEventListener("pointermove", point);
  $("charts").addEventListener("pointerleave", point);
  document.addEventListener("visibilitychange", () => {
    // A page that nobody sees takes up no viewer's place.
    if (document.hidden && source) { source.close(); source = null; }
    else if (!document.hidden) { heardAt = Date.now(); resume(); }
  });
  setInterval(showState, 1000);
  connect();
})();
