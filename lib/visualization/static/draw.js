"use strict";
// Layers drawn on a canvas, from outlines in quarters of a pixel of the image.

(() => {
  const paths = new WeakMap(); // outlines -> Path2D

  function pathOf(outlines) {
    let path = paths.get(outlines);
    if (path) return path;
    path = new Path2D();
    for (const line of outlines) {
      pointsOf(line).forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
      path.closePath();
    }
    paths.set(outlines, path);
    return path;
  }

  // The corners of an outline, in pixels of the image.
  function pointsOf(line) {
    const points = [];
    let x = 0;
    let y = 0;
    for (let i = 0; i < line.length; i += 2) {
      x += line[i] / 4;
      y += line[i + 1] / 4;
      points.push([x, y]);
    }
    return points;
  }

  const LOOKS = {
    ground_truth: { fill: 0, line: 2, dash: true },
    proposals: { fill: 0, line: 1 },
    clusters: { fill: 0.25, line: 1.5 },
  };
  const USUAL = { fill: 0.35, line: 2 };

  Gallery.lookOf = (layer) => LOOKS[layer] || USUAL;

  function drawItem(context, item, { look, color, unit, strong, faint }) {
    const path = pathOf(item.outlines);
    const alpha = faint ? 0.25 : strong ? 1 : item.strength || 1;
    context.globalAlpha = alpha;
    const fill = strong ? Math.max(look.fill, 0.3) : look.fill;
    if (fill) {
      context.globalAlpha *= fill;
      context.fillStyle = color;
      context.fill(path, "evenodd");
      context.globalAlpha = alpha;
    }
    const width = look.line * unit * (strong ? 1.6 : 1);
    context.lineJoin = "round";
    context.setLineDash([]);
    context.lineWidth = width + 1.6 * unit;
    context.strokeStyle = "rgba(10, 10, 10, 0.8)"; // visible on light ground, the line on dark
    context.stroke(path);
    context.lineWidth = width;
    if (look.dash) {
      // White dashes on the colour tell the ground truth from results.
      context.strokeStyle = color;
      context.stroke(path);
      context.setLineDash([5 * unit, 5 * unit]);
    }
    context.strokeStyle = look.dash ? "#ffffff" : color;
    context.stroke(path);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  // Draws items in image coordinates; the context's transform maps them to the canvas.
  // `scale` is canvas pixels per image pixel, `ratio` canvas pixels per CSS pixel.
  Gallery.drawItems = (context, items, { scale, ratio, chosen }) => {
    const unit = ratio / scale;
    for (const item of items) {
      if (item.map) drawMap(context, item, unit);
      else if (item !== chosen) {
        const look = Gallery.lookOf(item.layer);
        drawItem(context, item, { look, color: item.color, unit, faint: Boolean(chosen) });
      }
    }
    if (chosen && !chosen.map) {
      const look = Gallery.lookOf(chosen.layer);
      drawItem(context, chosen, { look, color: chosen.color, unit, strong: true });
    }
  };

  function drawMap(context, item, unit) {
    const { map, peaks, width, height, color } = item;
    if (map.complete && map.naturalWidth) {
      context.imageSmoothingEnabled = true;
      context.drawImage(map, 0, 0, width, height);
    }
    for (const [x, y] of peaks) {
      for (const [line, style] of [[5, "#101010"], [2.5, "#ffffff"]]) {
        context.lineWidth = line * unit;
        context.strokeStyle = style;
        context.beginPath();
        context.arc(x, y, 6 * unit, 0, 7);
        context.moveTo(x - 9 * unit, y);
        context.lineTo(x + 9 * unit, y);
        context.moveTo(x, y - 9 * unit);
        context.lineTo(x, y + 9 * unit);
        context.stroke();
      }
    }
  }

  // Names and scores beside the items without overlap, best first. In CSS pixels.
  Gallery.drawCaptions = (context, items, { toView, size }) => {
    const taken = [];
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const item of items) {
      if (item.map || !item.caption || (item.strength < 0.3 && items.length > 1)) continue;
      const [x, y] = toView(...topOf(item.outlines));
      const width = context.measureText(item.caption).width + 10;
      const left = Math.max(0, Math.min(x - width / 2, size[0] - width));
      let top = Math.max(0, Math.min(y - 20, size[1] - 18));
      for (let tries = 0; tries < 12; tries += 1) {
        const inWay = taken.find((t) => left < t[0] + t[2] && t[0] < left + width && Math.abs(top - t[1]) < 18);
        if (!inWay) break;
        top = inWay[1] + 18;
      }
      taken.push([left, top, width]);
      context.fillStyle = item.color;
      context.fillRect(left, top, width, 17);
      context.fillStyle = isDark(item.color) ? "#ffffff" : "#111111";
      context.fillText(item.caption, left + 5, top + 9);
    }
  };

  function topOf(outlines) {
    return outlines.flatMap(pointsOf).reduce((best, point) => (point[1] < best[1] ? point : best), [0, Infinity]);
  }

  function isDark(color) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }

  // The topmost item at a point of the image.
  Gallery.itemAt = (context, items, x, y) =>
    [...items].reverse().find((item) => !item.map && context.isPointInPath(pathOf(item.outlines), x, y, "evenodd"));
})();
