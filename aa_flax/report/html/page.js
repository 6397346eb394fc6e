"use strict";
// Draws what is in #data: charts by name, and `walks`, the probabilities along diagonal shifts.
const report = JSON.parse(document.getElementById("data").textContent);
const config = { responsive: true, displayModeBar: false };
// With a finger one scrolls the page, with a mouse one zooms.
const dragmode = matchMedia("(pointer: fine)").matches ? "zoom" : false;

const dark = matchMedia("(prefers-color-scheme: dark)");
const ofPage = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(place, data, layout, more = {}) {
  const axis = { gridcolor: ofPage("--line"), linecolor: ofPage("--edge") };
  const colours = {
    font: { ...layout.font, color: ofPage("--ink") },
    plot_bgcolor: ofPage("--paper"),
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  };
  return Plotly.react(place, readable(data), { ...layout, ...colours, dragmode, ...more }, config);
}

// The colours of lines and marks are chosen for white; on a dark page they are mixed with white.
function readable(part, key) {
  if (!dark.matches) return part;
  if (Array.isArray(part)) return part.map((one) => readable(one));
  if (part !== null && typeof part === "object") {
    return Object.fromEntries(Object.entries(part).map(([k, value]) => [k, readable(value, k)]));
  }
  if (key !== "color") return part;
  const mixed = part.match(/[0-9a-f]{2}/g).map((hex) => Math.round(0.5 * parseInt(hex, 16) + 127));
  return `rgb(${mixed})`;
}

function drawCharts() {
  const places = [...document.querySelectorAll("[data-chart]")];
  return places.map((place) => {
    const chart = report[place.dataset.chart];
    return draw(place, chart.data, chart.layout);
  });
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      // Numbers: the largest first; names: in the order of the alphabet.
      const first = column === 0 ? "ascending" : "descending";
      const second = column === 0 ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sortRows(table.tBodies[0], column, order === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, sign) {
  const value = (row) => Number(row.cells[column].dataset.value);
  const compare = (a, b) => {
    if (column === 0) {
      return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en", { numeric: true });
    }
    const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // at the end
    return sign * (x - y);
  };
  body.append(...[...body.rows].sort(compare));
}

function walk(groups) {
  const at = (id) => document.getElementById(`walk-${id}`);
  const fill = (select, titles) => select.replaceChildren(...titles.map((t, i) => new Option(t, i)));
  let group, image;

  function chooseGroup() {
    group = groups[at("group").value];
    at("offset").max = group.offsets - 1;
    at("offset").value = Math.floor((group.offsets - 1) / 2);
    fill(at("image"), group.images.map((one) => one.title));
    return chooseImage();
  }

  function chooseImage() {
    image = group.images[at("image").value];
    showPicture();
    const traces = image.models.map((model) => ({
      type: "scatter", mode: "lines+markers", name: model.label, y: model.probability,
      line: { color: model.colour }, marker: { size: 6, symbol: image.models.indexOf(model) % 5 },
      hovertemplate: "shift %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    }));
    const drawn = draw(at("chart"), traces, group.layout, { shapes: [mark()] });
    moveRest();
    return drawn;
  }

  function showPicture() {
    const photo = at("photo");
    const stored = image.source !== null;
    at("window").hidden = !stored;
    at("caption").textContent = stored
      ? `${image.title}: input of the models, ${group.crop} of ${group.size} pixels`
      : "The image was not stored; eval.py --diagonal stores it when it is run again.";
    if (!stored) return;
    photo.src = image.source;
    photo.style.width = `${(100 * group.size) / group.crop}%`;
    photo.style.imageRendering = group.crop < 128 ? "pixelated" : "auto";
  }

  const offset = () => Number(at("offset").value);
  const mark = () => ({
    type: "line", x0: offset(), x1: offset(), yref: "paper", y0: 0, y1: 1,
    line: { color: ofPage("--soft"), width: 1.5, dash: "dot" },
  });

  function moveRest() {
    const share = (-100 * offset()) / group.size;
    at("photo").style.transform = `translate(${share}%, ${share}%)`;
    at("photo").alt = `${image.title}, cut ${offset()} pixels down and right`;
    at("shift").textContent = `${offset()} pixels down and right`;
    at("numbers").tBodies[0].replaceChildren(...image.models.map(numbers));
  }

  function numbers(model) {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = model.name;
    row.append(name);
    row.insertCell().textContent = model.probability[offset()].toFixed(3);
    row.insertCell().textContent = model.right === null ? "" : model.right[offset()] ? "right" : "wrong";
    return row;
  }

  fill(at("group"), groups.map((one) => one.title));
  at("group").addEventListener("change", chooseGroup);
  at("image").addEventListener("change", chooseImage);
  dark.addEventListener("change", chooseImage);
  at("offset").addEventListener("input", () => {
    moveRest();
    Plotly.relayout(at("chart"), { shapes: [mark()] });
  });
  return chooseGroup();
}

dark.addEventListener("change", drawCharts);
makeSortable(document.getElementById("results"));
Promise.all([...drawCharts(), ...(report.walks ? [walk(report.walks)] : [])]).then(() => {
  document.body.dataset.drawn = "yes";
});
