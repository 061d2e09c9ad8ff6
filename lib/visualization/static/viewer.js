"use strict";
// One large image: zoom, move, list of its items.

(() => {
  const viewer = document.getElementById("viewer");
  const canvas = document.getElementById("canvas");
  const context = canvas.getContext("2d");
  const scratch = document.createElement("canvas").getContext("2d");
  const list = document.getElementById("list");
  const { element } = Gallery;

  let order = [];
  let place = 0;
  let picture = null; // the <img>, not in the page
  let items = [];
  let chosen = null; // pointed at
  let view = { scale: 1, x: 0, y: 0 }; // CSS pixels per image pixel, and the corner
  let fitted = true;
  let scheduled = false;

  const current = () => Gallery.overview.images[order[place]];

  Gallery.openViewer = (numbers, at) => {
    order = numbers;
    if (!viewer.open) viewer.showModal();
    canvas.focus();
    show(at);
  };

  Gallery.redrawViewer = () => {
    if (viewer.open) fill();
  };

  function show(at) {
    place = at;
    const image = current();
    document.getElementById("viewer-name").textContent = image.name;
    document.getElementById("viewer-told").textContent = [
      `${place + 1} of ${order.length}`, `${image.width} × ${image.height}`, ...Gallery.numbersOf(image),
    ].join(" · ");
    picture = new Image();
    picture.onload = draw;
    picture.onerror = () => Gallery.alert(`${image.image} cannot be read`);
    picture.src = image.image;
    items = [];
    fit();
    fill();
    for (const near of [place - 1, place + 1]) {
      if (order[near] !== undefined) new Image().src = Gallery.overview.images[order[near]].image;
    }
  }

  // Lists the items of the enabled layers.
  async function fill() {
    const number = order[place];
    let found;
    try {
      found = await Gallery.itemsOf(number, { maps: draw });
    } catch {
      found = [];
    }
    if (number !== order[place]) return;
    items = found;
    chosen = null;
    list.replaceChildren(...[...items].reverse().map(row));
    const named = items.filter((item) => item.caption).reverse().map((item) => item.caption);
    canvas.setAttribute(
      "aria-label",
      `${current().name}: ${named.length ? named.slice(0, 20).join(", ") : "no instances shown"}`,
    );
    document.getElementById("list-title").textContent = `On the image: ${items.length}`;
    draw();
  }

  function row(item) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = item.color;
    const button = element("button", { type: "button" }, [
      swatch,
      element("span", { class: "what", text: item.caption || item.name }),
      element("span", { class: "which", text: item.told }),
    ]);
    const choose = () => {
      chosen = item;
      draw();
    };
    const leave = () => {
      if (chosen === item) chosen = null;
      draw();
    };
    button.addEventListener("mouseenter", choose);
    button.addEventListener("focus", choose);
    button.addEventListener("mouseleave", leave);
    button.addEventListener("blur", leave);
    button.addEventListener("click", () => zoomTo(item));
    return element("li", {}, [button]);
  }

  // Zoom and place. -------------------------------------------------------------------------

  const box = () => [canvas.clientWidth, canvas.clientHeight];

  function fitScale() {
    const [width, height] = box();
    return Math.min(width / current().width, height / current().height) * 0.98;
  }

  function fit() {
    const [width, height] = box();
    const scale = fitScale();
    view = { scale, x: (width - current().width * scale) / 2, y: (height - current().height * scale) / 2 };
    fitted = true;
    draw();
  }

  function zoom(factor, [x, y] = box().map((side) => side / 2)) {
    const smallest = fitScale();
    const scale = Math.max(smallest, Math.min(view.scale * factor, Math.max(40, smallest)));
    if (scale <= smallest * 1.001) {
      fit();
      return;
    }
    const ratio = scale / view.scale;
    view = { scale, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio };
    fitted = false;
    draw();
  }

  function move(dx, dy) {
    view.x += dx;
    view.y += dy;
    keepInSight();
    draw();
  }

  function keepInSight() {
    const [width, height] = box();
    const [wide, high] = [current().width * view.scale, current().height * view.scale];
    view.x = wide <= width ? (width - wide) / 2 : Math.max(width - wide, Math.min(view.x, 0));
    view.y = high <= height ? (height - high) / 2 : Math.max(height - high, Math.min(view.y, 0));
  }

  function zoomTo(item) {
    if (item.map) return;
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const line of item.outlines) {
      let [x, y] = [0, 0];
      for (let i = 0; i < line.length; i += 2) {
        x += line[i];
        y += line[i + 1];
        [left, right] = [Math.min(left, x / 4), Math.max(right, x / 4)];
        [top, bottom] = [Math.min(top, y / 4), Math.max(bottom, y / 4)];
      }
    }
    if (!(right > left)) return;
    const [width, height] = box();
    const scale = Math.max(
      fitScale(),
      Math.min(40, (0.7 * width) / (right - left), (0.7 * height) / (bottom - top)),
    );
    view = { scale, x: width / 2 - ((left + right) / 2) * scale, y: height / 2 - ((top + bottom) / 2) * scale };
    fitted = scale <= fitScale();
    keepInSight();
    draw();
  }

  // Drawing. --------------------------------------------------------------------------------

  function draw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (viewer.open) paint();
    });
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = box();
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const { scale, x, y } = view;
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    // When zoomed in far, show sharp pixels.
    context.imageSmoothingEnabled = scale < 8;
    context.imageSmoothingQuality = "high";
    const image = current();
    if (picture.complete && picture.naturalWidth) {
      context.drawImage(picture, 0, 0, image.width, image.height);
    }
    Gallery.drawItems(context, items, { scale: scale * ratio, ratio, chosen });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const told = chosen ? [chosen] : [...items].reverse();
    const toView = (px, py) => [x + px * scale, y + py * scale];
    Gallery.drawCaptions(context, told, { toView, size: [width, height] });
    document.getElementById("zoom").textContent = `${Math.round(scale * 100)} %`;
    canvas.dataset.items = items.length;
  }

  // Pointer: drag to move, wheel or two fingers to zoom, hovering names what is under it. -----

  const pointers = new Map();
  const inCanvas = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015)), inCanvas(event));
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, inCanvas(event));
  });
  for (const type of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(type, (event) => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("pointermove", (event) => {
    const here = inCanvas(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      const [x, y] = [(here[0] - view.x) / view.scale, (here[1] - view.y) / view.scale];
      const under = Gallery.itemAt(scratch, items, x, y) || null;
      if (under !== chosen) {
        chosen = under;
        draw();
      }
      return;
    }
    pointers.set(event.pointerId, here);
    if (pointers.size === 1) move(here[0] - before[0], here[1] - before[1]);
    else {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const far = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      if (far(before) > 5) zoom(far(here) / far(before), other);
    }
  });
  canvas.addEventListener("pointerleave", () => {
    if (chosen && !pointers.size) {
      chosen = null;
      draw();
    }
  });
  canvas.addEventListener("dblclick", (event) => (fitted ? zoom(3, inCanvas(event)) : fit()));

  // Buttons and keys. -----------------------------------------------------------------------

  const step = (by) => {
    const to = place + by;
    if (to >= 0 && to < order.length) show(to);
  };
  const buttons = {
    smaller: () => zoom(1 / 1.5),
    larger: () => zoom(1.5),
    whole: fit,
    previous: () => step(-1),
    next: () => step(1),
    close: () => viewer.close(),
  };
  for (const [id, act] of Object.entries(buttons)) document.getElementById(id).addEventListener("click", act);

  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const far = 60;
    const keys = {
      ArrowLeft: () => (event.shiftKey ? move(far, 0) : step(-1)),
      ArrowRight: () => (event.shiftKey ? move(-far, 0) : step(1)),
      ArrowUp: () => event.shiftKey && move(0, far),
      ArrowDown: () => event.shiftKey && move(0, -far),
      Home: () => show(0),
      End: () => show(order.length - 1),
      "+": buttons.larger,
      "=": buttons.larger,
      "-": buttons.smaller,
      0: fit,
    };
    if (!(event.key in keys)) return;
    keys[event.key]();
    event.preventDefault();
  });
  viewer.addEventListener("close", () => Gallery.goTo(place));
  new ResizeObserver(() => {
    if (!viewer.open || !order.length) return;
    if (fitted) fit();
    else {
      keepInSight();
      draw();
    }
  }).observe(canvas);
})();
