"use strict";
// State of the page: layers, filters, order. Starts it.

(() => {
  const { overview, element } = Gallery;
  if (!overview) {
    Gallery.alert("data/overview.js cannot be read; is the gallery's folder complete?");
    return;
  }
  const byId = (id) => document.getElementById(id);
  const { images, classes, layers } = overview;
  const detailed = new Set(overview.detailed);
  const state = {
    find: "",
    sort: "",
    layers: new Set(),
    score: 0,
    colorBy: "class",
    nonempty: false,
    classes: new Set(classes.keys()),
  };

  const percent = (value) => `${(100 * value).toFixed(0)}`;
  const collator = new Intl.Collator(undefined, { numeric: true });

  // The note beside an image's name.
  Gallery.numbersOf = (image) => {
    const told = [];
    if (image.ap !== null) told.push(`AP ${percent(image.ap)}`, `${image.found}/${image.objects} found`);
    else if (image.objects === 0) told.push("no object");
    const flat = image.has.detections || image.has.pseudo_labels;
    if (flat) {
      let count = 0;
      for (let i = 0; i < flat.length; i += 2) count += fits(flat[i], flat[i + 1]);
      told.push(`${count} shown`);
    }
    return told;
  };

  const fits = (classIdx, score) => state.classes.has(classIdx) && score >= state.score;

  // Items of an image. ------------------------------------------------------------------------

  const maps = new Map(); // source -> <img>

  function mapOf(source, whenLoaded) {
    if (!maps.has(source)) {
      if (maps.size > 200) maps.clear();
      const made = new Image();
      made.src = source;
      maps.set(source, made);
    }
    const map = maps.get(source);
    if (!map.complete && whenLoaded) map.addEventListener("load", whenLoaded, { once: true });
    return map;
  }

  // A promise of an image's items in the enabled layers, in drawing order.
  Gallery.itemsOf = async (number, { maps: whenLoaded } = {}) => {
    const on = layers.filter((layer) => state.layers.has(layer.id));
    const wanted = [];
    if (on.some((layer) => !layer.detail)) {
      wanted.push(
        Gallery.load(`chunk-${Math.floor(number / overview.chunk)}`).then((chunk) => chunk[number % overview.chunk]),
      );
    }
    if (detailed.has(number) && on.some((layer) => layer.detail)) wanted.push(Gallery.load(`details-${number}`));
    const content = Object.assign({}, ...(await Promise.all(wanted)));
    const items = [];
    for (const layer of [...on].reverse()) {
      const made = (content[layer.id] || []).map((entry, k) => itemOf(layer, entry, k, number, whenLoaded));
      items.push(...made.filter(Boolean).reverse());
    }
    return items;
  };

  function itemOf(layer, entry, k, number, whenLoaded) {
    const [classIdx, value, hit, outlines] = entry;
    const named = classIdx !== null;
    if (named && !state.classes.has(classIdx)) return null;
    if (layer.scored && value !== null && value < state.score) return null;
    const palette = overview.instanceColors;
    const item = {
      layer: layer.id,
      name: named ? classes[classIdx].name : `${layer.one} ${k + 1}`,
      color: named && state.colorBy === "class" ? classes[classIdx].color : palette[k % palette.length],
      told: layer.one,
    };
    if (layer.id.startsWith("mined_")) item.strength = 0.25 + 0.75 * value;
    if (layer.id === "prm") {
      const map = mapOf(value, whenLoaded);
      const { width, height } = images[number];
      item.told = `${hit.length} ${hit.length === 1 ? "peak" : "peaks"}`;
      return { ...item, map, peaks: hit, width, height };
    }
    item.outlines = outlines;
    if (named) {
      item.caption = item.name;
      if (layer.id === "clusters") item.caption += ` ×${value}`;
      else if (value !== null) item.caption += ` ${value.toFixed(2)}`;
    }
    if (hit !== null) item.told += layer.id === "ground_truth" ? (hit ? ", found" : ", missed") : hit ? ", hit" : ", miss";
    return item;
  }

  // Filters and order. ------------------------------------------------------------------------

  const hasAny = (image) =>
    Object.entries(image.has).some(([id, flat]) => {
      if (!state.layers.has(id)) return false;
      for (let i = 0; i < flat.length; i += 2) if (fits(flat[i], flat[i + 1])) return true;
      return false;
    });

  const best = (image) => {
    const flat = image.has.detections || image.has.pseudo_labels || [];
    let highest = -1;
    for (let i = 0; i < flat.length; i += 2) if (state.classes.has(flat[i])) highest = Math.max(highest, flat[i + 1]);
    return highest;
  };
  const missed = (image) => (image.objects || 0) - (image.found || 0);
  const withAp = (sign) => (a, b) => {
    if (a.ap === null || b.ap === null) return (a.ap === null) - (b.ap === null);
    return sign * (a.ap - b.ap) || sign * (missed(b) - missed(a));
  };
  const orders = {
    worst: ["Worst AP first", withAp(1)],
    best: ["Best AP first", withAp(-1)],
    missed: ["Most objects missed first", (a, b) => missed(b) - missed(a)],
    objects: ["Most objects first", (a, b) => (b.objects || 0) - (a.objects || 0)],
    surest: ["Highest score first", (a, b) => best(b) - best(a)],
    unsure: ["Lowest best score first", (a, b) => best(a) - best(b)],
    name: ["By name", () => 0],
    given: ["As in the data set", null],
  };
  const known = {
    worst: images.some((i) => i.ap !== null),
    objects: images.some((i) => i.objects !== null),
    surest: layers.some((layer) => layer.scored),
  };
  Object.assign(known, { best: known.worst, missed: known.worst, unsure: known.surest, name: true, given: true });

  function select() {
    const find = state.find.toLowerCase();
    const someClasses = state.classes.size < classes.length;
    const numbers = [];
    images.forEach((image, number) => {
      if (find && !image.name.toLowerCase().includes(find)) return;
      if ((state.nonempty || someClasses) && !hasAny(image)) return;
      numbers.push(number);
    });
    const compare = orders[state.sort][1];
    if (compare) {
      const key = new Map(numbers.map((n) => [n, images[n]]));
      numbers.sort((a, b) => compare(key.get(a), key.get(b)) || collator.compare(images[a].name, images[b].name));
    }
    byId("status").textContent =
      numbers.length === images.length
        ? `${images.length} images`
        : `${numbers.length} of ${images.length} images`;
    byId("nothing").hidden = numbers.length > 0;
    Gallery.showGrid(numbers);
  }

  function redraw() {
    Gallery.redrawGrid();
    Gallery.redrawViewer();
  }

  // Controls. ---------------------------------------------------------------------------------

  function layerBoxes(place) {
    let inDetail = false;
    layers.forEach((layer, k) => {
      if (layer.detail && !inDetail) {
        inDetail = true;
        const some = detailed.size < images.length;
        const count = some ? `, on ${detailed.size} of ${images.length} images` : "";
        place.append(element("p", { class: "which", text: `Step by step${count}` }));
      }
      const box = element("input", { type: "checkbox", "data-layer": layer.id });
      box.checked = state.layers.has(layer.id);
      box.addEventListener("change", () => toggle(layer.id, box.checked));
      const key = k < 9 ? element("kbd", { text: k + 1, "aria-hidden": "true" }) : "";
      place.append(element("label", { class: "check" }, [box, element("span", { text: layer.title }), key]));
    });
  }

  function toggle(id, on) {
    if (on) state.layers.add(id);
    else state.layers.delete(id);
    for (const box of document.querySelectorAll("[data-layer]")) {
      if (box.dataset.layer === id) box.checked = on;
    }
    const filters = state.nonempty || state.classes.size < classes.length;
    if (filters && !byId("viewer").open) select();
    redraw();
  }

  function classBoxes() {
    const counts = new Array(classes.length).fill(0);
    for (const image of images) {
      const seen = new Set();
      for (const flat of Object.values(image.has)) for (let i = 0; i < flat.length; i += 2) seen.add(flat[i]);
      seen.forEach((index) => (counts[index] += 1));
    }
    classes.forEach(({ name, color }, index) => {
      const box = element("input", { type: "checkbox", "data-class": index });
      box.checked = true;
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = color;
      byId("class-list").append(
        element("label", { class: "check", title: name }, [
          box, swatch, element("span", { class: "what", text: name }),
          element("span", { class: "which", text: counts[index] }),
        ]),
      );
    });
    byId("class-list").addEventListener("change", (event) => {
      const index = Number(event.target.dataset.class);
      if (event.target.checked) state.classes.add(index);
      else state.classes.delete(index);
      select();
    });
    byId("find-class").hidden = classes.length < 12;
    byId("find-class").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      [...byId("class-list").children].forEach((label, index) => {
        label.hidden = !classes[index].name.toLowerCase().includes(wanted);
      });
    });
    byId("all-classes").addEventListener("click", () => setClasses(true));
    byId("no-class").addEventListener("click", () => setClasses(false));
  }

  function setClasses(on) {
    state.classes = new Set(on ? classes.keys() : []);
    for (const box of document.querySelectorAll("[data-class]")) box.checked = on;
    select();
  }

  function setScore(score) {
    state.score = score;
    byId("score").value = score;
    byId("score-told").textContent = score.toFixed(2);
  }

  // The highest usual threshold at which at least half of the images have an instance.
  function usualScore() {
    const enough = (score) => images.filter((image) => best(image) >= score).length * 2 >= images.length;
    return [0.3, 0.1, 0.03].find(enough) || 0;
  }

  function reset() {
    Object.assign(state, { find: "", nonempty: false });
    byId("find").value = "";
    setScore(0);
    byId("nonempty").checked = false;
    setClasses(true);
  }

  // Runs a function once calls have paused for a moment.
  function calmly(run) {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(run, 120);
    };
  }

  function controls() {
    for (const [id, [title]] of Object.entries(orders)) {
      if (known[id]) byId("sort").append(element("option", { value: id, text: title }));
    }
    state.sort = byId("sort").value;
    const first = layers.find((layer) => layer.scored) || layers[0];
    if (first) state.layers.add(first.id);
    layerBoxes(byId("layers"));
    layerBoxes(byId("viewer-layers"));
    classBoxes();
    const selectSoon = calmly(select);
    byId("find").addEventListener("input", (event) => {
      state.find = event.target.value;
      selectSoon();
    });
    byId("sort").addEventListener("change", (event) => {
      state.sort = event.target.value;
      select();
    });
    byId("score").disabled = !known.surest;
    setScore(known.surest ? usualScore() : 0);
    byId("score").addEventListener("input", (event) => {
      setScore(Number(event.target.value));
      selectSoon();
    });
    byId("color-by").addEventListener("change", (event) => {
      state.colorBy = event.target.value;
      redraw();
    });
    byId("nonempty").addEventListener("change", (event) => {
      state.nonempty = event.target.checked;
      select();
    });
    byId("show-filters").addEventListener("click", (event) => {
      const open = byId("filters").classList.toggle("open");
      event.currentTarget.setAttribute("aria-expanded", open);
    });
    byId("reset").addEventListener("click", reset);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.target.matches("input:not([type=checkbox], [type=range]), select")) return;
      const layer = layers[Number(event.key) - 1];
      if (!layer || !/^[1-9]$/.test(event.key) || byId("images").hidden) return;
      toggle(layer.id, !state.layers.has(layer.id));
      event.preventDefault();
    });
  }

  function tabs() {
    const all = [...document.querySelectorAll("[role=tab]")];
    let charts = false;
    const open = (tab) => {
      for (const other of all) {
        const on = other === tab;
        other.setAttribute("aria-selected", on);
        other.tabIndex = on ? 0 : -1;
        byId(other.getAttribute("aria-controls")).hidden = !on;
      }
      if (tab.id === "tab-run" && !charts) {
        charts = true;
        Gallery.drawCharts();
      }
    };
    all.forEach((tab, k) => {
      tab.addEventListener("click", () => open(tab));
      tab.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        const other = all[(k + 1) % all.length];
        open(other);
        other.focus();
      });
    });
  }

  function theme() {
    const root = document.documentElement;
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const stored = (() => {
      try {
        return localStorage.getItem("cim-gallery-theme");
      } catch {
        return null; // some browsers deny storage to local files
      }
    })();
    if (stored === "light" || stored === "dark") root.dataset.theme = stored;
    byId("theme").addEventListener("click", () => {
      const now = root.dataset.theme || (dark.matches ? "dark" : "light");
      root.dataset.theme = now === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("cim-gallery-theme", root.dataset.theme);
      } catch {
        // kept until the page is closed
      }
    });
  }

  controls();
  tabs();
  theme();
  select();
})();
