"use strict";
// Thumbnails of the filtered images. Only those in sight exist as elements.

(() => {
  const GAP = 12;
  const FOOT = 44; // name and numbers under a thumbnail
  const scroller = document.getElementById("scroller");
  const grid = document.getElementById("grid");
  const tiles = new Map(); // place in the order -> element
  let order = []; // numbers of the images
  let columns = 1;
  let tileWidth = 200;
  let rowHeight = 200;
  let active = 0; // place of the keyboard focus
  let timer = 0;

  const { element } = Gallery;

  // Shows these images, from the top.
  Gallery.showGrid = (numbers) => {
    order = numbers;
    active = 0;
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
    scroller.scrollTop = 0;
    layOut();
  };

  // Redraws what is in sight after a change of layers or filters.
  Gallery.redrawGrid = () => tiles.forEach(overlay);

  // Makes an image the current one and scrolls to it.
  Gallery.goTo = (place, { focus = true } = {}) => {
    if (!order.length) return;
    active = Math.max(0, Math.min(place, order.length - 1));
    const top = Math.floor(active / columns) * rowHeight;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + rowHeight > scroller.scrollTop + scroller.clientHeight) {
      scroller.scrollTop = top + rowHeight - scroller.clientHeight;
    }
    render();
    if (focus) tiles.get(active)?.focus({ preventScroll: true });
  };

  function layOut() {
    const width = scroller.clientWidth - 2 * GAP;
    columns = Math.max(1, Math.floor((width + GAP) / ((width < 500 ? 150 : 190) + GAP)));
    tileWidth = Math.floor((width + GAP) / columns) - GAP;
    rowHeight = Math.round(tileWidth * 0.75) + FOOT + GAP;
    grid.style.height = `${Math.ceil(order.length / columns) * rowHeight}px`;
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
    render();
  }

  function render() {
    const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - 1) * columns;
    const rows = Math.ceil(scroller.clientHeight / rowHeight) + 2;
    const wanted = new Set(order.length ? [active] : []);
    for (let place = first; place < Math.min(order.length, first + rows * columns); place += 1) {
      wanted.add(place);
    }
    for (const [place, tile] of tiles) {
      if (!wanted.has(place)) {
        tile.remove();
        tiles.delete(place);
      }
    }
    for (const place of [...wanted].sort((a, b) => a - b)) {
      if (!tiles.has(place)) {
        const tile = makeTile(place);
        tiles.set(place, tile);
        // In reading order, for screen readers.
        const after = [...grid.children].find((other) => Number(other.dataset.place) > place);
        grid.insertBefore(tile, after || null);
      }
    }
    for (const [place, tile] of tiles) {
      tile.tabIndex = place === active ? 0 : -1;
      tile.setAttribute("aria-selected", place === active);
    }
    clearTimeout(timer);
    timer = setTimeout(Gallery.redrawGrid, 60); // no outlines while scrolling fast
  }

  function makeTile(place) {
    const image = Gallery.overview.images[order[place]];
    const numbers = Gallery.numbersOf(image);
    const tile = element(
      "div",
      {
        class: "tile",
        role: "option",
        "aria-posinset": place + 1,
        "aria-setsize": order.length,
        "aria-label": [image.name, ...numbers].join(", "),
        "data-place": place,
      },
      [
        element("div", { class: "picture" }, [
          element("img", { src: image.thumb, alt: "", decoding: "async", draggable: "false" }),
          element("canvas", { "aria-hidden": "true" }),
        ]),
        element("span", { class: "name", text: image.name, title: image.name }),
        element("span", { class: "numbers", text: numbers.join(" · ") }),
      ],
    );
    tile.style.width = `${tileWidth}px`;
    tile.style.height = `${rowHeight - GAP}px`;
    tile.style.left = `${GAP + (place % columns) * (tileWidth + GAP)}px`;
    tile.style.top = `${Math.floor(place / columns) * rowHeight}px`;
    tile.querySelector(".picture").style.height = `${Math.round(tileWidth * 0.75)}px`;
    return tile;
  }

  // Draws the layers over a thumbnail once their outlines are loaded.
  async function overlay(tile, place) {
    const number = order[place];
    const canvas = tile.querySelector("canvas");
    let items;
    try {
      items = await Gallery.itemsOf(number);
    } catch {
      return; // already reported on the page
    }
    if (!tile.isConnected) return;
    const image = Gallery.overview.images[number];
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas.parentElement;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const scale = Math.min(width / image.width, height / image.height) * ratio;
    const context = canvas.getContext("2d");
    context.setTransform(
      scale, 0, 0, scale,
      (canvas.width - image.width * scale) / 2, (canvas.height - image.height * scale) / 2,
    );
    Gallery.drawItems(context, items, { scale, ratio: ratio * 0.7 });
    canvas.dataset.drawn = items.length;
  }

  grid.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    active = Number(tile.dataset.place);
    render();
    Gallery.openViewer(order, active);
  });

  grid.addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (tile && Number(tile.dataset.place) !== active) {
      active = Number(tile.dataset.place);
      render();
    }
  });

  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(scroller.clientHeight / rowHeight)) * columns;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      PageUp: -page, PageDown: page, Home: -order.length, End: order.length,
    };
    if (event.key in steps) {
      const place = active + steps[event.key];
      const leaves = event.key.startsWith("Arrow") && (place < 0 || place >= order.length);
      if (!leaves) Gallery.goTo(place);
    } else if (event.key === "Enter" || event.key === " ") {
      Gallery.openViewer(order, active);
    } else return;
    event.preventDefault();
  });

  scroller.addEventListener("scroll", render, { passive: true });
  new ResizeObserver(() => {
    if (scroller.clientWidth) {
      layOut();
    }
  }).observe(scroller);
})();
