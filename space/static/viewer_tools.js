// The viewer's tools: what the left button does, crosshair, cine, full screen, keys and their list.
(() => {
  // NiiVue's drag modes.
  const DRAG = { crosshair: 8, windowing: 9, pan: 3, measurement: 2 };
  const LEFT = { window: DRAG.windowing, measure: DRAG.measurement };
  const FRAMES_A_SECOND = 12;
  // Percent of the picture, as in viewer.js.
  const CROSSHAIR_WIDTH = 0.3;

  const methods = {
    // `tool` is "window", "measure" or null: the left button then moves the crosshair.
    useTool(tool) {
      this.tool = tool;
      for (const name of Object.keys(LEFT)) this.tools[name].setAttribute("aria-pressed", String(name === tool));
      if (!this.niivue) return;
      const primary = LEFT[tool] ?? DRAG.crosshair;
      this.niivue.setMouseEventConfig({ leftButton: { primary }, rightButton: DRAG.windowing, centerButton: DRAG.pan });
      this.niivue.setTouchEventConfig({ singleTouch: primary, doubleTouch: DRAG.windowing });
    },

    toggleTool(tool) {
      if (!this.tools[tool].disabled) this.useTool(this.tool === tool ? null : tool);
    },

    toggleCrosshair() {
      if (this.tools.crosshair.disabled || !this.niivue) return;
      const visible = this.tools.crosshair.getAttribute("aria-pressed") !== "true";
      this.tools.crosshair.setAttribute("aria-pressed", String(visible));
      this.niivue.setCrosshairWidth(visible ? CROSSHAIR_WIDTH : 0);
    },

    toggleInverted() {
      if (!this.tools.invert.disabled) this.setInverted(this.tools.invert.getAttribute("aria-pressed") !== "true");
    },

    play(on) {
      clearInterval(this.cine);
      this.cine = null;
      this.tools.play.setAttribute("aria-pressed", String(on));
      this.tools.play.textContent = on ? "Stop" : "Play";
      if (!on) return;
      this.cine = setInterval(() => {
        const last = Number(this.slice.max);
        this.goTo(Number(this.slice.value) >= last ? 0 : Number(this.slice.value) + 1);
      }, 1000 / FRAMES_A_SECOND);
    },

    togglePlay() {
      if (!this.tools.play.disabled) this.play(!this.cine);
    },

    toggleFull() {
      if (document.fullscreenElement) document.exitFullscreen();
      else if (!this.tools.full.disabled) this.root.requestFullscreen();
    },

    reset() {
      if (!this.scan) return;
      this.play(false);
      this.setInverted(false);
      this.useTool(null);
      if (this.gl && this.niivue?.volumes.length) {
        this.niivue.clearAllMeasurements();
        this.niivue.setPan2Dxyzmm([0, 0, 0, 1]);
        this.center();
        this.setPlane(this.scan.plane);
        this.niivue.createOnLocationChange();
      }
      this.setWindow(0);
    },
  };

  const planeKeys = { a: "axial", c: "coronal", s: "sagittal", g: "all" };

  // What a key does; undefined where it does nothing.
  function action(viewer, key) {
    const here = Number(viewer.slice.value);
    const actions = {
      ArrowUp: () => viewer.goTo(here + 1),
      PageUp: () => viewer.goTo(here + 1),
      ArrowDown: () => viewer.goTo(here - 1),
      PageDown: () => viewer.goTo(here - 1),
      Home: () => viewer.goTo(0),
      End: () => viewer.goTo(Number(viewer.slice.max)),
      w: () => viewer.toggleTool("window"),
      m: () => viewer.toggleTool("measure"),
      x: () => viewer.toggleCrosshair(),
      i: () => viewer.toggleInverted(),
      " ": () => viewer.togglePlay(),
      f: () => viewer.toggleFull(),
      r: () => viewer.reset(),
      "?": () => viewer.help.showModal(),
    };
    if (key in actions) return actions[key];
    const plane = viewer.planes.find((button) => button.dataset.plane === planeKeys[key]);
    if (plane) return () => !plane.disabled && viewer.setPlane(planeKeys[key]);
    if (/^[1-9]$/.test(key)) return () => viewer.setWindow(Number(key) - 1);
    return undefined;
  }

  window.radfmTools = (viewer) => {
    Object.assign(Object.getPrototypeOf(viewer), methods);
    const clicks = {
      window: () => viewer.toggleTool("window"),
      measure: () => viewer.toggleTool("measure"),
      crosshair: () => viewer.toggleCrosshair(),
      invert: () => viewer.toggleInverted(),
      play: () => viewer.togglePlay(),
      full: () => viewer.toggleFull(),
      help: () => viewer.help.showModal(),
    };
    for (const [name, tool] of Object.entries(viewer.tools)) tool.addEventListener("click", clicks[name]);
    viewer.close.addEventListener("click", () => viewer.help.close());
    // Before NiiVue, which has keys of its own on the canvas.
    viewer.root.addEventListener(
      "keydown",
      (event) => {
        const form = event.target.closest("input, select, button, summary, dialog");
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (form && event.key !== "?") return;
        const act = action(viewer, event.key.length === 1 ? event.key.toLowerCase() : event.key);
        if (!act || (!viewer.scan && event.key !== "?")) return;
        event.preventDefault();
        event.stopPropagation();
        act();
      },
      true,
    );
    // `?` helps from anywhere on the page but a text box.
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, textarea, select");
      if (event.key === "?" && !typing && !viewer.help.open) viewer.help.showModal();
    });
  };
})();
