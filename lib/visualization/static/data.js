"use strict";
// Loads the scripts in data/: overview, chunk-<n>, details-<n>.

const Gallery = { overview: null };

(() => {
  const KEEP = 60; // files; older ones are forgotten and read again when needed
  const waiting = new Map(); // name -> {promise, resolve, reject}
  const ready = new Map(); // name -> content, the last used last

  window.galleryData = (name, content) => {
    if (name === "overview") {
      Gallery.overview = content;
      return;
    }
    ready.set(name, content);
    while (ready.size > KEEP) ready.delete(ready.keys().next().value);
    const request = waiting.get(name);
    waiting.delete(name);
    if (request) request.resolve(content);
  };

  // The content of a data file if it is loaded, else undefined.
  Gallery.peek = (name) => {
    const content = ready.get(name);
    if (content !== undefined) {
      ready.delete(name);
      ready.set(name, content);
    }
    return content;
  };

  // A promise of the content of a data file.
  Gallery.load = (name) => {
    const content = Gallery.peek(name);
    if (content !== undefined) return Promise.resolve(content);
    if (waiting.has(name)) return waiting.get(name).promise;
    const request = {};
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    waiting.set(name, request);
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    const failed = () => {
      if (!waiting.delete(name)) return;
      Gallery.alert(`data/${name}.js cannot be read; is the gallery's folder complete?`);
      request.reject(new Error(name));
    };
    script.onerror = failed;
    script.onload = () => {
      script.remove();
      failed(); // a complete file has called galleryData by now
    };
    document.head.append(script);
    return request.promise;
  };

  Gallery.alert = (text) => {
    const place = document.getElementById("alert");
    place.textContent = text;
    place.hidden = false;
  };

  // An element with text and attributes; text never becomes markup.
  Gallery.element = (tag, { text, ...attributes } = {}, children = []) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) {
        made.setAttribute(name, value === true ? "" : value);
      }
    }
    if (text !== undefined) made.textContent = text;
    made.append(...children);
    return made;
  };
})();
