"use strict";
// Line charts as inline SVG: curves of the training, precision over recall.

(() => {
  const NS = "http://www.w3.org/2000/svg";
  const WIDTH = 720;
  const HEIGHT = 300;
  const MARGIN = { left: 56, right: 12, top: 10, bottom: 40 };

  function svg(tag, attributes, text) {
    const made = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // About five round numbers from a to b.
  function ticks(a, b) {
    const rough = (b - a) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const marks = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + step * 1e-9; k += 1) marks.push(k * step);
    return marks;
  }

  const told = (value) => String(Number(value.toPrecision(4)));

  // series: [{name, color, x: [], y: []}]
  Gallery.chart = (section, series, { xTitle, yTitle, xRange, yRange, label }) => {
    const all = (axis) => series.flatMap((line) => line[axis]);
    const range = (axis) => {
      const values = all(axis);
      return [Math.min(...values), Math.max(...values)];
    };
    const [x0, x1] = xRange || range("x");
    let [y0, y1] = yRange || [Math.min(0, range("y")[0]), range("y")[1]];
    if (y0 === y1) y1 = y0 + 1;
    const across = (x) => MARGIN.left + ((x - x0) / (x1 - x0 || 1)) * (WIDTH - MARGIN.left - MARGIN.right);
    const down = (y) => HEIGHT - MARGIN.bottom - ((y - y0) / (y1 - y0)) * (HEIGHT - MARGIN.top - MARGIN.bottom);

    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    for (const y of ticks(y0, y1)) {
      picture.append(
        svg("line", { class: "rule", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: down(y), y2: down(y) }),
        svg("text", { x: MARGIN.left - 6, y: down(y) + 4, "text-anchor": "end" }, told(y)),
      );
    }
    for (const x of ticks(x0, x1)) {
      picture.append(svg("text", { x: across(x), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle" }, told(x)));
    }
    picture.append(
      svg("text", { x: (MARGIN.left + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, xTitle),
      svg("text", { transform: `translate(13 ${HEIGHT / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle),
    );
    const lines = new Map();
    for (const line of series) {
      const points = line.x.map((x, i) => `${across(x).toFixed(1)},${down(line.y[i]).toFixed(1)}`);
      const drawn = svg("polyline", { points: points.join(" "), class: "curve" });
      drawn.style.stroke = line.color;
      if (line.strong) drawn.classList.add("strong");
      else if (series.length > 12) drawn.classList.add("thin");
      drawn.append(svg("title", {}, line.name));
      lines.set(line.name, drawn);
      picture.append(drawn);
    }
    const legend = Gallery.element("div", { class: "legend", role: "group", "aria-label": "Curves" });
    for (const line of series) {
      const swatch = Gallery.element("span", { class: "swatch" });
      swatch.style.background = line.color;
      const button = Gallery.element("button", { type: "button", "aria-pressed": "true" }, [
        swatch, Gallery.element("span", { text: line.name }),
      ]);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", shown);
        lines.get(line.name).style.display = shown ? "" : "none";
      });
      const strong = (on) => () => {
        for (const [name, drawn] of lines) drawn.classList.toggle("faint", on && name !== line.name);
      };
      for (const type of ["mouseenter", "focus"]) button.addEventListener(type, strong(true));
      for (const type of ["mouseleave", "blur"]) button.addEventListener(type, strong(false));
      legend.append(button);
    }
    section.append(picture, legend);
    section.hidden = false;
  };

  Gallery.drawCharts = () => {
    const { classes, precision, history, instanceColors } = Gallery.overview;
    const recall = Array.from({ length: 101 }, (_, i) => i / 100);
    const curves = Object.entries(precision).map(([index, values]) => ({
      name: classes[index].name, color: classes[index].color, x: recall, y: values,
    }));
    if (curves.length > 1) {
      const mean = recall.map((_, i) => curves.reduce((sum, { y }) => sum + y[i], 0) / curves.length);
      curves.push({ name: "mean", color: "var(--ink)", x: recall, y: mean, strong: true });
    }
    if (curves.length) {
      Gallery.chart(document.getElementById("curve-precision"), curves, {
        xTitle: "recall", yTitle: "precision", xRange: [0, 1], yRange: [0, 1],
        label: `Precision over recall of ${Object.keys(precision).length} classes`,
      });
    }
    const names = [...new Set(history.flatMap((entry) => Object.keys(entry)))];
    const lineOf = (name, number) => {
      const entries = history.filter((entry) => name in entry);
      return {
        name, color: instanceColors[number], x: entries.map((e) => e.iteration), y: entries.map((e) => e[name]),
      };
    };
    const others = ["iteration", "lr", "grad_norm", "data_wait", "seconds", "images_per_s"];
    const losses = names.filter((name) => !others.includes(name));
    if (history.length > 1 && losses.length) {
      Gallery.chart(document.getElementById("curve-losses"), losses.map(lineOf), {
        xTitle: "updates", yTitle: "loss", label: `Losses over ${history.length} points of the training`,
      });
    }
    for (const [name, title] of [["lr", "learning rate"], ["grad_norm", "gradient norm"]]) {
      if (history.length > 1 && names.includes(name)) {
        Gallery.chart(document.getElementById("curve-rate"), [lineOf(name, 3)], {
          xTitle: "updates", yTitle: title, label: `${title} over the training`,
        });
      }
    }
  };
})();
